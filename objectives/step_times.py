"""Seconds of an optimizer step that an objective states itself, by global batch size."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from ..tuner.core.errors import ObjectiveError

StepTimes = Callable[[int], float] | Mapping[int, float]
"""`step_time_s` as the user gives it."""


def stated_step_times(
    given: StepTimes | None, full_run_samples: float, batch_sizes: Sequence[int] = ()
) -> tuple[tuple[int, float], ...]:
    """Return what is stated as rows (global batch size, seconds), ascending.

    A mapping is taken as it is. A function is asked for the powers of two up to a full run and for `batch_sizes`; those
    that it does not know, it may refuse with a LookupError or ValueError, or by returning None.

    Raises:
        ObjectiveError: A time is not a finite number above 0, or there is none at all.

    Example:
        >>> stated_step_times({8: 0.02, 64: 0.05}.get, 100)
        ((8, 0.02), (64, 0.05))
    """
    if given is None:
        return ()
    if isinstance(given, Mapping):
        rows = [(_size(size), seconds) for size, seconds in given.items()]
        asked = [size for size, _ in rows]
    else:
        powers = [2**k for k in range(int(full_run_samples).bit_length())]
        asked = sorted({*powers, *batch_sizes})
        rows = [(size, _ask(given, size)) for size in asked]
    times = tuple(sorted((size, _seconds(size, value)) for size, value in rows if value is not None))
    if not times:
        raise ObjectiveError(
            f"step_time_s knows no step time of the batch sizes {_listed(asked)}: expected the seconds of an optimizer "
            "step for at least one of them."
        )
    return times


def _ask(given: Callable[[int], float], size: int) -> Any:
    try:
        return given(size)
    except (LookupError, ValueError):
        return None
    except Exception as error:
        raise ObjectiveError(
            f"step_time_s({size}) raised {type(error).__name__}: {error}. Expected the seconds of an optimizer step at "
            "this global batch size, or a KeyError where it is not known."
        ) from error


def _size(size: Any) -> int:
    try:
        whole = 0 if isinstance(size, bool) else operator.index(size)
    except TypeError:
        whole = 0
    if whole < 1:
        raise ObjectiveError(f"step_time_s has a batch size {size!r}: expected a whole number of samples, 1 or more.")
    return whole


def _seconds(size: int, value: Any) -> float:
    plain = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    seconds = float(plain) if isinstance(plain, Real) and not isinstance(plain, bool) else math.nan
    if not 0 < seconds < math.inf:
        raise ObjectiveError(
            f"step_time_s gives {value!r} for batch size {size}: expected the seconds of an optimizer step, a finite "
            "number above 0."
        )
    return seconds


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes)) if len(sizes) <= 4 else f"{sizes[0]}, {sizes[1]}, ... {sizes[-1]}"
