"""Learning curves of runs: smoothed, and where they reach a target."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median, variance

from .ledger import Run

LAST = 1 / 3
"""The last part of a curve, of which `jumps` is."""
LEAST_STEPS = 3
"""Fewer than so many steps from one report to the next say nothing of how a loss jumps."""


def smoothed(run: Run) -> list[tuple[int, float]]:
    """Return a learning curve by the median of three neighbours, so that one lucky evaluation reaches no target."""
    points = sorted(run.values.items())
    losses = [loss for _, loss in points]
    return [(samples, float(median(losses[max(0, i - 1) : i + 2]))) for i, (samples, _) in enumerate(points)]


def jumps(run: Run) -> tuple[float, int]:
    """Return how the loss still jumps at the end: the variance of ln loss about a straight line, and its freedom.

    It is that of the steps from one report to the next in the last third, of which each has the luck of two. Of too few
    steps it is not known: (0, 0).
    """
    end = max(run.values, default=0)
    tail = [math.log(loss) for samples, loss in sorted(run.values.items()) if samples >= (1 - LAST) * end and loss > 0]
    steps = [after - before for before, after in pairwise(tail)]
    return (variance(steps) / 2, len(steps) - 1) if len(steps) >= LEAST_STEPS else (0.0, 0)


def samples_to(target: float, run: Run) -> float | None:
    """Return the samples at which the smoothed curve of a run first reaches a target, interpolated; None if never."""
    before: tuple[int, float] | None = None
    for samples, loss in smoothed(run):
        if loss <= target:
            if before is None or before[1] <= loss:
                return float(samples)
            return before[0] + (samples - before[0]) * (before[1] - target) / (before[1] - loss)
        before = (samples, loss)
    return None
