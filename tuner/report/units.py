"""Numbers with their units, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..core.plain_text import one_line, printable

if TYPE_CHECKING:
    from ..core.probe_results import ProbeResult
    from ..core.results import Candidate
    from ..core.trial_record import TrialRecord

REFERENCE_RUN = "a full run at the smallest batch that reaches half of the top speed"
"""The unit of a budget, in words."""


def gib(n_bytes: float | None) -> str:
    """Return bytes for people: MiB below one GiB, KiB below one MiB.

    Example:
        >>> gib(1610612736), gib(52428800), gib(39720), gib(None)
        ('1.50 GiB', '50 MiB', '39 KiB', 'unknown')
    """
    if n_bytes is None:
        return "unknown"
    if abs(n_bytes) < 2**20:
        return f"{n_bytes / 2**10:.0f} KiB"
    return f"{n_bytes / 2**30:.2f} GiB" if abs(n_bytes) >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """Return seconds for people.

    Example:
        >>> duration(0.25), duration(90), duration(7300), duration(None)
        ('0.25 s', '1.5 min', '2.0 h', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def per_second(samples_per_s: float) -> str:
    """Return a throughput for people.

    Example:
        >>> per_second(45843.2), per_second(3.456)
        ('45,843 samples/s', '3.46 samples/s')
    """
    return f"{samples_per_s:,.0f} samples/s" if samples_per_s >= 100 else f"{samples_per_s:.3g} samples/s"


def plain_row(text: str) -> str:
    """Return a line with its columns, whatever was put into it, as one line that is harmless."""
    return printable(text.replace("\n", " ").replace("\t", " "))


def plain_rows(lines: Iterable[str]) -> str:
    """Return lines as a text that is harmless."""
    return "\n".join(map(plain_row, lines))


def given_params(params: Mapping[str, Any], between: str) -> str:
    """Return extra parameters with their values."""
    return between.join(f"{one_line(name, 80)}={one_line(repr(value), 200)}" for name, value in params.items())


def number(value: float | None) -> str:
    """Return a number with four significant digits, or `-`."""
    return "-" if value is None else f"{value:.4g}"


_LIMITS = {
    "dataset": "the size of the data set",
    "plateau": "speed, which no longer rises",
    "timeout": "the time that the probe had",
}


def limited_text(probe: ProbeResult) -> str:
    """Return what keeps a micro-batch from being larger: `max_batch` only where somebody gave it."""
    if probe.limited_by == "max_batch" and probe.settings.get("max_batch") is None:
        return "the largest that the search can use"
    return _LIMITS.get(probe.limited_by, probe.limited_by)


def setting_text(setting: Candidate | TrialRecord) -> str:
    """Return a setting, with the user's own dimensions."""
    extra = f", {given_params(setting.params, ', ')}" if setting.params else ""
    return f"batch {setting.global_batch_size}, lr {setting.learning_rate:.3g}{extra}"


def rate_text(setting: Candidate) -> str:
    """Return the learning rate of a setting, with the user's own dimensions beside it."""
    own = given_params(setting.params, ", ")
    return f"{setting.learning_rate:.3g}{', ' if own else ''}{own}"
