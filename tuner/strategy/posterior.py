"""The surrogate fitted to the books of a search: how each setting would end a full run, and how surely."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..core.results import Setting
from .gaussian_process import Ends, Hyper, Observations, Surrogate, best_and_scale, compress, expand
from .ledger import Key, Ledger, Run
from .rungs import Rungs
from .space import Point, Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

COLLAPSED = 0.5
"""A run that has lost more than this share of what it had gained counts as diverged, from its beginning."""
GAINED = 0.2
"""It must have gained this share of the loss that it began with: a little comes and goes."""


CURVE = tuple(math.log2(share) for share in (1 / 9, 1 / 3, 1 / 2, 0.7, 1.0))
"""Where expected curves are read off, in octaves of a full run: a target is mostly reached in its last part."""
MOST_ROWS = 200
"""Rows that the surrogate is fitted to at most, so that a choice takes no longer in a search of ten thousand trials."""


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
    fits: Fits = field(default_factory=lambda: Fits(), compare=False, repr=False)
    """What was computed already; it belongs to the strategy."""

    def allowed(self, key: Key, batch: int) -> bool:
        """Return whether nothing is known that forbids a setting."""
        return batch not in self.banned_batches and key not in self.banned


class Model:
    """The surrogate fitted to a ledger, with what is needed to read it."""

    def __init__(
        self,
        context: Context,
        runs: list[Run],
        points: list[Point],
        posterior: _Posterior,
        lost: frozenset[int],
        deepest: dict[Key, Run],
    ) -> None:
        """Keep the parts; use `Model.of`."""
        self._context = context
        self._posterior = posterior
        self.lost = lost
        """Numbers of the runs whose setting has diverged or collapsed on their seed."""
        self.points = points
        """Of the runs, in their order."""
        self.deepest = deepest
        """The run of each setting that went furthest on the seed of the search."""
        mean = self.expected(points)
        sound = np.where([run.finite and run.number not in lost for run in runs], mean, np.inf)
        ranked = np.argsort(sound, kind="stable")
        self._lowest = float(expand(np.array(sound.min() if np.isfinite(sound.min()) else mean.min())))
        """The relative gap that is expected of the best of the runs."""
        self.leaders = [runs[i] for i in ranked if runs[i].finite]
        """The runs, best setting first by the expected end of a full run."""

    @classmethod
    def of(cls, context: Context, ledger: Ledger) -> Model | None:
        """Fit to all runs with values, once for each state of the ledger; None while no rung has a finite value."""
        return context.fits.model(context, ledger)

    @classmethod
    def fit(cls, context: Context, ledger: Ledger, before: Model | None) -> Model | None:
        """Fit anew, beginning with what was found `before`; see `of`."""
        runs = [run for seed in sorted({run.seed for run in ledger}) for run in ledger.curves(seed)]
        said = {run.number: context.fits.said(run, context) for run in runs}
        deepest: dict[Key, Run] = {}
        for run in runs:
            if run.seed == context.seed and (run.key not in deepest or run.samples > deepest[run.key].samples):
                deepest[run.key] = run
        start = _start(runs)
        gone = {(run.key, run.seed) for run in runs if said[run.number].diverged}
        fallen = {
            (run.key, run.seed) for run in runs if collapsed(said[run.number].lowest, said[run.number].last, start)
        } - gone
        if all((run.key, run.seed) in gone | fallen for run in runs):
            fallen = set()
        # A run that is not continued begins again, so what one run of a setting came to is true of the shorter ones
        # before it.
        lost = frozenset(run.number for run in runs if (run.key, run.seed) in gone | fallen)
        rows = [
            (run, octaves, math.nan if (run.key, run.seed) in fallen else value)
            for run in _most_telling(runs, said)
            for octaves, value in said[run.number].rows
        ]
        # Where nothing finite is known at a fidelity, a diverged run would pass for what is usual there, and the valley
        # for elsewhere.
        known = {octaves for _, octaves, value in rows if math.isfinite(value)}
        rows = [row for row in rows if row[1] in known]
        if not rows:
            return None
        numbers = {run.number for run, _, _ in rows}
        runs = [run for run in runs if run.number in numbers]
        points = {run.number: context.space.point(run.setting) for run in runs}
        data = tuple((run.number, octaves, repr(value)) for run, octaves, value in rows)
        if before is not None and before._posterior.data == data:
            return cls(context, runs, list(points.values()), before._posterior, lost, deepest)
        order = {run.number: i for i, run in enumerate(runs)}
        values = np.array([value for _, _, value in rows])
        seen = Observations(
            x=np.array([points[run.number].coordinates for run, _, _ in rows]),
            octaves=np.array([octaves for _, octaves, _ in rows]),
            cell=np.array([points[run.number].number for run, _, _ in rows]),
            run=np.array([float(order[run.number]) for run, _, _ in rows]),
            seed=np.array([float(run.seed) for run, _, _ in rows]),
            y=compress(values),
            diverged=np.array([float(not math.isfinite(value)) for _, _, value in rows]),
        )
        surrogate = Surrogate(
            seen, context.space.slope, context.space.slope_sd, Hyper(valley_sd=context.space.centre_sd)
        )
        return cls(
            context,
            runs,
            list(points.values()),
            _Posterior(data, surrogate, order, *best_and_scale(values)),
            lost,
            deepest,
        )

    def final(self, points: Sequence[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and sd of the compressed gap at the end of a full run, sd against the setting of lowest mean."""
        ends = self._posterior.ends(points)
        return ends.mean, self._posterior.surrogate.deviation(ends)

    def expected(self, points: Sequence[Point]) -> NDArray[np.float64]:
        """Return the mean of the compressed gap at the end of a full run."""
        return self._posterior.ends(points).mean

    def surface(self, x: Array) -> Array:
        """Return the mean of the compressed gap at the end of a full run by coordinates, (settings, columns).

        The luck of cells that were run is left out.
        """
        return self._posterior.surrogate.ends(x, np.full(len(x), -1.0)).mean

    def losses(self, settings: Sequence[Setting]) -> Array:
        """Return the loss that is expected of each setting at the end of a full run."""
        mean = self.expected([self._context.space.point(setting) for setting in settings])
        return np.asarray(self._posterior.best + expand(mean) * self._posterior.scale, dtype=np.float64)

    def gap(self, loss: float) -> float:
        """Return the gap of a loss to the best that was seen, relative like those of `gaussian_process.expand`."""
        return (loss - self._posterior.best) / self._posterior.scale

    def curves(self, points: Sequence[Point]) -> Array:
        """Return the expected compressed gap of each setting along a full run, (settings, `CURVE`)."""
        return np.stack([self._posterior.ends(points, octaves).mean for octaves in CURVE], axis=1)

    def shifts(
        self,
        points: Sequence[Point],
        rungs: Sequence[int],
        curves: Sequence[Point],
        seeds: Sequence[int] | None = None,
    ) -> Array:
        """Return by how much each expected curve would move for a standard deviation of what a run would show.

        Args:
            points: The settings that would be run.
            rungs: In samples, how far each would be run.
            curves: The settings whose curves are asked for.
            seeds: That each would be run on; by default that of the search, where it shares the luck of the run that
                it goes on from.

        Returns:
            An array of (points, curves, `CURVE`).
        """
        posterior, full = self._posterior, self._context.rungs.full_samples
        known = {key: posterior.order.get(run.number) for key, run in self.deepest.items()} if seeds is None else {}
        numbers = [known.get(point.key) for point in points]
        x, cell = _arrays(points)
        rows = Observations(
            x=x,
            octaves=np.log2(np.minimum(np.array(rungs) / full, 1.0)),
            cell=cell,
            run=np.array([1e6 + i if number is None else float(number) for i, number in enumerate(numbers)]),
            seed=np.array([self._context.seed] * len(points) if seeds is None else seeds, dtype=np.float64),
            y=np.zeros(len(points)),
            diverged=np.zeros(len(points)),
        )
        ends = [posterior.ends(curves, octaves) for octaves in CURVE]
        return np.stack(posterior.surrogate.shifts(rows, ends), axis=2)

    def excess(self, settings: Sequence[Setting], optimism: float = 0.0) -> NDArray[np.float64]:
        """Return by what share each setting is expected to end above the best that was run.

        Args:
            settings: The settings.
            optimism: Standard deviations to take off, of the difference from the best of these settings.
        """
        if not settings:
            return np.zeros(0)
        mean, deviation = self.final([self._context.space.point(setting) for setting in settings])
        return np.asarray((1 + expand(mean - optimism * deviation)) / (1 + self._lowest) - 1)

    def weighed(self, ledger: Ledger, near: Callable[[int], bool] = lambda batch: True) -> list[Point]:
        """Return the settings that may be run next: not forbidden, and not diverged or collapsed on the search's seed.

        `near`: which batch sizes are wanted.
        Extra parameters are drawn anew for each state of the ledger, beside those of the best settings so far.
        """
        context = self._context
        known = [run.setting.params for run in self.leaders[:3]]
        points = context.space.points(np.random.default_rng([context.seed, len(ledger)]), known, near)
        return [
            point
            for point in points
            if context.allowed(point.key, point.batch)
            and not (point.key in self.deepest and self.deepest[point.key].number in self.lost)
        ]

    def closed(self, key: Key) -> bool:
        """Return whether there is nothing more to learn of a setting on the seed of the search."""
        done = self.deepest.get(key)
        if done is None:
            return False
        return done.number in self.lost or (done.complete and done.end_samples > self._context.rungs.full_samples / 2)


class _Posterior:
    """The surrogate conditioned on certain rows, and what it has said of settings so far."""

    def __init__(
        self,
        data: tuple[tuple[int, float, str], ...],
        surrogate: Surrogate,
        order: Mapping[int, int],
        best: float,
        scale: float,
    ) -> None:
        self.data = data
        self.surrogate = surrogate
        self.order = order
        """By number of a run, how the surrogate knows it."""
        self.best = best
        self.scale = scale
        self._ends: dict[float, tuple[Ends, dict[Key, int]]] = {}
        """By octaves of a full run."""

    def ends(self, points: Sequence[Point], octaves: float = 0.0) -> Ends:
        """Return what is expected of points at a fidelity; each is worked out once."""
        ends, rows = self._ends.get(octaves, (None, {}))
        new = {point.key: point for point in points if point.key not in rows}
        if new or ends is None:
            found = self.surrogate.ends(*_arrays(list(new.values())), octaves)
            ends = found if ends is None else ends.joined(found)
            rows.update({key: len(rows) + i for i, key in enumerate(new)})
            self._ends[octaves] = ends, rows
        return ends.take([rows[point.key] for point in points])


@dataclass(frozen=True)
class _RunSummary:
    """What a run says: its value at each rung, which is in octaves of a full run, and how it went."""

    rows: tuple[tuple[float, float], ...]
    diverged: bool
    lowest: float
    last: float


class Fits:
    """What was computed of a ledger, kept for as long as it is true. Each strategy has its own."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._model: Model | None = None
        self._fitted_to: tuple[Ledger, int] | None = None
        """The ledger, and its version."""
        self._said: dict[int, tuple[Run, int, _RunSummary]] = {}
        """By number: the run, how many values it had, and what it said."""

    def model(self, context: Context, ledger: Ledger) -> Model | None:
        """Return the surrogate of a ledger as it is now."""
        if self._fitted_to != (ledger, ledger.version):
            self._model = Model.fit(context, ledger, self._model)
            self._fitted_to = (ledger, ledger.version)
        return self._model

    def said(self, run: Run, context: Context) -> _RunSummary:
        """Return what a run says: a run that ends is another object, and one that goes on only gets more values."""
        known, n_values, said = self._said.get(run.number, (None, 0, None))
        if said is None or known is not run or n_values != len(run.values):
            rungs = context.rungs
            values = [(rung, _value_at(run, rung, rungs, context.planned)) for rung in rungs.samples]
            found = [(rung, value) for rung, value in values if value is not None]
            rows = tuple((math.log2(min(rung / rungs.full_samples, 1.0)), value) for rung, value in found)
            said = _RunSummary(rows, run.diverged, min(run.values.values()), run.values[max(run.values)])
            self._said[run.number] = (run, len(run.values), said)
        return said

    def forget_model(self) -> None:
        """Fit anew at the next call: what was fitted holds a space that is no longer the same."""
        self._model = self._fitted_to = None


def _most_telling(runs: list[Run], said: Mapping[int, _RunSummary]) -> list[Run]:
    """Return the runs to fit: of too many, what still runs, and of each depth the best and some from the middle."""
    if sum(len(said[run.number].rows) for run in runs) <= MOST_ROWS:
        return runs
    by_depth: dict[float, list[tuple[float, int]]] = defaultdict(list)
    kept = {run.number for run in runs if run.state == "running"}
    for run in runs:
        if said[run.number].rows and run.number not in kept:
            octaves, value = said[run.number].rows[-1]
            by_depth[octaves].append((value if math.isfinite(value) else math.inf, run.number))
    ranked = [sorted(found, reverse=True) for _, found in sorted(by_depth.items())]
    left = MOST_ROWS - sum(len(said[number].rows) for number in kept)
    while left > 0:  # There are more rows than that.
        for depth in ranked:
            if depth and left > 0:
                number = depth.pop(-1 if len(kept) % 2 else len(depth) // 2)[1]
                kept.add(number)
                left -= len(said[number].rows)
    return [run for run in runs if run.number in kept]


def _start(runs: Sequence[Run]) -> float:
    """Return about what an untrained model loses: the upper quartile of first losses in the race of rates."""
    first = sorted(run.values[min(run.values)] for run in runs if run.stage == "anchor" and run.finite)
    return first[(3 * len(first)) // 4] if len(first) >= 4 else math.inf


def _arrays(points: Sequence[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([point.coordinates for point in points]), np.array([point.number for point in points])


def collapsed(lowest: float, last: float, start: float) -> bool:
    """Return whether a run lost most of what it had gained: too large a rate does so, before or without diverging."""
    gained = start - lowest
    return math.isfinite(start) and gained > GAINED * abs(start) and last - lowest > COLLAPSED * gained


def _value_at(run: Run, rung: int, rungs: Rungs, planned: bool) -> float | None:
    """Return what a run says at a rung: under a schedule that is scaled to the planned end, only its end counts."""
    batch = run.setting.global_batch_size
    ends_here = rungs.reach(rung, batch, run.end_samples) == run.end_samples and rung - run.end_samples < max(
        batch, rung * 0.5
    )
    if run.diverged:
        reached = min(samples for samples, value in run.values.items() if not math.isfinite(value))
        return math.nan if rung >= reached else (None if planned else run.at(rung))
    if ends_here:
        return run.at(run.end_samples)
    return None if planned or rung > run.end_samples else run.at(rung)
