"""`bstune.Pruner` in studies as people write them."""

from __future__ import annotations

import math
import warnings

import bstune
import optuna
import pytest
from optuna.pruners import BasePruner, MedianPruner
from optuna.samplers import RandomSampler
from optuna.trial import Trial, TrialState

FULL = 10_000


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def loss_at(samples: int, factor: float = 1.0) -> float:
    """Return a loss that falls with samples, whatever the batch size."""
    return factor * (1 + FULL / (10 * samples)) / 10


def start(study: optuna.Study, batch: int, lr: float = 0.1) -> Trial:
    """Return a trial of this setting."""
    study.enqueue_trial({"batch_size": batch, "lr": lr})
    trial = study.ask()
    trial.suggest_int("batch_size", 1, 4096, log=True)
    trial.suggest_float("lr", 1e-4, 1.0, log=True)
    return trial


def train(study: optuna.Study, batch: int, factor: float = 1.0, lr: float = 0.1) -> int | None:
    """Train to the end, reporting ten times a run; return the samples at which it was stopped, if it was."""
    trial = start(study, batch, lr)
    for tenth in range(1, 11):
        steps = tenth * FULL // 10 // batch
        trial.report(loss_at(steps * batch, factor), steps)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return steps * batch
    study.tell(trial, loss_at(FULL, factor))
    return None


def stops(pruner: BasePruner, batch: int, factor: float) -> bool:
    """Return whether a trial is stopped after six equally good ones of batch 100."""
    study = optuna.create_study(pruner=pruner, sampler=RandomSampler(seed=0))
    for k in range(6):
        train(study, 100, 1 + 0.01 * k, lr=0.1 + 0.01 * k)
    return train(study, batch, factor) is not None


def test_trials_are_compared_at_equal_samples() -> None:
    """At equal steps, as Optuna's pruner compares, a small batch looks worse than it is and a large one better."""
    small, large = (10, 0.99), (500, 1.3)

    assert stops(MedianPruner(n_startup_trials=4), *small)
    assert not stops(MedianPruner(n_startup_trials=4), *large)
    for pruner in (bstune.Pruner(), bstune.Pruner(lr="not_in_the_study")):
        assert not stops(pruner, *small)
        assert stops(pruner, *large)


def test_steps_may_be_samples_or_epochs() -> None:
    """Then the batch size does not count."""
    for pruner, unit in ((bstune.Pruner(steps="samples"), 1000), (bstune.Pruner(steps="epochs"), 1)):
        study = optuna.create_study(pruner=pruner, sampler=RandomSampler(seed=0))
        for k, batch in enumerate((16, 256, 32, 1024, 64)):
            trial = start(study, batch)
            for epoch in range(10):
                trial.report(loss_at(1000 * (epoch + 1), 0.95**k), epoch * unit + (unit > 1) * unit)
                assert not trial.should_prune()
            study.tell(trial, loss_at(FULL, 0.95**k))
        trial = start(study, 48)
        trial.report(loss_at(1000, 9.0), (unit > 1) * unit)
        assert trial.should_prune()


def test_epochs_that_are_taken_for_steps_are_noticed() -> None:
    """Trials of very different batch sizes that end at the same step: it is said, once, how to say so."""
    study = optuna.create_study(pruner=bstune.Pruner(), sampler=RandomSampler(seed=0))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for batch in (16, 256, 32, 64):
            trial = start(study, batch)
            for epoch in range(1, 6):
                trial.report(1 / epoch, epoch)
                trial.should_prune()
            study.tell(trial, 0.2)

    [one] = [str(each.message) for each in said if "bstune" in str(each.message)]
    assert "steps='epochs'" in one


def test_nothing_is_stopped_before_a_trial_has_come_to_its_end() -> None:
    """Except by a value that is not finite, which stops at once."""
    study = optuna.create_study(pruner=bstune.Pruner(), sampler=bstune.Sampler())
    trial, beside = start(study, 64), start(study, 64)
    for step in range(1, 50):
        trial.report(0.1, step)
        beside.report(99.0, step)
        assert not trial.should_prune()
        assert not beside.should_prune()
    beside.report(math.nan, 50)
    assert beside.should_prune()


def test_a_verdict_stands() -> None:
    """Who asks again is told the same, whatever has come in since: no process of a trial is stopped alone."""
    study = optuna.create_study(pruner=bstune.Pruner(), sampler=bstune.Sampler())
    for lr in (0.1, 0.05, 0.2):
        train(study, 100, lr=lr)
    trial = start(study, 100, 0.11)
    trial.report(loss_at(1000), 10)
    before = trial.should_prune()

    for lr in (0.01, 0.02, 0.03):
        train(study, 100, 0.001, lr=lr)

    assert not before
    assert not trial.should_prune()
    trial.report(loss_at(FULL // 2), FULL // 200)
    assert trial.should_prune()


def test_sampler_and_pruner_must_mean_the_same() -> None:
    """Epochs to one of them are no steps to the other; the name of the learning rate is the sampler's."""
    study = optuna.create_study(pruner=bstune.Pruner(), sampler=bstune.Sampler(steps="epochs"))
    trial = start(study, 64)
    trial.report(1.0, 1)
    with pytest.raises(bstune.ArgumentError, match="steps"):
        trial.should_prune()

    study = optuna.create_study(pruner=bstune.Pruner(), sampler=bstune.Sampler(lr="rate"))
    trial = start(study, 64)
    trial.report(1.0, 1)
    assert not trial.should_prune()


def test_a_study_without_a_batch_size_is_never_stopped_and_that_is_said() -> None:
    """Steps cannot be turned into samples there."""
    study = optuna.create_study(pruner=bstune.Pruner(batch="bs"), sampler=RandomSampler(seed=0))

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert train(study, 100) is None
        assert train(study, 50) is None
    (said,) = [str(each.message) for each in warned if "bstune" in str(each.message)]  # Once, not for each trial.
    assert "trials have 'batch_size', 'lr', but no batch size 'bs'" in said
    assert "Did you mean Pruner(batch='batch_size')?" in said


def test_several_objectives_are_refused() -> None:
    """Optuna itself has no pruning there."""
    study = optuna.create_study(directions=["minimize", "minimize"], pruner=bstune.Pruner())
    with pytest.raises(bstune.ArgumentError, match="2 objectives"):
        study.pruner.prune(study, optuna.trial.create_trial(values=[1.0, 2.0]))
