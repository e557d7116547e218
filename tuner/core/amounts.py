"""Sizes and durations as people write them, with a unit."""

from __future__ import annotations

import re
from typing import Any

from .errors import ArgumentError

MOST_BYTES = 2**60

_UNITS = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", start=1)
    # A bare letter counts in powers of two, as in Docker and Slurm.
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)")

_DURATION_UNITS = {
    name: seconds
    for seconds, names in (
        (1, "s sec secs second seconds"),
        (60, "m min mins minute minutes"),
        (3600, "h hr hrs hour hours"),
        (86400, "d day days"),
    )
    for name in names.split()
}
_DURATION = re.compile(r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*([a-z]*)")

TIME = "seconds, more than 0 and at most 1e9"


def is_time(value: float) -> bool:
    """Tell whether a value can be waited for."""
    return 0 < value <= 1e9


def brief(value: Any, most: int = 200) -> str:
    """Return a value for a message, cut short to so many characters."""
    try:
        text = repr(value)
    except Exception:  # Such as a whole number of many thousand digits, which Python does not write.
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def parse_size(text: str | int) -> int:
    """Return the bytes in a size such as `12GiB`, `1.5GB` or `4096`.

    Raises:
        ArgumentError: The text is not a positive number with a known unit.

    Example:
        >>> parse_size("1.5GiB")
        1610612736
    """
    match = _SIZE.fullmatch(text.strip() if isinstance(text, str) else brief(text))
    units = {name.upper(): factor for name, factor in _UNITS.items()}
    if isinstance(text, bool) or match is None or match[2].upper() not in units:
        raise ArgumentError(
            f"{brief(text)} is not a size: expected a number with a unit, such as 12GiB, 800MiB or 12GB."
        )
    amount = float(match[1]) * units[match[2].upper()]
    if not 1 <= amount <= MOST_BYTES:
        raise ArgumentError(f"{brief(text)} is not a size: expected at least one byte, and at most a million TiB.")
    return int(amount)


def written_duration(seconds: float) -> str:
    """Return a duration as it is given on a command line: `parse_duration` makes the same seconds of it.

    Example:
        >>> written_duration(30.0), written_duration(1200.0), written_duration(5400.0), written_duration(0.5)
        ('30s', '20min', '90min', '0.5s')
    """
    for unit in ("d", "h", "min"):
        if seconds >= _DURATION_UNITS[unit] and seconds % _DURATION_UNITS[unit] == 0:
            return f"{seconds / _DURATION_UNITS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds >= 1 and seconds == int(seconds) else f"{seconds!r}s"


def parse_duration(text: str) -> float:
    """Return the seconds in a duration such as `20min`, `1.5h` or `90 s`.

    Raises:
        ArgumentError: The text is not a positive number with a known unit.

    Example:
        >>> parse_duration("1.5h")
        5400.0
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or match[2] not in _DURATION_UNITS:
        raise ArgumentError(
            f"{brief(text)} is not a duration: expected a number with a unit (s, min, h or d), such as 20min, "
            "1.5h or 90s."
        )
    seconds = float(match[1]) * _DURATION_UNITS[match[2]]
    if not is_time(seconds):
        raise ArgumentError(f"{brief(text)} is not a duration: expected {TIME}.")
    return seconds
