"""What to try next: a race along the learning rate first, then the run with the most expected gain for its seconds.

A sampler sees the ledger and answers two questions: which run to start, and whether a running one passes a rung.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .evidence import Evidence
from .gain import gains
from .ledger import STEP_OCTAVES, Ledger, Run
from .posterior import Model
from .race import Action, Race
from .space import Point

LOOKED_AT = 3
"""So many batch sizes within `STEP_OCTAVES` of the best are looked at, before anything else is run deeper."""
COOLING = 0.8
"""The next run has the most gain for price ** COOLING (arXiv:2003.10870): plain gain per price favours cheap runs."""
LEAST_GAIN = 0.002
"""In ln T for each reference run: the search ends when no run brings as much; training is then the better use of it."""
BESIDE_OCTAVES = 1.0
"""Before a search ends, the rates so far on either side of the best are run to the rung before the last.

Short runs favour large rates on some tasks, and the surrogate may be surer than it should be.
"""
MOST_WEIGHED = 70
"""Settings that are weighed at a time: those that may be best."""


@dataclass(frozen=True)
class _Option:
    """A run that could be next."""

    point: Point
    rung: int
    """In samples."""
    price: float
    continues: int | None


class GainSampler:
    """The sampler of bstune: a race along the learning rate at the reference batch, then most gain for its price."""

    def __init__(self, evidence: Evidence, left: float = math.inf) -> None:
        """Keep what is known now, and how many reference runs are left to the search."""
        self._evidence = evidence
        self._context = evidence.context
        self._worth = evidence.worth
        self._clock = evidence.clock
        self._left = left
        self._race = Race(evidence.context, evidence.clock.reference_batch)

    def next(self, ledger: Ledger) -> Action | None:
        """Return the next run to start, or None when nothing is left to learn that is worth its price."""
        action = self._race.next(ledger)
        if action is not None:
            return action
        model = Model.of(self._context, ledger)
        if model is None:
            return self._race.untried(ledger)
        points = self._points(ledger, model)
        options = self._affordable(ledger, model, points)
        best = (
            self._neighbour(ledger, model, points, options)
            or self._most_gain(model, points, options)
            or self._unproven(ledger, model)
        )
        return None if best is None else Action(best.point.setting, best.rung, best.continues)

    def goes_on(self, ledger: Ledger, run: Run, point: int) -> bool:
        """Return whether a running trial passes the rung at `point`: nothing else brings more for its price."""
        rungs, batch = self._context.rungs, run.setting.global_batch_size
        following = rungs.after(point, batch)
        if following is None:
            return True
        if self._race.next(ledger) is not None:
            return False
        model = Model.of(self._context, ledger)
        if model is None:
            return True
        if run.number in model.lost or not self._evidence.affordable(batch):
            return False
        points = self._points(ledger, model)
        own = self._context.space.point(run.setting)
        if own.key not in {each.key for each in points}:
            points.append(own)
        price = self._clock.price_to(batch, run.samples, rungs.reach(following, batch, run.end_samples), begins=False)
        others = self._affordable(ledger, model, points)
        best = self._most_gain(model, points, [_Option(own, following, price, None), *others])
        if best is None:
            return run.key in {point.key for point in self._beside(model)}
        return best.point.key == run.key

    # --- what could be run ---

    def _points(self, ledger: Ledger, model: Model) -> list[Point]:
        """Return the settings that are compared: allowed, near batch sizes that were tried, or possibly the best."""
        points = model.weighed(ledger, ledger.near_tried())
        if len(points) <= MOST_WEIGHED:
            return points
        _, sd = model.final(points)
        ln_full = self._worth.ln_full([point.batch for point in points])
        optimistic = model.curves(points) - sd[:, None]
        hopeful = np.argsort(self._worth.ln_time(ln_full, optimistic, self._evidence.target_gap), kind="stable")[
            :MOST_WEIGHED
        ]
        return [points[i] for i in sorted(hopeful)]

    def _affordable(self, ledger: Ledger, model: Model, points: Sequence[Point]) -> list[_Option]:
        """Return what could be run next of those points that are not running, for what is left."""
        busy = {run.key for run in ledger.running}
        options = [option for point in points if point.key not in busy for option in self._options(model, point)]
        return [option for option in options if option.price <= self._left]

    def _options(self, model: Model, point: Point) -> list[_Option]:
        """Return how far a setting could be run next."""
        context, rungs, batch = self._context, self._context.rungs, point.setting.global_batch_size
        if not context.allowed(point.key, batch) or model.closed(point.key):
            return []
        counted = rungs.counted(batch)
        if not self._evidence.affordable(batch):
            counted = counted[:1]
        done = model.deepest.get(point.key)
        if context.planned:  # A run that is planned short cannot be sent on.
            depth = 0 if done is None else done.samples + batch
            ends = [(rung, rungs.end_of(batch, min(1.0, rung / rungs.full_samples))) for rung in counted]
            return [
                _Option(point, rung, self._clock.price_to(batch, 0, end), None) for rung, end in ends if end >= depth
            ]
        depth = 0 if done is None else done.samples
        whole = rungs.end_of(batch)
        rung = next((rung for rung in counted if rungs.reach(rung, batch, whole) > depth), None)
        if rung is None:
            return []
        resumable = (
            context.can_continue
            and done is not None
            and done.checkpoint is not None
            and done.state in ("pruned", "complete")
        )
        start = depth if resumable else 0
        price = self._clock.price_to(batch, start, rungs.reach(rung, batch, whole))
        return [_Option(point, rung, price, done.number if done is not None and resumable else None)]

    def _most_gain(self, model: Model, points: Sequence[Point], options: Sequence[_Option]) -> _Option | None:
        """Return the option with the most expected gain for its price; None where none is worth it."""
        choices = [point for point in points if self._evidence.affordable(point.setting.global_batch_size)]
        if not options or not choices:
            return None
        shifts = model.shifts([o.point for o in options], [o.rung for o in options], choices)
        ln_full = self._worth.ln_full([point.setting.global_batch_size for point in choices])
        gain = gains(self._worth, ln_full, model.curves(choices), shifts, self._evidence.target_gap)
        price = np.array([option.price for option in options])
        worthwhile = gain >= LEAST_GAIN * price
        if not worthwhile.any():
            return None
        return options[int(np.argmax(np.where(worthwhile, gain / price**COOLING, -np.inf)))]

    def _unproven(self, ledger: Ledger, model: Model) -> _Option | None:
        """Return a run at a rate beside the best that was not run deep enough to tell; None where there is none."""
        options = self._affordable(ledger, model, self._beside(model))
        return min(options, key=lambda option: (option.price, option.point.setting.learning_rate), default=None)

    def _beside(self, model: Model) -> list[Point]:
        """Return the settings at the rates beside the best that were not run to the rung before the last."""
        best, space, rungs = self._evidence.best_run, self._context.space, self._context.rungs
        if best is None or self._worth.goal != "time":  # Measured for this goal only.
            return []
        setting = best.setting
        batch = setting.global_batch_size
        enough = rungs.samples[-2] - batch
        rates = {
            space.nearest_learning_rate(setting.learning_rate * 2.0**octaves)
            for octaves in (-BESIDE_OCTAVES, BESIDE_OCTAVES)
        } - {setting.learning_rate}
        points = [space.point(space.setting(batch, rate, setting.params)) for rate in sorted(rates)]
        deepest = model.deepest
        return [
            point
            for point in points
            if self._context.allowed(point.key, batch)
            and not model.closed(point.key)
            and (point.key not in deepest or deepest[point.key].samples < enough)
        ]

    def _neighbour(
        self, ledger: Ledger, model: Model, points: Sequence[Point], options: Sequence[_Option]
    ) -> _Option | None:
        """Return a run at a batch size beside the best, while too few were run there: the nearest that looks best."""
        if not points:
            return None
        ln_full = self._worth.ln_full([point.setting.global_batch_size for point in points])
        times = self._worth.ln_time(ln_full, model.curves(points), self._evidence.target_gap)
        best = points[int(np.argmin(times))].setting.global_batch_size
        tried = {run.setting.global_batch_size for run in ledger if run.values or run.state == "running"}
        around = {
            batch: abs(math.log2(batch / best))
            for batch in self._context.space.batches
            if abs(math.log2(batch / best)) <= STEP_OCTAVES
        }
        if len(tried & set(around)) >= min(LOOKED_AT, len(around)):
            return None
        ranked = {point.key: time for point, time in zip(points, times, strict=True)}
        fresh = [o for o in options if o.point.setting.global_batch_size in around and o.price <= 1.0]
        fresh = [o for o in fresh if o.point.setting.global_batch_size not in tried]
        return min(
            fresh,
            key=lambda o: (around[o.point.setting.global_batch_size], ranked[o.point.key], o.price),
            default=None,
        )
