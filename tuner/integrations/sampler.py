"""`bstune.Sampler`: the strategy as a sampler of an Optuna study."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ..core.dimension import Dimension
from ..core.trials import OptimizerFamily
from ..strategy.race import RACE_OCTAVES
from ..theory.scaling import ANCHOR_BATCH
from .meaning import EPOCH, Meaning, Steps
from .reading import make_study_space, read, refuse_several, search_space


class Sampler(BaseSampler):
    """Batch size and learning rate of an Optuna study, chosen by bstune; other parameters are searched with them.

    Parameters that all trials have are chosen together, by expected improvement over the best trial for the seconds of
    a trial, which are learned from the trials' own durations. Those that only some trials have (conditional ones), and
    all of a study without the two named ones, are left to `independent_sampler`.

    Args:
        batch: Name of the parameter that holds the batch size (integers or choices); or the batch size itself, where
            the study does not vary it.
        lr: Name of the parameter that holds the learning rate.
        steps: What the step of `trial.report(value, step)` counts: `optimizer` steps, `samples` or `epochs`.
        to_batch: `(value of the batch parameter) -> samples in one optimizer step`, where they are not the same: with
            accumulation, with several processes, or where the parameter is an exponent.
        optimizer: `sgd` or `adam`: which learning rates to begin with. Default: the middle of their range.
        seed: Of what is drawn at random.
        independent_sampler: Default: Optuna's TPE.

    Raises:
        ArgumentError: An argument is wrong; or, once a trial is asked for, the study has several objectives.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=Sampler(batch="batch_size", lr="lr", seed=0))
        >>> trial = study.ask()
        >>> trial.suggest_categorical("batch_size", [16, 32, 64, 128]), trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        (64, 0.00316)
    """

    def __init__(
        self,
        batch: str | int = "batch_size",
        lr: str = "lr",
        *,
        steps: Steps = "optimizer",
        to_batch: Callable[[Any], int] | None = None,
        optimizer: OptimizerFamily = "other",
        seed: int | None = None,
        independent_sampler: BaseSampler | None = None,
    ) -> None:
        """Check the arguments; the study is read whenever a trial is asked for."""
        self.meaning = Meaning(batch, lr, steps, to_batch, optimizer)
        self._seed = 0 if seed is None else seed
        self._independent = independent_sampler or TPESampler(seed=seed)
        self._warned = False

    def reseed_rng(self) -> None:
        """Give each of several workers other random numbers."""
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are chosen together: those of all trials, once a trial has ended."""
        refuse_several(study)
        space = search_space(study, self.meaning)
        if make_study_space(self.meaning, space, EPOCH) is not None:
            return space
        if space and not self._warned:
            self._warned = True
            names = " and ".join(map(repr, self.meaning.names))
            all_names = sorted({name for each in study.get_trials(deepcopy=False) for name in each.params})
            warnings.warn(
                f"bstune.Sampler finds no batch size and learning rate in {', '.join(map(repr, all_names))}: expected "
                f"{names}, a whole number and a positive one, in every trial. All parameters are left to "
                f"{self._independent}. {self.meaning.did_you_mean(all_names, 'Sampler')}",
                stacklevel=2,
            )
        return self._independent.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the next trial."""
        refuse_several(study)
        if not search_space:
            return {}
        found = read(study, self.meaning, self._seed).strategy(search_space)
        setting = None if found is None else found[0].next(found[1])
        if setting is None:
            left = self._independent.sample_relative(study, trial, search_space)
            drawn = {name: given for name, given in search_space.items() if name not in left}
            return {
                **left,
                **{
                    name: self._independent.sample_independent(study, trial, name, given)
                    for name, given in drawn.items()
                },
            }
        params = {**setting.params, self.meaning.lr: setting.learning_rate}
        if isinstance(self.meaning.batch, str):
            sizes = self.meaning.sizes(search_space[self.meaning.batch])
            params[self.meaning.batch] = sizes[setting.global_batch_size]
        return {name: _allowed(params[name], distribution) for name, distribution in search_space.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return one parameter: in the first trials by bstune's prior, else by the independent sampler."""
        refuse_several(study)
        if not search_space(study, self.meaning):
            value = self._first(study, trial, param_name, param_distribution)
            if value is not None:
                return _allowed(value, param_distribution)
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Let the independent sampler know."""
        self._independent.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Let the independent sampler know."""
        self._independent.after_trial(study, trial, state, values)

    def _first(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """Return where the first trials begin: in the middle, and beside it outwards along the learning rate."""
        batch = self.meaning.batch
        if name == batch:
            sizes = self.meaning.sizes(distribution)
            return sizes[min(sizes, key=lambda size: abs(size - ANCHOR_BATCH))] if sizes else None
        if name != self.meaning.lr:  # The race begins in the middle of all other parameters.
            return Dimension.of(distribution).at(0.5)
        known = {name: distribution}
        if isinstance(batch, str):
            known[batch] = trial.distributions.get(batch) or CategoricalDistribution([ANCHOR_BATCH])
        space = make_study_space(self.meaning, known, EPOCH)
        if space is None:
            return None
        size = self.meaning.batch_of(trial.params) or space.anchor_batch
        beside = sum(each.number < trial.number for each in study.get_trials(deepcopy=False))
        octaves = RACE_OCTAVES * (-1) ** (beside + 1) * ((beside + 1) // 2)
        return space.nearest_learning_rate(space.centre(size) * 2.0**octaves)


def _allowed(value: Any, distribution: BaseDistribution) -> Any:
    """Return a value as its distribution has it."""
    if isinstance(distribution, IntDistribution):
        return min(max(round(value), distribution.low), distribution.high)
    if isinstance(distribution, FloatDistribution):
        return min(max(float(value), distribution.low), distribution.high)
    return value
