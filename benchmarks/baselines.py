"""The searchers that bstune is compared with, each run on a table.

Each says what it would recommend, and what it has trained by then.

Costs are in full runs, or in whatever a function of the batch size and the samples says. A cell that is repeated or
continued is charged only for what it adds, which favours the baselines: bstune itself is charged for every run from
its beginning.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import optuna
from bstune.tuner.testing.tables import Cell, Table

Trace = list[tuple[float, Cell]]
"""(cost so far, cell that would be recommended), after every report that changes it."""
Price = Callable[[int, float], float]
"""What so many samples cost at a batch size."""
Worth = Callable[[int, float], float]
"""What a searcher minimises, of a batch size and a loss."""


def at(trace: Trace, cost: float) -> Cell | None:
    """Return what would be recommended once so much was spent."""
    found = [cell for spent, cell in trace if spent <= cost * (1 + 1e-9)]
    return found[-1] if found else None


def since(trace: Trace, good: Callable[[Cell], bool]) -> float:
    """Return the cost from which on every recommendation is good; infinite where the last one is not."""
    found = math.inf
    for cost, cell in trace:
        found = min(found, cost) if good(cell) else math.inf
    return found


class Meter:
    """Charges what is read from a table, and remembers the best so far."""

    def __init__(
        self, table: Table, data_seed: int, cap: float, price: Price | None = None, worth: Worth | None = None
    ) -> None:
        """Start with nothing charged; by default samples are paid in full runs, and what counts is the loss."""
        self.table, self.seed, self.cap = table, data_seed, cap
        full_samples = table.n_samples * table.epochs
        self._price = price or (lambda batch, samples: samples / full_samples)
        self._worth = worth or (lambda batch, loss: loss)
        self.cost = 0.0
        self.by_batch: dict[int, float] = defaultdict(float)
        """What was charged, by batch size."""
        self.trace: Trace = []
        self._done: dict[Cell, int] = {}
        self._best: tuple[bool, float] = (False, math.inf)

    @property
    def over(self) -> bool:
        """Whether the cap is reached."""
        return self.cost >= self.cap

    def run(self, cell: Cell) -> Iterator[tuple[int, float]]:
        """Yield (report number from 1, what it is worth); a stopped run is never the best before one that was not."""
        curve = self.table.curve(*cell, self.seed)
        before = 0
        for i, (samples, loss) in enumerate(curve, start=1):
            if samples > self._done.get(cell, 0):
                price = self._price(cell[0], samples - before)
                self.cost += price
                self.by_batch[cell[0]] += price
                self._done[cell] = samples
            before = samples
            worth = self._worth(cell[0], loss) if math.isfinite(loss) else math.nan
            self.offer(cell, worth, complete=i == len(curve))
            yield i, worth
            if not math.isfinite(loss):
                return

    def offer(self, cell: Cell, worth: float, *, complete: bool) -> None:
        """Recommend a cell if it is the best so far: complete runs before others."""
        if not math.isfinite(worth):
            return
        better = (complete, -worth) > (self._best[0], -self._best[1])
        if better and (complete or not self._best[0]):
            self._best = (complete, worth)
            self.trace.append((self.cost, cell))


Searcher = Callable[[Meter, int], None]


def _cells(table: Table) -> list[Cell]:
    return sorted(table.curves)


def _exhaust(meter: Meter, cell: Cell) -> None:
    for _ in meter.run(cell):
        if meter.over:
            return


def random_search(meter: Meter, seed: int) -> None:
    order = _cells(meter.table)
    random.Random(seed).shuffle(order)
    for cell in order:
        if meter.over:
            return
        _exhaust(meter, cell)


def grid_search(meter: Meter, seed: int) -> None:
    """A coarse grid: every other batch size and every third learning rate, in random order, then the rest."""
    rng = random.Random(seed)
    batches, rates = meter.table.batches, meter.table.learning_rates
    coarse = [(b, lr) for b in batches[rng.randrange(2) :: 2] for lr in rates[rng.randrange(3) :: 3]]
    rest = [cell for cell in _cells(meter.table) if cell not in coarse]
    for part in (coarse, rest):
        rng.shuffle(part)
        for cell in part:
            if meter.over:
                return
            _exhaust(meter, cell)


def screen(meter: Meter, seed: int) -> None:
    """One epoch of all cells, then the best three to the end."""
    order = _cells(meter.table)
    random.Random(seed).shuffle(order)
    first: dict[Cell, float] = {}
    for cell in order:
        for i, loss in meter.run(cell):
            first[cell] = loss if math.isfinite(loss) else math.inf
            if meter.over:
                return
            if meter.table.curve(*cell, meter.seed)[i - 1][0] >= meter.table.n_samples:
                break
    for cell in sorted(first, key=first.__getitem__)[:3]:
        _exhaust(meter, cell)


def optuna_search(
    sampler: Callable[[int], optuna.samplers.BaseSampler], pruner: Callable[[int], optuna.pruners.BasePruner]
) -> Searcher:
    """An Optuna study over indices into the lists, so that it knows their order and repeats no cell."""

    def searcher(meter: Meter, seed: int) -> None:
        batches, rates = meter.table.batches, meter.table.learning_rates
        reports = max(len(curve) for seeds in meter.table.curves.values() for curve in seeds)
        study = optuna.create_study(sampler=sampler(seed), pruner=pruner(reports), study_name=f"baseline-{seed}")
        idle = 0  # Trials in a row that repeated what was known and so cost nothing: the sampler has converged.
        while not meter.over and idle < 30:
            before = meter.cost
            trial = study.ask()
            cell = (
                batches[trial.suggest_int("batch", 0, len(batches) - 1)],
                rates[trial.suggest_int("lr", 0, len(rates) - 1)],
            )
            state, last = optuna.trial.TrialState.COMPLETE, math.nan
            for i, loss in meter.run(cell):
                if not math.isfinite(loss):
                    break
                last = loss
                trial.report(loss, i)
                if trial.should_prune():
                    state = optuna.trial.TrialState.PRUNED
                    break
                if meter.over:
                    return
            if not math.isfinite(loss):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            elif state == optuna.trial.TrialState.PRUNED:
                study.tell(trial, state=state)
            else:
                study.tell(trial, last)
            idle = idle + 1 if meter.cost == before else 0

    return searcher


def ray_asha_random(meter: Meter, seed: int) -> None:
    """Ray's AsyncHyperBand rule at its defaults (reduction 4, grace 1), with random search, one trial after another."""
    order = _cells(meter.table)
    random.Random(seed).shuffle(order)
    reports = max(len(curve) for seeds in meter.table.curves.values() for curve in seeds)
    rungs = [4**k for k in range(20) if 4**k <= reports]
    book: dict[int, list[float]] = {rung: [] for rung in rungs}
    for cell in order:
        if meter.over:
            return
        for i, loss in meter.run(cell):
            if meter.over:
                return
            if i in book:
                value = loss if math.isfinite(loss) else 1e9
                stop = bool(book[i]) and value > np.percentile(book[i], 25)
                book[i].append(value)
                if stop:
                    break


def tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


def gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed)


SEARCHERS: dict[str, Searcher] = {
    "random": random_search,
    "grid": grid_search,
    "screen + top 3": screen,
    "TPE + Median": optuna_search(tpe, lambda n: optuna.pruners.MedianPruner()),
    "TPE + Hyperband": optuna_search(tpe, lambda n: optuna.pruners.HyperbandPruner(1, n, 3)),
    "TPE + SHA": optuna_search(tpe, lambda n: optuna.pruners.SuccessiveHalvingPruner(1, 3)),
    "TPE": optuna_search(tpe, lambda n: optuna.pruners.NopPruner()),
    "GPSampler": optuna_search(gp, lambda n: optuna.pruners.NopPruner()),
    "Ray ASHA + random": ray_asha_random,
}


def search(
    name: str, table: Table, seed: int, cap: float = 12.0, price: Price | None = None, worth: Worth | None = None
) -> Meter:
    """Return the books of a baseline: what it would have recommended, by cost."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    meter = Meter(table, seed % table.n_seeds, cap, price, worth)
    SEARCHERS[name](meter, seed)
    return meter
