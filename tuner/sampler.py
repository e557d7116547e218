"""What to try next: a race along the learning rate first, then the surrogate; or Optuna's samplers for comparison.

A sampler sees the ledger and answers two questions: which action is worth most for its cost, and whether a running
trial is still worth more than the best other action.
"""

from __future__ import annotations

import math
import random
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
COST_POWER = 0.5
"""Expected gain is divided by cost to this power: 1 would never pay for a full run, 0 never for a short one."""


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
        cost = (rungs.reach(following, run.setting.global_batch_size, run.end_samples) - run.samples) / rungs.full_samples
        here = float(model.gains([run.setting])[0]) / max(cost, 1e-6) ** COST_POWER
        other = self._best(ledger, model, without=run.key)
        return other is None or here >= other.score

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

    # --- expected improvement ---

    def _best(self, ledger: Ledger, model: Model | None = None, without: Key | None = None) -> Action | None:
        context, space, rungs = self._context, self._context.space, self._context.rungs
        model = model or Model.of(context, ledger)
        if model is None:
            return self._untried(ledger)
        known = [run.setting.params for run in model.leaders[:3]]
        rng = np.random.default_rng([context.seed, len(ledger)])
        settings = [space.setting(b, lr, params) for params in space.combinations(rng, known) for b, lr in space.cells()]
        settings = [s for s in distinct([*settings, *(run.setting for run in model.runs)]) if context.allowed(s)]
        gains = model.gains(settings)
        best: Action | None = None
        deepest = model.deepest
        busy = {run.key for run in ledger.running}
        for setting, gain in zip(settings, gains, strict=True):
            key = key_of(setting)
            if key == without or key in busy:
                continue
            done = deepest.get(key)
            batch = setting.global_batch_size
            reached = 0 if done is None else done.samples
            if done is not None and (done.diverged or done.complete):
                continue
            continues = (
                done.number
                if done is not None and context.can_continue and done.checkpoint and done.state in ("pruned", "complete")
                else None
            )
            after = next((rung for rung in rungs.counted(batch) if rungs.reach(rung, batch, rungs.end_of(batch)) > reached), None)
            if after is None:
                continue
            start = reached if continues is not None else 0
            cost = (rungs.reach(after, batch, rungs.end_of(batch)) - start) / rungs.full_samples
            score = float(gain) / max(cost, 1e-6) ** COST_POWER
            if best is None or score > best.score:
                best = Action(setting, after, continues, score)
        return best

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

    def __init__(self, context: Context, runs: list[Run], surrogate: Surrogate, cells: dict[Key, int]) -> None:
        """Keep the parts; use `Model.of`."""
        self._context = context
        self.runs = runs
        self._surrogate = surrogate
        self._cells = cells
        self.deepest: dict[Key, Run] = {}
        for run in runs:
            if run.seed == context.seed and (run.key not in self.deepest or run.samples > self.deepest[run.key].samples):
                self.deepest[run.key] = run
        mean, _ = self.final([run.setting for run in runs])
        order = np.argsort(np.where([run.finite for run in runs], mean, np.inf), kind="stable")
        self.leaders = [runs[i] for i in order if runs[i].finite]
        self.best = float(mean[order[0]])

    @classmethod
    def of(cls, context: Context, ledger: Ledger) -> Model | None:
        """Fit to all runs with values; None while nothing finite is known at any rung."""
        rungs, space = context.rungs, context.space
        runs = [run for seed in sorted({run.seed for run in ledger}) for run in ledger.curves(seed)]
        rows: list[tuple[Run, int, float, float]] = []  # run, fidelity point, how early, loss
        for run in runs:
            for rung in rungs.samples:
                value = _value_at(run, rung, rungs, context.planned)
                if value is not None:
                    rows.append((run, rung, math.log(rungs.full_samples / rung) / math.log(rungs.full_samples / rungs.samples[0]), value))
        runs = [run for run in runs if any(row[0] is run for row in rows)]
        if not any(math.isfinite(row[3]) for row in rows):
            return None
        cells: dict[Key, int] = {}
        for run in runs:
            cells.setdefault(run.key, len(cells))
        y = np.empty(len(rows))
        for rung in rungs.samples:
            at = np.array([i for i, row in enumerate(rows) if row[1] == rung], dtype=np.intp)
            if len(at):
                losses = np.array([rows[i][3] for i in at])
                finite = losses[np.isfinite(losses)]
                y[at] = compress(losses, float(finite.min()) if len(finite) else 0.0)
        seen = Observations(
            x=space.coordinates([row[0].setting for row in rows]),
            early=np.array([row[2] for row in rows]),
            cell=np.array([cells[row[0].key] for row in rows], dtype=np.int64),
            run=np.array([runs.index(row[0]) for row in rows], dtype=np.int64),
            y=y,
        )
        return cls(context, runs, Surrogate(seen, space.slope), cells)

    def final(self, settings: Sequence[Setting]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and sd of the compressed gap at the end of a full run."""
        cells = np.array([self._cells.get(key_of(setting), -1 - i) for i, setting in enumerate(settings)], dtype=np.int64)
        return self._surrogate.predict(self._context.space.coordinates(settings), cells)

    def gains(self, settings: Sequence[Setting]) -> NDArray[np.float64]:
        """Return the expected improvement of each setting over the best one that was run."""
        mean, sd = self.final(settings)
        return expected_improvement(mean, sd, self.best)


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
