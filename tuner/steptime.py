"""Step time as a line in the micro-batch size, t(n) = a + c * n, and the sizes at which to measure it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .results import StepTimeLine, ThroughputRow

MAX_SIZES = 6
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
