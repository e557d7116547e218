"""`bstune.Sampler` in studies as people write them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import bstune
import optuna
import pytest
from bstune.cli import main
from bstune.tuner.testing.tables import Table, synthetic
from click.testing import CliRunner
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

TABLE = synthetic()
DIMENSIONS = {
    "batch_size": CategoricalDistribution([8, 16, 32, 64, 128, 256, 512]),
    "lr": FloatDistribution(1e-4, 3.0, log=True),
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def on(table: Table) -> Callable[[Trial], float]:
    """Return an objective that looks a table up and reports at optimizer steps, as a training loop would."""

    def objective(trial: Trial) -> float:
        batch = trial.suggest_categorical("batch_size", table.batches)
        lr = trial.suggest_categorical("lr", table.learning_rates)
        assert isinstance(batch, int)
        assert isinstance(lr, float)
        loss = math.nan
        for samples, loss in table.curve(batch, lr, 0):
            trial.report(loss, samples // batch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss

    return objective


def bowl(params: Mapping[str, Any]) -> float:
    """Return a loss that is lowest at batch 64 and rate 0.01, and rises by octaves."""
    batch, lr = float(params["batch_size"]), float(params["lr"])
    return 0.1 * (1 + 0.05 * math.log2(lr / 0.01) ** 2 + 0.02 * math.log2(batch / 64) ** 2)


def ended(params: dict[str, float], loss: float, seconds: float = 10.0) -> FrozenTrial:
    """Return a trial that took so long."""
    start = datetime(2026, 1, 1)
    return FrozenTrial(
        number=0,
        trial_id=0,
        state=TrialState.COMPLETE,
        value=loss,
        datetime_start=start,
        datetime_complete=start + timedelta(seconds=seconds),
        params=params,
        distributions=DIMENSIONS,
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )


def test_twenty_trials_find_the_best_of_a_table() -> None:
    """With the pruner beside it, for less training than twenty full runs."""
    study = optuna.create_study(sampler=bstune.Sampler(), pruner=bstune.Pruner())

    study.optimize(on(TABLE), n_trials=20)

    assert TABLE.regret(study.best_params["batch_size"], study.best_params["lr"]) < 0.03
    assert any(trial.state == TrialState.PRUNED for trial in study.trials)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 20


def test_batch_sizes_are_tried_in_small_steps() -> None:
    """Each new one lies within two octaves of one that was tried, also where the loss falls to the small end."""
    study = optuna.create_study(sampler=bstune.Sampler(seed=1))

    def objective(trial: Trial) -> float:
        batch = trial.suggest_categorical("batch_size", [4, 8, 16, 32, 64, 128, 256])
        lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
        return 0.1 * (1 + 0.3 * math.log2(batch / 4) + 0.05 * math.log2(lr / 0.01) ** 2)

    study.optimize(objective, n_trials=12)
    tried = [trial.params["batch_size"] for trial in study.trials]
    assert 4 in tried
    for i, batch in enumerate(tried[1:], 1):
        assert min(abs(math.log2(batch / other)) for other in tried[:i]) <= 2


def test_a_score_is_maximised() -> None:
    """The study of an accuracy asks for the very settings that a study of the error rate asks for."""

    def trials(direction: Literal["minimize", "maximize"], turned: Callable[[float], float]) -> list[dict[str, float]]:
        study = optuna.create_study(direction=direction, sampler=bstune.Sampler())
        for _ in range(12):
            trial = study.ask(DIMENSIONS)
            study.tell(trial, turned(bowl(trial.params)))
        return [trial.params for trial in study.trials]

    assert trials("maximize", lambda error: 1 - error) == trials("minimize", float)


def test_a_study_that_is_taken_up_again_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    """Nothing is kept but the study: another process with another sampler asks for the same."""
    once = optuna.create_study(sampler=bstune.Sampler(), pruner=bstune.Pruner())
    once.optimize(on(TABLE), n_trials=12)

    for n_trials in (1, 6, 5):
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
        again = optuna.create_study(
            study_name="s",
            storage=storage,
            sampler=bstune.Sampler(),
            pruner=bstune.Pruner(),
            load_if_exists=True,
        )
        again.optimize(on(TABLE), n_trials=n_trials)

    assert [trial.params for trial in again.trials] == [trial.params for trial in once.trials]
    assert [trial.state for trial in again.trials] == [trial.state for trial in once.trials]


def test_trials_side_by_side_look_at_different_settings() -> None:
    """Four that are asked for before any of them is told, at the start and later."""
    study = optuna.create_study(sampler=bstune.Sampler())
    for _ in range(4):
        trials = [study.ask(DIMENSIONS) for _ in range(4)]
        for trial in trials:
            study.tell(trial, bowl(trial.params))

    rates = [math.log2(trial.params["lr"]) for trial in study.trials[:4]]
    assert min(abs(a - b) for i, a in enumerate(rates) for b in rates[:i]) > 1.5
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 16


def test_n_jobs() -> None:
    """Threads share one sampler and one pruner."""
    study = optuna.create_study(sampler=bstune.Sampler(), pruner=bstune.Pruner())

    study.optimize(on(TABLE), n_trials=12, n_jobs=3)

    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_other_parameters_are_searched_with_the_two() -> None:
    """The study finds the better optimizer and about the best dropout."""

    def objective(trial: Trial) -> float:
        params = {
            "batch_size": trial.suggest_int("batch_size", 16, 256, log=True),
            "lr": trial.suggest_float("lr", 1e-4, 1.0, log=True),
        }
        dropout = trial.suggest_float("dropout", 0.0, 0.8)
        worse = trial.suggest_categorical("optimizer", ["adamw", "sgd"]) == "sgd"
        return bowl(params) * (1 + 2 * (dropout - 0.2) ** 2 + 0.2 * worse)

    study = optuna.create_study(sampler=bstune.Sampler(seed=1))
    study.optimize(objective, n_trials=25)

    assert study.best_params["optimizer"] == "adamw"
    assert study.best_params["dropout"] == pytest.approx(0.2, abs=0.15)
    assert study.best_value < 0.11


def test_conditional_parameters_are_left_to_optuna() -> None:
    """What only some trials have is searched too, and the two go on being chosen together."""

    def objective(trial: Trial) -> float:
        params = {
            "batch_size": trial.suggest_categorical("batch_size", [16, 32, 64, 128]),
            "lr": trial.suggest_float("lr", 1e-4, 1.0, log=True),
        }
        if trial.suggest_categorical("optimizer", ["adamw", "sgd"]) == "sgd":
            return bowl(params) * (2 - trial.suggest_float("momentum", 0.5, 0.99))
        return bowl(params) * 1.2

    study = optuna.create_study(sampler=bstune.Sampler(seed=0))
    study.optimize(objective, n_trials=20)

    momenta = {trial.params["momentum"] for trial in study.trials if "momentum" in trial.params}
    assert len(momenta) > 3
    assert study.best_value < 0.12


def test_slow_batch_sizes_are_tried_less() -> None:
    """Step times are learned from the trials' own durations; with the same losses, the quicker setting comes next."""

    def next_batch(seconds: Callable[[int], float]) -> int:
        study = optuna.create_study(sampler=bstune.Sampler())
        for batch in (16, 64, 256):
            for lr in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
                params = {"batch_size": batch, "lr": lr}
                study.add_trial(ended(params, 0.1 * (1 + 0.05 * math.log2(lr / 0.01) ** 2), seconds(batch)))
        return int(study.ask(DIMENSIONS).params["batch_size"])

    assert next_batch(lambda batch: 10.0 * 256 / batch) > next_batch(lambda batch: 10.0)


def test_a_batch_that_fails_is_given_up() -> None:
    """Out of memory is a failed trial to Optuna, whose samplers forget it; here three are a lesson."""

    def objective(trial: Trial) -> float:
        params = {
            "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256, 512, 1024]),
            "lr": trial.suggest_float("lr", 1e-4, 1.0, log=True),
        }
        if params["batch_size"] > 200:
            raise RuntimeError("CUDA out of memory")
        return bowl({**params, "batch_size": 64}) / math.log2(params["batch_size"])  # The larger, the better.

    study = optuna.create_study(sampler=bstune.Sampler())
    study.optimize(objective, n_trials=25, catch=(RuntimeError,))

    assert sum(trial.state == TrialState.FAIL for trial in study.trials) <= 8
    assert study.best_params["batch_size"] == 128


def test_the_batch_may_be_an_exponent_or_fixed() -> None:
    """`to_batch` says how many samples a step takes; a study without a batch size gives a number."""
    study = optuna.create_study(sampler=bstune.Sampler("exponent", to_batch=lambda exponent: 2**exponent))
    for _ in range(10):
        trial = study.ask()
        params = {"batch_size": 2 ** trial.suggest_int("exponent", 3, 9), "lr": trial.suggest_float("lr", 1e-4, 1.0)}
        study.tell(trial, bowl(params))
    assert study.trials[0].params["exponent"] == 6
    assert study.best_value < 0.11

    study = optuna.create_study(sampler=bstune.Sampler(batch=64))
    for _ in range(8):
        trial = study.ask()
        study.tell(trial, bowl({"batch_size": 64, "lr": trial.suggest_float("lr", 1e-4, 1.0, log=True)}))
    assert study.best_value < 0.11


def test_a_study_without_the_two_is_left_to_optuna_and_that_is_said_once() -> None:
    """A misspelt name is no reason to fail, and none to be silent."""
    study = optuna.create_study(sampler=bstune.Sampler(lr="learning_rate"))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        study.optimize(on(TABLE), n_trials=4)

    [one] = [str(each.message) for each in said if "bstune" in str(each.message)]
    assert "'learning_rate'" in one
    assert "Did you mean Sampler(lr='lr')?" in one


def test_all_parameters_are_named_where_none_is_found() -> None:
    """Also one with a name that bstune itself gives."""
    study = optuna.create_study(sampler=bstune.Sampler(batch="batch_size", lr="lr"))
    given = {"bs": DIMENSIONS["batch_size"], "learning_rate": DIMENSIONS["lr"]}

    study.tell(study.ask(given), 1.0)
    with pytest.warns(UserWarning, match=r"in 'bs', 'learning_rate': .*Sampler\(batch='bs', lr='learning_rate'\)\?"):
        study.ask(given)


def test_a_storage_of_optuna_alone_is_said_to_be_one(tmp_path: Path) -> None:
    """What shows and lists studies reads none of it, and says why."""
    url = f"sqlite:///{tmp_path}/bs.db"
    optuna.create_study(storage=url, study_name="mine")

    shown = CliRunner().invoke(main, ["show", "--storage", url])
    listed = CliRunner().invoke(main, ["list", "--storage", url])

    assert (shown.exit_code, listed.exit_code) == (1, 0)
    for said in (shown.stderr, listed.stderr):
        assert "bs.db holds 1 Optuna study that bstune did not make (mine)" in said


def test_wrong_arguments_are_named() -> None:
    """All at once."""
    with pytest.raises(bstune.ArgumentError, match=r"(?s)batch=0.*steps='batches'"):
        bstune.Sampler(batch=0, steps="batches")  # type: ignore[arg-type]
    with pytest.raises(bstune.ArgumentError, match="2 objectives"):
        optuna.create_study(directions=["minimize", "minimize"], sampler=bstune.Sampler()).ask(DIMENSIONS)
