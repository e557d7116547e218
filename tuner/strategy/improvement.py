"""What to try next, and what to stop, where somebody else counts the trials: expected improvement of a whole run.

An Optuna study has no budget that bstune knows of, a stopped trial cannot go on, and only what ran to its end counts
as the best. So a trial is a setting that may beat the best one at the end of a full run, and goes on while it may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..core.results import Setting
from ..core.trials import TrialReport
from .cost import Clock
from .ledger import Key, Ledger, Run
from .posterior import Context, Model
from .race import RACE_MOST, Race
from .space import Point

COOLING = 0.8
"""The next setting has the most improvement for price ** COOLING, as in `gain_sampler`."""
OPTIMISM = 1.5
"""A trial goes on while its expected end less so many standard deviations is not above the best one."""


class ImprovementSampler:
    """A race along the learning rate first, then expected improvement for the price of a full run."""

    def __init__(self, context: Context, clock: Clock) -> None:
        """Keep what the study is about; all else is read off the ledger at each call."""
        self._context = context
        self._clock = clock
        self._race = Race(context, context.space.anchor_batch)

    def next(self, ledger: Ledger) -> Setting | None:
        """Return the setting of the next trial; None only where every one is forbidden."""
        # Trials that the user has added tell as much as a race does.
        known = sum(run.finite for run in ledger)
        action = self._race.next(ledger) if known < RACE_MOST else None
        if action is not None:
            return action.setting
        model = self._believed(ledger)
        if model is None:
            action = self._race.untried(ledger)
            return None if action is None else action.setting
        taken = {run.key for run in ledger}
        points = model.weighed(ledger, ledger.near_tried())
        fresh = [point for point in points if point.key not in taken]
        if not fresh:  # A small space, all of it tried: the best ones once more say how much of it is luck.
            return points[int(np.argmin(model.expected(points)))].setting if points else None
        improvement = self._improvement(model, fresh)
        price = np.array([self._price(point.setting.global_batch_size) for point in fresh])
        return fresh[int(np.argmax(improvement / price**COOLING))].setting

    def counted(self, run: Run) -> tuple[int, ...]:
        """Return the rungs at which a trial has made enough steps to be judged."""
        return self._context.rungs.counted(run.setting.global_batch_size)

    def goes_on(self, ledger: Ledger, run: Run, rung: int) -> bool:
        """Return whether a trial passes a rung: it is ahead there, or may still beat the best that has ended."""
        model = Model.of(self._context, ledger)
        if model is None:
            return True
        if run.number in model.lost:
            return False
        ended = self._ended(model)
        if not ended:
            return True
        best = ended[int(np.argmin(model.expected(ended)))]
        ahead = model.deepest[best.key].at(rung)
        if ahead is not None and run.values[rung] <= ahead:
            return True
        own = self._context.space.point(run.setting)
        mean, sd = model.final([*(point for point in ended if point.key != own.key), own])
        return bool(mean[-1] - OPTIMISM * sd[-1] <= mean.min() + 1e-9)

    def _believed(self, ledger: Ledger) -> Model | None:
        """Return the surrogate as if what runs had ended as expected, so that the next trial looks elsewhere."""
        model, full = Model.of(self._context, ledger), int(self._context.rungs.full_samples)
        if model is None or not ledger.running:
            return model
        for run, loss in zip(ledger.running, model.losses([run.setting for run in ledger.running]), strict=True):
            ledger.report(TrialReport(run.number, (full,), full, float(loss), {}, 0.0))
        return Model.of(self._context, ledger)

    def _ended(self, model: Model) -> list[Point]:
        """Return the settings of which a run came to its end."""
        found: dict[Key, Point] = {}
        for run in model.leaders:
            if run.complete and run.state != "running":
                found.setdefault(run.key, self._context.space.point(run.setting))
        return list(found.values())

    def _improvement(self, model: Model, points: Sequence[Point]) -> np.ndarray:
        """Return by how much each setting is expected to end below the best one, in compressed gaps."""
        ended = self._ended(model)
        mean, sd = model.final([*ended, *points])
        n = len(ended)
        best = mean[:n].min() if n else mean.min()
        z = (best - mean[n:]) / sd[n:]
        below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z])
        density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        return np.asarray(sd[n:] * (z * below + density))

    def _price(self, batch: int) -> float:
        return self._clock.full_price(batch) if self._clock.known else 1.0
