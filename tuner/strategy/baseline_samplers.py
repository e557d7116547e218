"""Optuna's samplers, for comparison, and the choice of a sampler by its name."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from ..core.results import Setting
from .evidence import Evidence
from .gain_sampler import GainSampler
from .ledger import Ledger, Run, key_of
from .posterior import Context
from .race import Action
from .rung_sampler import RungSampler
from .rungs import survives


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
        fresh = [
            p.setting for p in points if p.key not in tried and context.allowed(p.key, p.setting.global_batch_size)
        ]
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
            # Larger than what gradient noise allows by now, or a rate of the grid around another baseline.
            if (
                run.setting.global_batch_size not in space.batches
                or run.setting.learning_rate not in space.learning_rates
            ):
                continue
            where: dict[str, Any] = {
                "batch": space.batches.index(run.setting.global_batch_size),
                "lr": space.learning_rates.index(run.setting.learning_rate),
            }
            values = {samples: value for samples, value in run.values.items()}
            state = optuna.trial.TrialState.COMPLETE if run.complete else optuna.trial.TrialState.PRUNED
            last = run.last if run.complete else None
            study.add_trial(
                optuna.trial.create_trial(
                    state=state, value=last, params=where, distributions=distributions, intermediate_values=values
                )
            )
        params = study.ask(distributions).params
        extras = space.params(rng.random)  # These are drawn at random.
        return space.setting(space.batches[params["batch"]], space.learning_rates[params["lr"]], extras)


Sampler = GainSampler | RungSampler | PlainSampler


def make_sampler(evidence: Evidence, left: float) -> Sampler:
    """Return the sampler of a plan; `left` is what the search may still spend, in reference runs."""
    plan = evidence.plan
    if plan.sampler != "auto":
        return PlainSampler(evidence.context, plan.sampler, race=plan.pruner != "none")
    return GainSampler(evidence, left) if evidence.clock.known else RungSampler(evidence.context, left)
