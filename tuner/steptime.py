"""Step time as a line in the micro-batch size, t(n) = a + c * n, and the sizes at which to measure it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .results import Loader, StepTimeLine, ThroughputRow

MAX_SIZES = 6
KNEE_SHARE = 0.95
"""Of the best throughput."""
LOADER_WAIT, LOADER_RATE = 0.1, 0.9
"""The loader holds training back when steps wait for more than this share, and reach less than that of the rate without it."""
PLATEAU_GAIN = 1.05
"""Throughput rises no longer when a larger size brings less than this factor."""


def sizes_to_time(largest: int, *, smallest: int, multiple_of: int = 1) -> list[int]:
    """Return at most six sizes from about `smallest` to `largest`, in equal ratios, ascending.

    Example:
        >>> sizes_to_time(1024, smallest=4)
        [4, 12, 37, 111, 338, 1024]
    """
    smallest = min(largest, max(multiple_of, smallest))
    ratio = (largest / smallest) ** (1 / (MAX_SIZES - 1))
    wanted = (smallest * ratio**power for power in range(MAX_SIZES))
    return sorted({min(largest, max(multiple_of, round(size / multiple_of) * multiple_of)) for size in wanted})


def throughput_row(batch_size: int, step_s: Sequence[float]) -> ThroughputRow:
    """Return the row of one size from the seconds of its timed steps."""
    middle = statistics.median(step_s)
    low, _, high = statistics.quantiles(step_s, n=4) if len(step_s) >= 2 else (middle, middle, middle)
    return ThroughputRow(batch_size, batch_size / middle, middle, (high - low) / middle)


def knee(rows: Sequence[ThroughputRow]) -> int | None:
    """Return the smallest size with nearly the best throughput, or None without rows.

    Example:
        >>> knee([ThroughputRow(4, 100.0, 0.04, 0), ThroughputRow(32, 960.0, 0.033, 0), ThroughputRow(256, 1000.0, 0.256, 0)])
        32
    """
    best = max((row.samples_per_s for row in rows), default=0.0)
    return min((row.batch_size for row in rows if row.samples_per_s >= KNEE_SHARE * best), default=None)


def loader_of(batch_size: int, step_s: Sequence[float], wait_s: float | None, cached_step_s: Sequence[float]) -> Loader | None:
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
        The line, or None with fewer than two sizes. `saturation_batch` is None where the slope cannot be told from zero.

    Example:
        >>> fit_step_time([ThroughputRow(n, 0, 0.01 + 0.001 * n, 0) for n in (1, 10, 100)]).saturation_batch
        10.0
    """
    if len({row.batch_size for row in rows}) < 2:
        return None
    # With weights 1/t**2 the normal equations have these sums; a size that is ten times slower weighs no more than another.
    terms = [(row.s_per_step**-2, row.batch_size, row.s_per_step) for row in rows]
    w, wn, wt = sum(k for k, _, _ in terms), sum(k * n for k, n, _ in terms), sum(k * t for k, _, t in terms)
    wnn, wnt = sum(k * n * n for k, n, _ in terms), sum(k * n * t for k, n, t in terms)
    slope = (w * wnt - wn * wt) / (w * wnn - wn * wn)
    fixed = (wt - slope * wn) / w
    if slope < 0:
        fixed, slope = wt / w, 0.0
    elif fixed < 0:
        fixed, slope = 0.0, wnt / wnn
    return StepTimeLine(fixed, slope, round(fixed / slope, 6) if slope > 0 else None)
