"""What to try next: a race along the learning rate first, then the surrogate; or Optuna's samplers for comparison.

A sampler sees the ledger and answers two questions: which action is worth most for its cost, and whether a running
trial is still worth more than the best other action.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .ledger import Key, Ledger, Run, distinct, key_of
from .pruner import Rungs, survives
from .results import Setting
from .space import Space
from .surrogate import Observations, Surrogate, compress, expected_improvement

if TYPE_CHECKING:
    from numpy.typing import NDArray

RACE_OCTAVES = 2.0
"""Spacing of the first race along the learning rate."""
RACE_MOST = 8
COST_POWER = 0.7
"""The gain is divided by the cost to this power: 1 would never pay for a full run, 0 never for a short one."""
MOST_SETTINGS = 60
"""Settings that are weighed in full, after a look at all."""
MOST_TARGETS = 80


@dataclass(frozen=True)
class Action:
    """A run worth starting, and how far it goes before it is judged."""

    setting: Setting
    first_stop: int
    """Rung at which it is judged first, in samples."""
    continues: int | None = None
    score: float = math.inf


@dataclass(frozen=True)
class Context:
    """What every sampler needs to know besides the ledger."""

    space: Space
    rungs: Rungs
    seed: int
    can_continue: bool
    planned: bool
    """Shorter runs are planned as such, because the schedule is scaled to their end."""
    banned: frozenset[Key] = frozenset()
    banned_batches: frozenset[int] = frozenset()

    def allowed(self, setting: Setting) -> bool:
        """Return whether nothing is known that forbids the setting."""
        return setting.global_batch_size not in self.banned_batches and key_of(setting) not in self.banned


_Option = tuple[Setting, int, float, "Run | None"]
"""A setting, the rung to observe it at (samples), the cost of that (full runs), and the run that it would go on from."""


class SurrogateSampler:
    """The sampler of bstune: race, then expected improvement of the full run per square root of its cost."""

    def __init__(self, context: Context) -> None:
        """Keep the context; everything else is read off the ledger at each call."""
        self._context = context

    def next(self, ledger: Ledger) -> Action | None:
        """Return the action worth most, or None when nothing is left to learn."""
        return self._race(ledger) or self._best(ledger)

    def goes_on(self, ledger: Ledger, run: Run, point: int) -> bool:
        """Return whether a running trial is worth more than the best other action, after its report at `point`."""
        rungs = self._context.rungs
        following = next((rung for rung in rungs.counted(run.setting.global_batch_size) if rung > point), None)
        if following is None:
            return True
        if self._racing(ledger):
            return False
        model = Model.of(self._context, ledger)
        if model is None:
            return True
        here = [(run.setting, rung, self._cost(run.setting, rung, run.samples), run) for rung in rungs.samples if rung > point]
        return self._most(model, here)[1] >= self._most(model, self._actions(ledger, model, without=run.key))[1]

    # --- the race ---

    def _race_cells(self, ledger: Ledger) -> tuple[list[Setting], dict[float, float]]:
        """Return the settings raced so far by order of learning rate, with their losses at the first rung (inf while unknown)."""
        space, batch = self._context.space, self._context.space.anchor_batch
        rung = self._first_rung(batch)
        params = space.default_params()
        losses: dict[float, float] = {}
        for run in ledger:
            if (
                run.seed == self._context.seed
                and run.stage in ("anchor", "baseline")
                and run.setting.global_batch_size == batch
                and run.setting.params == params
            ):
                value = run.at(rung)
                losses[run.setting.learning_rate] = math.inf if value is None or not math.isfinite(value) else value
        return [space.setting(batch, lr, params) for lr in sorted(losses)], losses

    def _race(self, ledger: Ledger) -> Action | None:
        """Return the next learning rate of the race at the anchor batch: outwards until the best has a worse one on either side."""
        space = self._context.space
        batch = space.anchor_batch
        _, losses = self._race_cells(ledger)
        start = space.nearest_learning_rate(space.centre(batch))
        wanted: float | None = None
        if start not in losses:
            wanted = start
        else:
            for step in (RACE_OCTAVES, -RACE_OCTAVES):
                lr = space.nearest_learning_rate(start * 2.0**step)
                if lr not in losses:
                    wanted = lr
                    break
        if wanted is None and len(losses) < RACE_MOST and any(math.isfinite(v) for v in losses.values()):
            best = min(losses, key=lambda lr: (losses[lr], lr))
            step = RACE_OCTAVES if best == max(losses) else -RACE_OCTAVES if best == min(losses) else 0.0
            lr = space.nearest_learning_rate(best * 2.0**step)
            wanted = lr if lr not in losses else None
        elif wanted is None and len(losses) < RACE_MOST:  # All diverged: only smaller ones can help.
            lr = space.nearest_learning_rate(min(losses) * 2.0**-RACE_OCTAVES)
            wanted = lr if lr not in losses else None
        if wanted is None:
            return None
        setting = space.setting(batch, wanted)
        return Action(setting, self._first_rung(batch)) if self._context.allowed(setting) else None

    def _racing(self, ledger: Ledger) -> bool:
        return self._race(ledger) is not None

    def _first_rung(self, batch: int) -> int:
        return self._context.rungs.counted(batch)[0]

    # --- the surrogate ---

    def _best(self, ledger: Ledger) -> Action | None:
        model = Model.of(self._context, ledger)
        if model is None:
            return self._untried(ledger)
        actions = self._actions(ledger, model)
        chosen, score = self._most(model, actions)
        if chosen is None:
            return None
        setting, _, _, before = chosen
        continues = before.number if before is not None else None
        start = 0 if before is None else before.samples
        known = model.deepest.get(key_of(setting))
        batch = setting.global_batch_size
        depth = max(start, 0 if known is None else known.samples)
        rungs = self._context.rungs
        first = next(rung for rung in rungs.counted(batch) if rungs.reach(rung, batch, rungs.end_of(batch)) > depth)
        return Action(setting, first, continues, score)

    def _cost(self, setting: Setting, rung: int, start: int) -> float:
        rungs, batch = self._context.rungs, setting.global_batch_size
        return (rungs.reach(rung, batch, rungs.end_of(batch)) - start) / rungs.full_samples

    def _actions(self, ledger: Ledger, model: Model, without: Key | None = None) -> list[_Option]:
        """Return what could be observed next: each promising setting at each rung that it has not reached."""
        context, space, rungs = self._context, self._context.space, self._context.rungs
        known = [run.setting.params for run in model.leaders[:3]]
        rng = np.random.default_rng([context.seed, len(ledger)])
        settings = [space.setting(b, lr, params) for params in space.combinations(rng, known) for b, lr in space.cells()]
        settings = [s for s in distinct([*settings, *(run.setting for run in model.runs)]) if context.allowed(s)]
        busy = {run.key for run in ledger.running} | {without}
        open_settings = [s for s in settings if key_of(s) not in busy and not model.closed(key_of(s))]
        promising = model.most_promising(open_settings, MOST_SETTINGS)
        options: list[_Option] = []
        for setting in promising:
            done = model.deepest.get(key_of(setting))
            resumable = done is not None and context.can_continue and done.checkpoint is not None and done.state in ("pruned", "complete")
            before = done if resumable else None
            reached = 0 if done is None else done.samples
            batch = setting.global_batch_size
            for rung in rungs.counted(batch):
                if rungs.reach(rung, batch, rungs.end_of(batch)) > reached:
                    options.append((setting, rung, self._cost(setting, rung, before.samples if before else 0), before))
        return options

    def _most(self, model: Model, options: Sequence[_Option]) -> tuple[_Option | None, float]:
        """Return the option with the highest gain for its cost."""
        if not options:
            return None, 0.0
        gains = model.gains(options)
        costs = np.array([max(cost, 1e-6) for _, _, cost, _ in options])
        scores = gains / costs**COST_POWER
        best = int(np.argmax(scores))
        return options[best], float(scores[best])

    def _untried(self, ledger: Ledger) -> Action | None:
        """Return the untried cell nearest to the centre line: all that can be done before anything finite is known."""
        space = self._context.space
        tried = {run.key for run in ledger if run.seed == self._context.seed}
        settings = [space.setting(b, lr) for b, lr in space.cells()]
        fresh = [s for s in settings if key_of(s) not in tried and self._context.allowed(s)]
        if not fresh:
            return None

        def distance(s: Setting) -> tuple[float, float]:
            off = abs(math.log2(s.learning_rate / space.centre(s.global_batch_size)))
            return (off + 0.5 * abs(math.log2(s.global_batch_size / space.anchor_batch)), s.learning_rate)

        setting = min(fresh, key=distance)
        return Action(setting, self._first_rung(setting.global_batch_size))


class Model:
    """The surrogate fitted to a ledger, with what is needed to read it."""

    def __init__(self, context: Context, runs: list[Run], surrogate: Surrogate, cells: dict[Key, int], order: dict[int, int]) -> None:
        """Keep the parts; use `Model.of`."""
        self._context = context
        self.runs = runs
        self._surrogate = surrogate
        self._cells = cells
        self._order = order
        self.deepest: dict[Key, Run] = {}
        for run in runs:
            if run.seed == context.seed and (run.key not in self.deepest or run.samples > self.deepest[run.key].samples):
                self.deepest[run.key] = run
        mean, _ = self.final([run.setting for run in runs])
        ranked = np.argsort(np.where([run.finite for run in runs], mean, np.inf), kind="stable")
        self.leaders = [runs[i] for i in ranked if runs[i].finite]

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
        rungs, space = context.rungs, context.space
        runs = [run for seed in sorted({run.seed for run in ledger}) for run in ledger.curves(seed)]
        rows = [
            (run, math.log2(min(rung / rungs.full_samples, 1.0)), value)
            for run in runs
            for rung in rungs.samples
            if (value := _value_at(run, rung, rungs, context.planned)) is not None
        ]
        if not any(math.isfinite(value) for _, _, value in rows):
            return None
        seen_runs = {row[0].number for row in rows}
        runs = [run for run in runs if run.number in seen_runs]
        order = {run.number: i for i, run in enumerate(runs)}
        cells: dict[Key, int] = {}
        for run in runs:
            cells.setdefault(run.key, len(cells))
        seen = Observations(
            x=space.coordinates([run.setting for run, _, _ in rows]),
            octaves=np.array([octaves for _, octaves, _ in rows]),
            cell=np.array([float(cells[run.key]) for run, _, _ in rows]),
            run=np.array([float(order[run.number]) for run, _, _ in rows]),
            y=compress(np.array([value for _, _, value in rows])),
        )
        return cls(context, runs, Surrogate(seen, space.slope, space.slope_sd), cells, order)

    def final(self, settings: Sequence[Setting]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and sd of the compressed gap at the end of a full run."""
        return self._surrogate.predict(self._context.space.coordinates(settings), self._cell_numbers(settings))

    def closed(self, key: Key) -> bool:
        """Return whether there is nothing more to learn of a setting on the seed of the search."""
        done = self.deepest.get(key)
        if done is None:
            return False
        return done.diverged or (done.complete and done.end_samples > self._context.rungs.full_samples / 2)

    def most_promising(self, settings: Sequence[Setting], n: int) -> list[Setting]:
        """Return the settings that may be the best, most likely first."""
        if not settings:
            return []
        both = [*settings, *(run.setting for run in self.leaders[:1])]
        mean, sd = self.final(both)
        order = np.argsort(-expected_improvement(mean, sd, float(mean.min())), kind="stable")
        return [settings[i] for i in order if i < len(settings)][:n]

    def gains(self, options: Sequence[_Option]) -> NDArray[np.float64]:
        """Return by how much the best full run is expected to improve by knowing each option."""
        space, rungs = self._context.space, self._context.rungs
        pool = self.most_promising(distinct([*(o[0] for o in options), *(run.setting for run in self.leaders)]), MOST_TARGETS)
        targets = (space.coordinates(pool), self._cell_numbers(pool))
        settings = [option[0] for option in options]
        actions = Observations(
            x=space.coordinates(settings),
            octaves=np.array([math.log2(min(rung / rungs.full_samples, 1.0)) for _, rung, _, _ in options]),
            cell=self._cell_numbers(settings),
            run=np.array([float(self._order.get(before.number, -2)) if before is not None else -2.0 for _, _, _, before in options]),
            y=np.zeros(len(options)),
        )
        return self._surrogate.knowledge_gain(targets, actions)

    def _cell_numbers(self, settings: Sequence[Setting]) -> NDArray[np.float64]:
        return np.array([float(self._cells.get(key_of(setting), _unseen(setting))) for setting in settings])


def _unseen(setting: Setting) -> int:
    """Return a negative number for a cell that was not run, the same whenever it is asked for."""
    return -2 - zlib.crc32(repr(key_of(setting)).encode())


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


class PlainSampler:
    """Random search or Optuna's TPE with a plain race at the rungs, to compare with."""

    def __init__(self, context: Context, kind: str, race: bool = True) -> None:
        """Choose `random` or `tpe`."""
        self._context = context
        self._kind = kind
        self._race = race

    def next(self, ledger: Ledger) -> Action | None:
        """Return a cell that was not tried yet."""
        context = self._context
        tried = {run.key for run in ledger if run.seed == context.seed}
        rng = random.Random(f"{context.seed} {len(ledger)}")
        if self._kind == "tpe":
            setting = self._ask_tpe(ledger, rng)
            if setting is not None and key_of(setting) not in tried and context.allowed(setting):
                return Action(setting, context.rungs.counted(setting.global_batch_size)[0])
        combinations = context.space.combinations(np.random.default_rng([context.seed, len(ledger)]))
        settings = [context.space.setting(b, lr, rng.choice(combinations)) for b, lr in context.space.cells()]
        fresh = [s for s in settings if key_of(s) not in tried and context.allowed(s)]
        if not fresh:
            return None
        setting = rng.choice(fresh)
        return Action(setting, context.rungs.counted(setting.global_batch_size)[0])

    def goes_on(self, ledger: Ledger, run: Run, point: int) -> bool:
        """Return whether a trial is among the best third at its rung."""
        value = run.at(point)
        others = [other.at(point) for other in ledger.curves(run.seed) if other.number != run.number]
        return not self._race or value is None or survives(value, [x for x in others if x is not None])

    def _ask_tpe(self, ledger: Ledger, rng: random.Random) -> Setting | None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = self._context.space
        distributions: dict[str, optuna.distributions.BaseDistribution] = {
            "batch": optuna.distributions.IntDistribution(0, len(space.batches) - 1),
            "lr": optuna.distributions.IntDistribution(0, len(space.learning_rates) - 1),
        }
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=rng.randrange(2**31)))
        for run in ledger.curves(self._context.seed):
            where: dict[str, Any] = {
                "batch": space.batches.index(run.setting.global_batch_size),
                "lr": space.learning_rates.index(run.setting.learning_rate),
            }
            values = {samples: value for samples, value in run.values.items()}
            state = optuna.trial.TrialState.COMPLETE if run.complete else optuna.trial.TrialState.PRUNED
            last = run.last if run.complete else None
            study.add_trial(
                optuna.trial.create_trial(state=state, value=last, params=where, distributions=distributions, intermediate_values=values)
            )
        params = study.ask(distributions).params
        combinations = space.combinations(np.random.default_rng([self._context.seed, len(ledger)]))
        return space.setting(space.batches[params["batch"]], space.learning_rates[params["lr"]], rng.choice(combinations))


def make_sampler(context: Context, name: str, pruner: str) -> SurrogateSampler | PlainSampler:
    """Return the sampler of a plan."""
    return SurrogateSampler(context) if name == "auto" else PlainSampler(context, name, race=pruner != "none")
