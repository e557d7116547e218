"""`bstune.Pruner`: stops the trials of an Optuna study that will not win, compared at equal samples."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable
from typing import Any

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from ..core.errors import ArgumentError
from .meaning import Meaning, Steps
from .reading import StudyReading, read, refuse_several, search_space
from .sampler import Sampler

VERDICT = "bstune:goes_on:"
"""A verdict is kept with its trial, by rung: whoever asks again is told the same."""
LEAST_OTHERS = 4
"""Where no learning rate is known, so many other trials must have come as far before one is stopped."""


class Pruner(BasePruner):
    """Stops a trial that is not expected to beat the best one, compared at equal samples, not at equal steps.

    At equal steps a large batch has seen more data than a small one, and looks better than it is. Here a trial is
    judged at a few rungs in samples (step x batch size), by what bstune expects of its end; a value that is not finite
    stops it at once. Before a trial has come to its end nothing else is stopped. Without a learning rate in the study,
    a trial is stopped where it is worse than the median of all others at the same samples.

    A verdict is stored with its trial, so it does not change when it is asked for again. In distributed training only
    one process may ask, and must tell the others (see `docs/optuna.md`): what they would be told depends on which
    reports have come to the storage by then.

    Args:
        batch: As for `bstune.Sampler`.
        lr: Name of the learning rate; default: that of the study's `bstune.Sampler`, else `lr`.
        steps: As for `bstune.Sampler`.
        to_batch: As for `bstune.Sampler`.

    Raises:
        ArgumentError: An argument is wrong; or, once it is asked, contradicts the study's `bstune.Sampler`, or the
            study has several objectives.
    """

    def __init__(
        self,
        batch: str | int = "batch_size",
        lr: str | None = None,
        *,
        steps: Steps = "optimizer",
        to_batch: Callable[[Any], int] | None = None,
    ) -> None:
        """Check the arguments; the study is read whenever a trial is judged."""
        self._lr = lr
        self._meaning = Meaning(batch, "lr" if lr is None else lr, steps, to_batch)
        self._warned: set[str] = set()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether a trial is to stop after its last report."""
        refuse_several(study)
        if not trial.intermediate_values:
            return False
        if not math.isfinite(trial.intermediate_values[max(trial.intermediate_values)]):
            return True
        meaning = self._meaning_of(study)
        reading = read(study, meaning, trial=trial)
        if trial.number not in reading.curves:
            self._warn(
                f"bstune.Pruner stops nothing: trials have {', '.join(map(repr, trial.params)) or 'no parameters'}, "
                f"but no batch size {meaning.batch!r}, without which steps cannot be turned into samples. "
                f"{meaning.did_you_mean(trial.params, 'Pruner')} Or say what your steps are, steps='samples' or "
                "steps='epochs'."
            )
            return False
        if reading.same_steps:
            self._warn(
                "bstune.Pruner takes steps for optimizer steps, and trials of different batch sizes end at the same "
                "one. If you report epochs, say so to both: Sampler(..., steps='epochs'), Pruner(..., steps='epochs')."
            )
        reached = [rung for rung in reading.rungs[:-1] if rung in reading.at_rungs(trial.number)]
        if not reached or not reading.full_known:
            return False
        key = f"{VERDICT}{reached[-1]}"
        if key not in trial.system_attrs:
            goes_on = self._goes_on(study, meaning, reading, trial.number, reached[-1])
            # As Optuna's own pruners do it: a pruner is given no other way to keep something with a trial.
            study._storage.set_trial_system_attr(trial._trial_id, key, goes_on)
            return not goes_on
        return not trial.system_attrs[key]

    def _goes_on(self, study: Study, meaning: Meaning, reading: StudyReading, number: int, rung: int) -> bool:
        """Return whether a trial passes a rung."""
        found = reading.strategy(search_space(study, meaning))
        if found is not None:
            sampler, ledger = found
            run = next((run for run in ledger if run.number == number), None)
            if run is not None:
                return rung not in sampler.counted(run) or sampler.goes_on(ledger, run, rung)
        values = {other: at[rung] for other in reading.curves if rung in (at := reading.at_rungs(other))}
        own = values.pop(number)
        others = [value for value in values.values() if math.isfinite(value)]
        return len(others) < LEAST_OTHERS or own <= statistics.median(others)

    def _meaning_of(self, study: Study) -> Meaning:
        """Return what steps and parameters mean: the study's own sampler knows the learning rate.

        Raises:
            ArgumentError: The sampler was told something else.
        """
        if not isinstance(study.sampler, Sampler):
            return self._meaning
        its, own = study.sampler.meaning, self._meaning
        pairs = [("batch", its.batch, own.batch), ("steps", its.steps, own.steps), ("lr", its.lr, self._lr or its.lr)]
        differ = [f"{name}={own!r} beside {name}={its!r}" for name, its, own in pairs if its != own]
        if (its.to_batch is None) != (own.to_batch is None):
            differ.append("to_batch of one of them only")
        if differ:
            raise ArgumentError(
                f"bstune.Pruner and bstune.Sampler were told different things of one study: {', '.join(differ)}; "
                "expected the same for both."
            )
        return its

    def _warn(self, text: str) -> None:
        if text[:40] not in self._warned:
            self._warned.add(text[:40])
            warnings.warn(text, stacklevel=4)
