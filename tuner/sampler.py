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

from .ledger import Key, Ledger, Run, key_of
from .model import Context, Model, Option
from .pruner import survives
from .results import Setting

if TYPE_CHECKING:
    from numpy.typing import NDArray

RACE_OCTAVES = 2.0
"""Spacing of the first race along the learning rate."""
RACE_MOST = 8
COST_POWER = 0.7
"""The gain is divided by the cost to this power: 1 would never pay for a full run, 0 never for a short one."""
MOST_SETTINGS = 60
"""Settings that are weighed in full, after a look at all."""


@dataclass(frozen=True)
class Action:
    """A run worth starting, and how far it goes before it is judged."""

    setting: Setting
    first_stop: int
    """Rung at which it is judged first, in samples."""
    continues: int | None = None
    score: float = math.inf


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
        point_of = self._context.space.point(run.setting)
        here = [Option(point_of, rung, self._cost(run.setting, rung, run.samples), run) for rung in rungs.samples if rung > point]
        others = self._options(ledger, model, without=run.key)
        scores = self._scores(model, [*here, *others])
        return float(scores[: len(here)].max()) >= float(scores[len(here) :].max(initial=0.0))

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
        return Action(setting, self._first_rung(batch)) if self._context.allowed(key_of(setting), batch) else None

    def _racing(self, ledger: Ledger) -> bool:
        return self._race(ledger) is not None

    def _first_rung(self, batch: int) -> int:
        return self._context.rungs.counted(batch)[0]

    # --- the surrogate ---

    def _best(self, ledger: Ledger) -> Action | None:
        model = Model.of(self._context, ledger)
        if model is None:
            return self._untried(ledger)
        options = self._options(ledger, model)
        if not options:
            return None
        scores = self._scores(model, options)
        chosen = options[int(np.argmax(scores))]
        setting, before = chosen.point.setting, chosen.before
        batch = setting.global_batch_size
        known = model.deepest.get(chosen.point.key)
        depth = 0 if known is None else known.samples
        rungs = self._context.rungs
        first = next(rung for rung in rungs.counted(batch) if rungs.reach(rung, batch, rungs.end_of(batch)) > depth)
        stop = chosen.rung if self._context.planned else first  # A run that is planned short cannot be sent on.
        return Action(setting, stop, None if before is None else before.number, float(scores.max()))

    def _cost(self, setting: Setting, rung: int, start: int) -> float:
        rungs, batch = self._context.rungs, setting.global_batch_size
        return (rungs.reach(rung, batch, rungs.end_of(batch)) - start) / rungs.full_samples

    def _options(self, ledger: Ledger, model: Model, without: Key | None = None) -> list[Option]:
        """Return what could be observed next: each promising setting at each rung that it has not reached."""
        context, rungs = self._context, self._context.rungs
        known = [run.setting.params for run in model.leaders[:3]]
        points = context.space.points(np.random.default_rng([context.seed, len(ledger)]), known)
        busy = {run.key for run in ledger.running} | {without}
        pool = {point.key: point for point in (*points, *model.points) if point.key not in busy and not model.closed(point.key)}
        open_points = [point for point in pool.values() if context.allowed(point.key, point.setting.global_batch_size)]
        options: list[Option] = []
        for point in model.most_promising(open_points, MOST_SETTINGS):
            done = model.deepest.get(point.key)
            resumable = done is not None and context.can_continue and done.checkpoint is not None and done.state in ("pruned", "complete")
            before = done if resumable else None
            reached = 0 if done is None else done.samples
            batch = point.setting.global_batch_size
            for rung in rungs.counted(batch):
                if rungs.reach(rung, batch, rungs.end_of(batch)) > reached:
                    options.append(Option(point, rung, self._cost(point.setting, rung, before.samples if before else 0), before))
        return options

    def _scores(self, model: Model, options: Sequence[Option]) -> NDArray[np.float64]:
        """Return the gain of each option for its cost."""
        costs = np.array([max(option.cost, 1e-6) for option in options])
        return np.asarray(model.gains(options) / costs**COST_POWER, dtype=np.float64)

    def _untried(self, ledger: Ledger) -> Action | None:
        """Return the untried cell nearest to the centre line: all that can be done before anything finite is known."""
        space = self._context.space
        tried = {run.key for run in ledger if run.seed == self._context.seed}
        fresh = [p.setting for p in space.grid if p.key not in tried and self._context.allowed(p.key, p.setting.global_batch_size)]
        if not fresh:
            return None

        def distance(s: Setting) -> tuple[float, float]:
            off = abs(math.log2(s.learning_rate / space.centre(s.global_batch_size)))
            return (off + 0.5 * abs(math.log2(s.global_batch_size / space.anchor_batch)), s.learning_rate)

        setting = min(fresh, key=distance)
        return Action(setting, self._first_rung(setting.global_batch_size))


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
            if key_of(setting) not in tried and context.allowed(key_of(setting), setting.global_batch_size):
                return Action(setting, context.rungs.counted(setting.global_batch_size)[0])
        points = context.space.points(np.random.default_rng([context.seed, len(ledger)]))
        fresh = [p.setting for p in points if p.key not in tried and context.allowed(p.key, p.setting.global_batch_size)]
        if not fresh:
            return None
        setting = rng.choice(fresh)
        return Action(setting, context.rungs.counted(setting.global_batch_size)[0])

    def goes_on(self, ledger: Ledger, run: Run, point: int) -> bool:
        """Return whether a trial is among the best third at its rung."""
        value = run.at(point)
        others = [other.at(point) for other in ledger.curves(run.seed) if other.number != run.number]
        return not self._race or value is None or survives(value, [x for x in others if x is not None])

    def _ask_tpe(self, ledger: Ledger, rng: random.Random) -> Setting:
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
        extras = {dimension.name: dimension.draw(rng.random()) for dimension in space.extras}  # These are drawn at random.
        return space.setting(space.batches[params["batch"]], space.learning_rates[params["lr"]], {**space.fixed, **extras})


def make_sampler(context: Context, name: str, pruner: str) -> SurrogateSampler | PlainSampler:
    """Return the sampler of a plan."""
    return SurrogateSampler(context) if name == "auto" else PlainSampler(context, name, race=pruner != "none")
