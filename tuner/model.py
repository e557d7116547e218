"""The surrogate fitted to the books of a search: which settings may be best, and what would be worth knowing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .ledger import Key, Ledger, Run
from .pruner import Rungs
from .space import Point, Space
from .surrogate import Observations, Surrogate, compress, expected_improvement

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_TARGETS = 80
"""Settings among which the best is looked for when a run is weighed."""


@dataclass(frozen=True)
class Context:
    """What the sampler, the model and the recommendation need to know besides the ledger."""

    space: Space
    rungs: Rungs
    seed: int
    can_continue: bool
    planned: bool
    """Shorter runs are planned as such, because the schedule is scaled to their end."""
    banned: frozenset[Key] = frozenset()
    banned_batches: frozenset[int] = frozenset()

    def allowed(self, key: Key, batch: int) -> bool:
        """Return whether nothing is known that forbids a setting."""
        return batch not in self.banned_batches and key not in self.banned


@dataclass(frozen=True)
class Option:
    """An observation that could be made: a setting up to a rung."""

    point: Point
    rung: int
    """Samples."""
    cost: float
    """Full runs."""
    before: Run | None = None
    """The run that it would go on from."""


class Model:
    """The surrogate fitted to a ledger, with what is needed to read it."""

    def __init__(self, context: Context, runs: list[Run], points: list[Point], surrogate: Surrogate, order: dict[int, int]) -> None:
        """Keep the parts; use `Model.of`."""
        self._context = context
        self._surrogate = surrogate
        self._order = order
        self.points = points
        """Of the runs, in their order."""
        self.deepest: dict[Key, Run] = {}
        for run in runs:
            if run.seed == context.seed and (run.key not in self.deepest or run.samples > self.deepest[run.key].samples):
                self.deepest[run.key] = run
        mean, _ = self.final(points)
        ranked = np.argsort(np.where([run.finite for run in runs], mean, np.inf), kind="stable")
        self.leaders = [runs[i] for i in ranked if runs[i].finite]
        """The runs, best setting first by the expected end of a full run."""

    @classmethod
    def of(cls, context: Context, ledger: Ledger) -> Model | None:
        """Fit to all runs with values; None while nothing finite is known at any rung. Fitted once for each state of the ledger."""
        if ledger.fitted is None or ledger.fitted[0] != ledger.version:
            ledger.fitted = (ledger.version, cls._fit(context, ledger))
        model = ledger.fitted[1]
        assert model is None or isinstance(model, Model)
        return model

    @classmethod
    def _fit(cls, context: Context, ledger: Ledger) -> Model | None:
        rungs = context.rungs
        runs = [run for seed in sorted({run.seed for run in ledger}) for run in ledger.curves(seed)]
        rows = [
            (run, math.log2(min(rung / rungs.full_samples, 1.0)), value)
            for run in runs
            for rung in rungs.samples
            if (value := _value_at(run, rung, rungs, context.planned)) is not None
        ]
        if not any(math.isfinite(value) for _, _, value in rows):
            return None
        numbers = {run.number for run, _, _ in rows}
        runs = [run for run in runs if run.number in numbers]
        points = {run.number: context.space.point(run.setting) for run in runs}
        order = {run.number: i for i, run in enumerate(runs)}
        seen = Observations(
            x=np.array([points[run.number].coordinates for run, _, _ in rows]),
            octaves=np.array([octaves for _, octaves, _ in rows]),
            cell=np.array([points[run.number].number for run, _, _ in rows]),
            run=np.array([float(order[run.number]) for run, _, _ in rows]),
            y=compress(np.array([value for _, _, value in rows])),
        )
        space = context.space
        return cls(context, runs, list(points.values()), Surrogate(seen, space.slope, space.slope_sd), order)

    def final(self, points: Sequence[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and sd of the compressed gap at the end of a full run, the sd against the setting of lowest mean."""
        return self._surrogate.predict(*_arrays(points))

    def closed(self, key: Key) -> bool:
        """Return whether there is nothing more to learn of a setting on the seed of the search."""
        done = self.deepest.get(key)
        if done is None:
            return False
        return done.diverged or (done.complete and done.end_samples > self._context.rungs.full_samples / 2)

    def most_promising(self, points: Sequence[Point], n: int) -> list[Point]:
        """Return the points that may be the best, most likely first."""
        if not points:
            return []
        mean, sd = self.final([*points, *self.points])
        gain = expected_improvement(mean[: len(points)], sd[: len(points)], float(mean.min()))
        return [points[i] for i in np.argsort(-gain, kind="stable")[:n]]

    def gains(self, options: Sequence[Option]) -> NDArray[np.float64]:
        """Return by how much the best full run is expected to improve by knowing each option."""
        pool = {point.key: point for point in (*(option.point for option in options), *self.points)}
        targets = self.most_promising(list(pool.values()), MOST_TARGETS)
        x, cell = _arrays([option.point for option in options])
        actions = Observations(
            x=x,
            octaves=np.array([math.log2(min(option.rung / self._context.rungs.full_samples, 1.0)) for option in options]),
            cell=cell,
            run=np.array([-2.0 if option.before is None else float(self._order.get(option.before.number, -2)) for option in options]),
            y=np.zeros(len(options)),
        )
        return self._surrogate.knowledge_gain(_arrays(targets), actions)


def _arrays(points: Sequence[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([point.coordinates for point in points]), np.array([point.number for point in points])


def _value_at(run: Run, rung: int, rungs: Rungs, planned: bool) -> float | None:
    """Return what a run says at a rung: under a schedule that is scaled to the planned end, only its end counts."""
    batch = run.setting.global_batch_size
    ends_here = rungs.reach(rung, batch, run.end_samples) == run.end_samples and rung - run.end_samples < max(batch, rung * 0.5)
    if run.diverged:
        reached = min(samples for samples, value in run.values.items() if not math.isfinite(value))
        return math.nan if rung >= reached else (None if planned else run.at(rung))
    if ends_here:
        return run.at(run.end_samples)
    return None if planned or rung > run.end_samples else run.at(rung)
