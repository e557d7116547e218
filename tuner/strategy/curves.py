"""Learning curves of runs: smoothed, and where they reach a target."""

from __future__ import annotations

from statistics import median

from .ledger import Run


def smoothed(run: Run) -> list[tuple[int, float]]:
    """Return a learning curve by the median of three neighbours, so that one lucky evaluation reaches no target."""
    points = sorted(run.values.items())
    losses = [loss for _, loss in points]
    return [(samples, float(median(losses[max(0, i - 1) : i + 2]))) for i, (samples, _) in enumerate(points)]


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
