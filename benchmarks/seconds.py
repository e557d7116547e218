"""The truth of a table in seconds: what a step takes, and when each cell reaches the target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from bstune.tuner.testing.tables import Cell, Table
from bstune.tuner.theory.step_time import relative_line

SLACK = 1.05
"""The target is the best mean final loss of the table, times this."""
BEYOND = 4.0
"""A cell that is not there after a full run goes on along its own slope, for at most so many full runs."""
NEVER_OCTAVES = 8.0
"""What a cell that never reaches the target, or no answer at all, counts behind the soonest."""
SLOWER = 4.0
"""A batch is slow if a sample takes more than this many times as long as at the quickest batch."""
GOOD = 1.1
"""Curves that end within this factor of the best say how the loss falls with training."""
LEAST_SLOPE, MOST_SLOPE = 0.03, 1.5

US_PER_SAMPLE = 10.0
"""c of the step-time lines that are assumed; their a is told by a / c."""


@dataclass(frozen=True)
class Clock:
    """Seconds of an optimizer step by batch size."""

    name: str
    step_s: Mapping[int, float]

    @classmethod
    def of_line(cls, saturation: float, batches: list[int]) -> Clock:
        """Return the clock of a line whose a / c is known."""
        return cls(f"a/c = {saturation:g}", {b: (saturation + b) * US_PER_SAMPLE * 1e-6 for b in batches})

    def seconds(self, batch: int, samples: float) -> float:
        """Return the seconds of so many samples."""
        return samples / batch * self.step_s[batch]

    def slowness(self, batch: int) -> float:
        """Return how many times as long as at the quickest batch a sample takes."""
        return self.seconds(batch, 1) / min(self.seconds(b, 1) for b in self.step_s)

    @cached_property
    def reference_batch(self) -> int:
        """The smallest batch that reaches half the peak throughput of the line; the largest where none does."""
        fixed, slope = relative_line(list(self.step_s.items()))
        large = [batch for batch in sorted(self.step_s) if batch * slope >= fixed * (1 - 1e-9)]
        return large[0] if large else max(self.step_s)


def _mean_curve(table: Table, cell: Cell) -> list[tuple[int, float]]:
    """Return the loss by samples in the mean over seeds, as long as all of them have one.

    Under a falling rate these are the ends of the planned runs: whoever wants to be done sooner plans a shorter run.
    """
    seeds = table.curves[cell]
    if table.short:
        seeds = [
            sorted(curve[-1] for curve in (whole, *short))
            for whole, short in zip(seeds, table.short[cell], strict=True)
        ]
    mean = [(rows[0][0], float(np.mean([loss for _, loss in rows]))) for rows in zip(*seeds, strict=False)]
    return mean if all(math.isfinite(loss) for _, loss in mean) else []


def _slope(curve: list[tuple[int, float]]) -> float:
    """Return the slope of -ln loss on ln samples over the last two thirds of a curve."""
    late = [(math.log(s), math.log(max(loss, 1e-12))) for s, loss in curve if s >= 0.99 * curve[-1][0] / 3]
    x, y = zip(*late, strict=True) if late else ((), ())
    return -float(np.polyfit(x, y, 1)[0]) if len(late) > 1 else 0.0


def _samples_to(curve: list[tuple[int, float]], target: float) -> float:
    """Return the samples at which a curve first reaches the target; infinite if that is never."""
    before: tuple[int, float] | None = None
    for samples, loss in curve:
        if loss <= target:
            if before is None:
                return samples
            share = (math.log(before[1]) - math.log(target)) / (math.log(before[1]) - math.log(loss))
            return float(before[0] * (samples / before[0]) ** share)
        before = (samples, loss)
    slope = _slope(curve) if curve else 0.0
    if slope <= 0:
        return math.inf
    longer = math.log(curve[-1][1] / target) / slope
    return curve[-1][0] * math.exp(longer) if longer <= math.log(BEYOND) else math.inf


class Truth:
    """What is true of a table, whatever a step takes.

    Attributes:
        final: Mean final loss of each cell, infinite where a seed diverged.
        samples: Samples to the target of each cell.
        slope: How the loss of good runs falls with training: -ln loss against ln samples.
    """

    def __init__(self, table: Table, slack: float = SLACK) -> None:
        """Work it out once."""
        self.full_samples = table.n_samples * table.epochs
        self.final = table.truth()
        self.best = min(self.final.values())
        curves = {cell: _mean_curve(table, cell) for cell in table.curves}
        self.samples = {cell: _samples_to(curve, slack * self.best) for cell, curve in curves.items()}
        good = [_slope(curves[cell]) for cell, loss in self.final.items() if loss <= GOOD * self.best]
        self.slope = float(np.clip(np.median(good), LEAST_SLOPE, MOST_SLOPE))

    def seconds(self, cell: Cell, clock: Clock) -> float:
        """Return the seconds to the target."""
        return clock.seconds(cell[0], self.samples[cell])

    def soonest(self, clock: Clock) -> Cell:
        """Return the cell that reaches the target first."""
        return min(self.samples, key=lambda cell: self.seconds(cell, clock))

    def octaves(self, cell: Cell | None, clock: Clock) -> float:
        """Return by how many octaves of time a cell is behind the soonest."""
        if cell is None:
            return NEVER_OCTAVES
        needed = self.seconds(cell, clock) / self.seconds(self.soonest(clock), clock)
        return min(math.log2(needed), NEVER_OCTAVES)

    def equal_loss(self, batch: int, loss: float, clock: Clock) -> float:
        """Return ln of the seconds to the best loss: those of a full run, and what the gap is worth along a curve."""
        return math.log(clock.seconds(batch, self.full_samples)) + math.log(max(loss, 1e-12) / self.best) / self.slope

    def by_rule(self, clock: Clock) -> Cell:
        """Return what equal-loss seconds would choose if every final loss were known."""
        known = {cell: loss for cell, loss in self.final.items() if math.isfinite(loss)}
        return min(known, key=lambda cell: self.equal_loss(cell[0], known[cell], clock))

    def regret(self, cell: Cell | None) -> float:
        """Return the relative excess of a cell's final loss over the best."""
        return math.inf if cell is None else self.final[cell] / self.best - 1
