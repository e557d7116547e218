"""Step time as a line in the micro-batch size, t(n) = a + c * n, and the sizes at which to measure it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from ..core.probe_results import Loader, StepTimeLine, ThroughputRow

MAX_SIZES = 6
REACH = 8
"""Times the largest size that was timed: no further does the next one lie."""
CLOSE = 1.5
"""Sizes within this factor of each other say the same."""
LINE_KNOWN = 0.1
"""A line that is nowhere off by more than this is good enough."""
KNEE_SHARE = 0.95
"""Of the best throughput."""
LOADER_WAIT, LOADER_RATE = 0.1, 0.9
"""The loader holds training back when steps wait for more than this share and reach less than that of their rate."""
PLATEAU_GAIN = 1.05
"""Throughput rises no longer when a larger size brings less than this factor."""


def next_size_to_time(
    rows: Sequence[ThroughputRow], largest: int, *, smallest: int, multiple_of: int = 1
) -> int | None:
    """Return the next size to time, or None where the line is known from `smallest` to the plateau.

    A middle size and the smallest come first. They give a line, which says where throughput stops rising: larger sizes
    are timed up to there and no further, and others between them only where the line is off by more than a tenth.

    Args:
        rows: What was timed so far, in any order.
        largest: The largest size that may be timed.
        smallest: The smallest that is of interest.
        multiple_of: Sizes are multiples of this.

    Example:
        >>> next_size_to_time([], 1024, smallest=4)
        32
        >>> timed = [ThroughputRow(n, n / (0.01 + 0.001 * n), 0.01 + 0.001 * n, 0) for n in (4, 32)]
        >>> next_size_to_time(timed, 1024, smallest=4)
        95
        >>> timed += [ThroughputRow(95, 95 / 0.105, 0.105, 0)]
        >>> next_size_to_time(timed, 1024, smallest=4) is None
        True
    """

    def grid(size: float) -> int:
        return min(largest // multiple_of, max(1, round(size / multiple_of))) * multiple_of

    timed = sorted({row.batch_size for row in rows})
    first = grid(smallest)
    if not timed:
        return grid(REACH * smallest)
    if timed[0] > first:
        return first
    line = fit_step_time(rows)
    top = grid(min(plateau(line), REACH * timed[-1]) if line is not None else REACH * timed[-1])
    if top > CLOSE * timed[-1] or (line is None and top > timed[-1]):
        return top
    if line is None or len(timed) >= MAX_SIZES or (len(timed) > 2 and worst_error(line, rows) <= LINE_KNOWN):
        return None
    low, high = max(itertools.pairwise(timed), key=lambda pair: pair[1] / pair[0])
    between = grid(math.sqrt(low * high))
    return between if high > CLOSE**2 * low and low < between < high else None


def plateau(line: StepTimeLine) -> float:
    """Return the size beyond which twice as large a one brings next to no throughput; infinite where all bring some.

    Example:
        >>> plateau(StepTimeLine(0.01, 0.001, 10.0))
        95.0
    """
    if line.c_s_per_sample <= 0:
        return math.inf
    # The rate of 2 n over that of n is 2 (a + c n) / (a + 2 c n).
    return round(line.a_s / line.c_s_per_sample * (2 - PLATEAU_GAIN) / (2 * (PLATEAU_GAIN - 1)), 6)


def worst_error(line: StepTimeLine, rows: Sequence[ThroughputRow]) -> float:
    """Return the largest relative error of a line on the step times that were measured."""
    return max(abs(line.step_s(row.batch_size) / row.s_per_step - 1) for row in rows)


def throughput_row(batch_size: int, step_s: Sequence[float]) -> ThroughputRow:
    """Return the row of one size from the seconds of its timed steps."""
    middle = statistics.median(step_s)
    low, _, high = statistics.quantiles(step_s, n=4) if len(step_s) >= 2 else (middle, middle, middle)
    return ThroughputRow(batch_size, batch_size / middle, middle, (high - low) / middle)


def knee(rows: Sequence[ThroughputRow]) -> int | None:
    """Return the smallest size with nearly the best throughput, or None without rows.

    Example:
        >>> knee([ThroughputRow(n, rate, n / rate, 0) for n, rate in ((4, 100.0), (32, 960.0), (256, 1000.0))])
        32
    """
    best = max((row.samples_per_s for row in rows), default=0.0)
    return min((row.batch_size for row in rows if row.samples_per_s >= KNEE_SHARE * best), default=None)


def loader_of(
    batch_size: int, step_s: Sequence[float], wait_s: float | None, cached_step_s: Sequence[float]
) -> Loader | None:
    """Return what the loader costs, from timed steps, their waiting in all, and steps without a loader.

    Example:
        >>> loader_of(8, [0.02, 0.02], 0.02, [0.01]).bound
        True
    """
    if wait_s is None or not step_s or not cached_step_s:
        return None
    share, without = min(1.0, wait_s / sum(step_s)), batch_size / statistics.median(cached_step_s)
    bound = share > LOADER_WAIT and batch_size / statistics.median(step_s) < LOADER_RATE * without
    return Loader(share, without, bound)


def fit_step_time(rows: Sequence[ThroughputRow]) -> StepTimeLine | None:
    """Fit t(n) = a + c * n by least squares of the relative error, with neither part negative.

    Returns:
        The line, or None with fewer than two sizes. `saturation_batch` is None where the slope cannot be told from
        zero.

    Example:
        >>> fit_step_time([ThroughputRow(n, 0, 0.01 + 0.001 * n, 0) for n in (1, 10, 100)]).saturation_batch
        10.0
    """
    if len({row.batch_size for row in rows}) < 2:
        return None
    fixed, slope = relative_line([(row.batch_size, row.s_per_step) for row in rows])
    return StepTimeLine(fixed, slope, round(fixed / slope, 6) if slope > 0 else None)


def relative_line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (fixed, slope) of y = fixed + slope * x by least squares of the relative error, neither part negative.

    Args:
        points: (x, y) at two or more values of x, all y above zero.

    Example:
        >>> relative_line([(1, 4.0), (2, 3.0)])  # A line that falls becomes flat.
        (3.36, 0.0)
    """
    # With weights 1/y**2 the normal equations have these sums; a size that is ten times slower weighs no more.
    terms = [(y**-2, x, y) for x, y in points]
    w, wx, wy = sum(k for k, _, _ in terms), sum(k * x for k, x, _ in terms), sum(k * y for k, _, y in terms)
    wxx, wxy = sum(k * x * x for k, x, _ in terms), sum(k * x * y for k, x, y in terms)
    width = w * wxx - wx * wx
    if not width > 0:  # One point is so slow that it weighs nothing beside the other.
        return wy / w, 0.0
    slope = (w * wxy - wx * wy) / width
    fixed = (wy - slope * wx) / w
    if slope < 0:
        return wy / w, 0.0
    return (0.0, wxy / wxx) if fixed < 0 else (fixed, slope)
