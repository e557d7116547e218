"""What a setting is worth: the seconds in which it would reach the best loss along its own curve (equal-loss seconds).

    ln T = ln T_full + ln(loss / best loss) / p

`T_full` are the seconds of a full run and `p` is the slope of -ln loss against ln samples near the end of good runs. So
a gap in loss becomes time by what this training shows. Where all batch sizes are equally fast, or no step time is
known, it is the order of the losses; where the loss no longer falls with training, `p` is small and the loss decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.results import Goal
from .cost import Clock
from .gaussian_process import expand
from .ledger import Ledger, Run
from .posterior import CURVE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

SLOPE_RANGE = (0.03, 1.5)
SLOPE_PRIOR = (0.2, 2.0)
"""The slope before any curve was seen, and how many curves that guess is worth."""
GOOD = 3
"""So many of the best curves are looked at, of those that went at least half as deep as the deepest."""
TAIL = 1 / 3
"""The slope is that of what comes after this share of a curve: of its last two thirds."""
FIRST = 100.0
"""Weight of a loss beyond tolerance, in ln T, for the goals that put the loss first."""
UNMEASURED = 0.05
"""A loss that is higher by this share is not measurably higher: seeds differ as much (`candidates.NOISE_PRIOR`)."""
RELAPSE = 0.05
"""What passes the target and ends above it again by more than this (in ln loss) has not reached it for good."""
NOT_REACHED = 2.0
"""Full runs beyond which a loss counts as not reached: no curve was seen so far out."""


@dataclass(frozen=True)
class Worth:
    """Turns losses into seconds, or into what else the goal counts; lower is better."""

    clock: Clock
    goal: Goal
    slope: float

    def ln_full(self, batches: Sequence[int]) -> Array:
        """Return what the goal counts of each batch size beside the loss: ln of a full run's price, or the size."""
        if self.goal == "largest":
            return -np.log(np.array(batches, dtype=np.float64))
        if not self.clock.known:
            return np.zeros(len(batches))
        known = {batch: math.log(self.clock.full_price(batch, starts=False)) for batch in set(batches)}
        return np.array([known[batch] for batch in batches])

    def ln_time(self, ln_full: Array, curves: Array, target: float) -> Array:
        """Return ln T: when a curve reaches the target, beyond its end along its slope; lower is better.

        For the other goals, what ends within tolerance of the lowest comes before all else, however soon that is there.

        Args:
            ln_full: What `ln_full` returned, (...).
            curves: Expected compressed gaps along a full run, (..., `CURVE`).
            target: The gap of the target, relative like those of `gaussian_process.expand`.
        """
        gaps = np.log1p(np.maximum(expand(curves), -0.5))
        wanted = math.log1p(max(target, -0.5))
        if self.goal == "largest":
            return np.asarray(ln_full + FIRST * np.maximum(gaps[..., -1] - wanted - UNMEASURED, 0.0) / self.slope)
        if not self.clock.known:
            return np.asarray(gaps[..., -1] / self.slope)
        if self.goal == "loss":
            return np.asarray(ln_full + FIRST * np.maximum(gaps[..., -1] - wanted, 0.0) / self.slope)
        ends = gaps[..., -1] - wanted
        gaps = np.minimum.accumulate(gaps, axis=-1)
        ends = np.where(ends > RELAPSE, ends, gaps[..., -1] - wanted)
        beyond = np.maximum(ends, 0.0) / self.slope
        before, after = gaps[..., :-1], gaps[..., 1:]
        share = np.clip((before - wanted) / np.maximum(before - after, 1e-12), 0.0, 1.0)
        octaves = np.array(CURVE)
        ln_share = math.log(2) * (octaves[0] + share @ np.diff(octaves))
        sooner = np.minimum(gaps[..., 0] - wanted, 0.0) / self.slope
        return np.asarray(ln_full + np.where(beyond > 0, beyond, ln_share + sooner))

    def full_runs_to(self, loss: float, target: float) -> float:
        """Return how many full runs a setting needs from a loss at the end of one to a target, along its curve."""
        if loss <= 0 or target <= 0:
            return 1.0 if loss <= target else math.inf
        return math.exp(min(math.log(loss / target) / self.slope, 50.0))


def curve_slope(ledger: Ledger, *, planned: bool) -> float:
    """Return the slope of -ln loss against ln samples over the last two thirds of the good curves, clipped.

    Under a decaying schedule a curve is made of runs of one setting that were planned to end at different points.
    """
    curves = _planned_curves(ledger) if planned else [sorted(run.values.items()) for run in ledger if run.finite]
    curves = [curve for curve in curves if len(curve) > 1 and curve[-1][1] > 0]
    if not curves:
        return SLOPE_PRIOR[0]
    deepest = max(curve[-1][0] for curve in curves)
    good = sorted((c for c in curves if c[-1][0] >= deepest / 2), key=lambda c: c[-1][1])[:GOOD]
    slopes = [slope for curve in good if (slope := _slope(curve)) is not None]
    low, high = SLOPE_RANGE
    weight = SLOPE_PRIOR[1]
    found = sum(math.log(min(max(slope, low), high)) for slope in slopes) + weight * math.log(SLOPE_PRIOR[0])
    return math.exp(found / (len(slopes) + weight))


def _slope(curve: Sequence[tuple[int, float]]) -> float | None:
    """Return the slope of one curve by least squares; None where it has no two points that can be used."""
    from_samples = TAIL * curve[-1][0]
    tail = [(math.log(s), -math.log(loss)) for s, loss in curve if s >= from_samples and loss > 0]
    if len(tail) < 2:
        tail = [(math.log(s), -math.log(loss)) for s, loss in curve[-2:] if loss > 0]
    if len(tail) < 2:
        return None
    x, y = np.array(tail).T
    return float(np.polyfit(x, y, 1)[0])


def _planned_curves(ledger: Ledger) -> list[list[tuple[int, float]]]:
    """Return for each setting the losses at the ends of its runs."""
    ends: dict[object, dict[int, float]] = {}
    runs: list[Run] = [run for run in ledger if run.complete]
    for run in runs:
        value = run.at(run.end_samples)
        if value is not None:
            ends.setdefault((run.key, run.seed), {})[run.end_samples] = value
    return [sorted(found.items()) for found in ends.values()]
