"""Checks of single arguments: what is wrong is collected, and named all at once."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Literal
from unicodedata import category

from .amounts import brief, parse_duration, parse_size
from .errors import ArgumentError
from .specs import Plan

MOST_NAME = 200
"""Characters in the name of a study, and of a dimension."""
MOST_THREADS = 1024
MOST_SEED = 2**43
"""The order of an epoch is drawn from a seed of 64 bits, which is this one times a million (`objectives/data.py`)."""


def nearest(value: Any, valid: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Return which of the valid names somebody may have meant; None where none is near.

    Example:
        >>> nearest("Largset", ("loss", "time", "largest"))
        'largest'
    """
    if not isinstance(value, str):
        return None
    found = get_close_matches(value[:MOST_NAME].strip().lower(), valid, 1, cutoff)
    return found[0] if found else None


class Checks:
    """Collects what is wrong; `done` raises it all at once."""

    def __init__(self) -> None:
        """Begin with nothing wrong."""
        self.problems: list[str] = []

    def wrong(self, problem: str) -> None:
        """Note a problem."""
        self.problems.append(problem)

    def integer(self, name: str, value: Any, minimum: int, maximum: int = 2**53) -> int:
        """Return the value as an int; on a problem note it and return the minimum."""
        try:
            if isinstance(value, bool):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            self.wrong(f"{name}={brief(value)}: expected a whole number of at least {minimum}.")
            return minimum
        if not minimum <= number <= maximum:
            bound = f"at least {minimum}" if number < minimum else f"at most {maximum}"
            self.wrong(f"{name}={brief(value)}: expected {bound}.")
            return minimum
        return number

    def real(self, name: str, value: Any, accept: Callable[[float], bool], expected: str) -> float:
        """Return the value as a float; a number that is not finite, or not accepted, is a problem."""
        try:
            number = math.nan if isinstance(value, (bool, str)) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or not accept(number):
            self.wrong(f"{name}={brief(value)}: expected {expected}.")
            return 1.0
        return number

    def choice(self, name: str, value: Any, valid: Sequence[str]) -> None:
        """Note a problem unless the value is one of those that are valid; a near miss is named."""
        if value not in valid:
            meant = nearest(value, valid)
            hint = "" if meant is None else f" Did you mean {meant}?"
            self.wrong(f"{name}={brief(value)}: expected one of {', '.join(valid)}.{hint}")

    def integer_or_auto(self, name: str, value: Any, maximum: int) -> int | Literal["auto"]:
        """Return `auto` or the value as an int of at least 1; on a problem note it."""
        if isinstance(value, str):
            if value != "auto":
                self.wrong(f"{name}={brief(value)}: expected auto or a whole number of at least 1.")
            return "auto"
        return self.integer(name, value, 1, maximum)

    def threads(self, value: Any) -> int | Literal["auto"]:
        """Return `auto` or the CPU threads of a process; on a problem note it."""
        return self.integer_or_auto("threads", value, MOST_THREADS)

    def seed(self, value: Any, *, following: int = 0) -> int:
        """Return a seed, after which so many others are to follow; on a problem note it."""
        return self.integer("seed", value, 0, MOST_SEED - following)

    def place(self, *, device: Any, study: Any, storage: Any) -> None:
        """Note a problem with where something runs, and where it is kept."""
        self.text("device", device)
        self.study(study)
        self.text("storage", storage)

    def size(self, name: str, value: str | int | None) -> int | None:
        """Return a size in bytes; on a problem note it and return None."""
        try:
            return None if value is None else parse_size(value)
        except ArgumentError as error:
            self.wrong(f"{name}: {error}")
            return None

    def budget(self, value: Any) -> tuple[float, float | None]:
        """Return a budget as reference runs, and as seconds where it is a duration; on a problem note it."""
        if not isinstance(value, str):
            expected = "reference runs, more than 0 and at most 1e9, or a duration such as 20min"
            return self.real("budget", value, lambda x: 0 < x <= 1e9, expected), None
        try:
            return Plan.budget, parse_duration(value)
        except ArgumentError as error:
            self.wrong(f"budget: {error} A plain number counts reference runs.")
            return Plan.budget, None

    def text(self, name: str, value: Any) -> None:
        """Note a problem unless the value is a text, or None."""
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.wrong(f"{name}={brief(value)}: expected a text that is not empty.")
        elif value is not None and any(category(character) in ("Cc", "Cs") for character in value):
            self.wrong(f"{name}={brief(value)}: expected a text without control characters.")

    def study(self, value: Any) -> None:
        """Note a problem unless the value can be the name of a study, or is None."""
        if value is not None and not (
            isinstance(value, str) and value.strip() and value.isprintable() and len(value) <= MOST_NAME
        ):
            self.wrong(
                f"study={brief(value)}: expected a name of at most {MOST_NAME} characters that can be printed on one "
                "line."
            )

    def done(self) -> None:
        """Raise an ArgumentError with all that is wrong, if anything is."""
        if len(self.problems) == 1:
            raise ArgumentError(self.problems[0])
        if self.problems:
            raise ArgumentError(
                "\n".join(
                    [f"{len(self.problems)} arguments are wrong:", *(f"  {problem}" for problem in self.problems)]
                )
            )
