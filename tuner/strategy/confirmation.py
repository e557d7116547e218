"""Which setting is worth a full run on a fresh seed next."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.results import Setting
from .evidence import Evidence
from .gain import gains_of_confirming
from .ledger import FAULTS, LOST, RETRIES, Key, Run
from .posterior import Model
from .space import Point

LEAST_GAIN = 0.001
"""In ln T for each reference run: another seed or finalist is run where it is expected to change the answer so much."""

NEAR = math.log(2)
"""In ln T, for the goal `time`: what is later than the answer by more is not run just to make a search longer."""
FAR = math.log(16)
"""In ln T: what is expected later than the best by more is not run in full where little is known of it."""


@dataclass(frozen=True)
class Confirmation:
    """A full run on a fresh seed."""

    setting: Setting
    fresh: int
    """Which of the fresh seeds, from 1."""
    first: bool
    """Nothing was confirmed before: this run verifies the answer."""


def unfit(runs: Sequence[Run]) -> set[Key]:
    """Return the settings that failed on a fresh seed through their own fault."""
    return {
        run.key
        for run in runs
        if run.stage == "confirm"
        and (run.diverged or (run.state == "failed" and (run.cause == "oom" or run.cause in FAULTS)))
    }


def next_confirmation(
    evidence: Evidence, left: float, slack: float, spare: float, *, fitted: bool = False, at_any_gain: bool = False
) -> Confirmation | None:
    """Return the full run on a fresh seed that is worth most, or None where none is worth its price.

    The first verifies the answer. After that a run must be expected to change the answer for the better by more than it
    costs.

    Args:
        evidence: All that is known.
        left: Reference runs that may still be spent.
        slack: By how much the first may pass that, because a loop of the user reports when it likes.
        spare: What the first may use beside where nothing can be confirmed without: it is not planned for.
        fitted: Prices are fitted to the trials: the first may cost a reference run, whatever is left by what they say
            now.
        at_any_gain: The search is not as long yet as was announced: the run that is worth most is made all the same,
            or where none is worth anything another one of what is about as good.
    """
    model = evidence.model
    if model is None or not model.leaders:
        return None
    runs = [run for run in evidence.ledger if run.stage == "confirm"]
    seeds = _seeds(evidence, runs)
    points = _finalists(evidence, model, unfit(runs))
    done = {run.key for run in runs if run.complete or run.state == "running"}
    first = not done
    price = np.array([evidence.clock.full_price(point.setting.global_batch_size) for point in points])
    fresh = [_next_seed(seeds[point.key], evidence.plan.confirm) for point in points]
    open_ = np.array([n is not None for n in fresh], dtype=bool)
    most = left + (slack if first else 0.0)
    if first and fitted and not any(run.charged for run in runs):
        most = max(most, _least_kept(evidence, [point for point, free in zip(points, open_, strict=True) if free]))
    can = open_ & (price <= most + 1e-9)
    if first and not can.any():
        can = open_ & (price <= most + spare + 1e-9)
    if not can.any():
        return None
    if first:
        each = np.flatnonzero(can)
        i = int(each[evidence.best_of([points[k].setting for k in each])])
    else:
        each = np.flatnonzero(can)
        confirmed = np.array([point.key in done for point in points])
        if not confirmed.any():
            return None
        rungs = [round(evidence.context.rungs.full_samples)] * len(each)
        on = [evidence.plan.seed + (fresh[k] or 0) for k in each]
        shifts = model.shifts([points[k] for k in each], rungs, points, on)
        ln_full = evidence.worth.ln_full([point.setting.global_batch_size for point in points])
        curves, target = model.curves(points), evidence.target_gap
        gain = gains_of_confirming(evidence.worth, ln_full, curves, shifts, target, confirmed, each)
        expected = evidence.worth.ln_time(ln_full, curves, target)
        deep = {run.key for run in runs} | {run.key for run in evidence.ledger if run.samples >= rungs[0] / 4}
        known = np.array([points[k].key in deep for k in each])
        gain[~known & (expected[each] > expected.min() + FAR)] = 0.0  # To be looked at by the search, not in full.
        ratio = gain / price[each]
        if ratio.max() < LEAST_GAIN and not at_any_gain:
            return None
        if ratio.max() <= 0:
            times = evidence.ln_times([point.setting for point in points])
            if evidence.plan.goal == "time" and times[each].min() > times[confirmed].min() + NEAR:
                return None
            ratio = -times[each]
        i = int(each[int(np.argmax(ratio))])
    number = fresh[i]
    assert number is not None
    return Confirmation(points[i].setting, number, first)


def _least_kept(evidence: Evidence, points: Sequence[Point]) -> float:
    """Return what was held back for the run that verifies, though runs have come to cost more since they were made."""
    batches = {point.setting.global_batch_size for point in points}
    return max(1.0, min((evidence.clock.full_price(n) for n in batches if evidence.affordable(n)), default=0.0))


def _finalists(evidence: Evidence, model: Model, out: set[Key]) -> list[Point]:
    """Return the settings that may be confirmed: those that were run, and those of the grid that may well be better."""
    runs = [run for run in model.leaders if run.number not in model.lost]
    space = evidence.context.space
    points = {run.key: space.point(run.setting) for run in runs}
    batches = {run.setting.global_batch_size for run in runs}
    for point in model.weighed(evidence.ledger):
        if point.setting.global_batch_size in batches:
            points.setdefault(point.key, point)
    found = [
        point
        for key, point in points.items()
        if key not in out and evidence.context.allowed(key, point.setting.global_batch_size)
    ]
    if not found:
        return []
    ln_full = evidence.worth.ln_full([point.setting.global_batch_size for point in found])
    times = evidence.worth.ln_time(ln_full, model.curves(found), evidence.target_gap)
    run = {run.key for run in runs}
    best = min((time for p, time in zip(found, times, strict=True) if p.key in run), default=math.inf)
    return [p for p, time in zip(found, times, strict=True) if p.key in run or time <= best]


def _seeds(evidence: Evidence, runs: Sequence[Run]) -> dict[Key, set[int]]:
    """Return by setting which of the fresh seeds are taken: run, running, or lost too often."""
    taken: dict[Key, set[int]] = defaultdict(set)
    for run in runs:
        same = [other for other in runs if other.key == run.key and other.seed == run.seed]
        if any(other.cause not in LOST for other in same) or len(same) > RETRIES:
            taken[run.key].add(run.seed - evidence.plan.seed)
    return taken


def _next_seed(taken: set[int], most: int) -> int | None:
    return next((n for n in range(1, most + 1) if n not in taken), None)
