"""Whatever is written into a study is read back, also when the search was killed at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sqlite3

import optuna
import pytest
from bstune.tests.studies.written import AXES, finished, killed_between_the_writes, opened, report, run_one, spec
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.dimension import Dimension
from bstune.tuner.core.errors import ArgumentError, StudyError
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import NoisePoint
from bstune.tuner.studies import trial_writes
from bstune.tuner.studies.catalog import (
    forget_study,
    make_study,
    studies,
)
from bstune.tuner.studies.optuna_parameters import Axes
from bstune.tuner.studies.spec_json import decode_plan, encode_plan, encode_space
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.studies.study import stored_arguments
from optuna.distributions import distribution_to_json

# --- round trips --------------------------------------------------------------------------------------------------


def test_every_trial_is_read_back_equal(url: str) -> None:
    """What a search wrote down is exactly what the next one starts from, to the last bit."""
    with opened(url) as study:
        first = run_one(study)
        record = study.begin(
            spec(learning_rate=math.pi, params={"weight_decay": 0.1 / 7, "kind": "a"}, stage="confirm", seed=3), AXES
        )
        record = study.report(report(record.number, (64,), math.nan))
        study.finish(
            finished(record, state="pruned", reason="diverged", val_loss=None, peak_bytes=123, checkpoint="somewhere")
        )
        failed = study.begin(spec(global_batch_size=100), AXES)
        study.finish(dataclasses.replace(failed, state="failed", reason="oom: no memory", cause="oom", samples=100))
        written = study.records
    with opened(url) as study:
        assert study.records == written
        assert study.records[0] == first
        assert study.records[1].values == ((64, None),)
        assert study.records[1].metrics == {"accuracy": 0.5}


def test_a_continued_trial_brings_its_earlier_values_along(url: str) -> None:
    """A continued run is a new trial; the finished one stays as it is."""
    with opened(url) as study:
        first = study.begin(spec(), AXES)
        first = study.report(report(first.number, (64,), 0.5))
        study.finish(finished(first, state="pruned", samples=64))
        second = study.begin(spec(start_samples=64), AXES, continues=first.number)
        study.report(report(second.number, (320,), 0.25))
        study.finish(finished(study.record(second.number)))
    with opened(url) as study:
        assert study.record(second.number).continues == first.number
        assert study.record(second.number).start_samples == 64
        assert study.record(second.number).values == ((64, 0.5), (320, 0.25))
        assert study.record(first.number).values == ((64, 0.5),)


def test_measured_noise_survives_the_end_of_a_trial_and_the_kill_of_a_search(url: str) -> None:
    """The samples drawn for it are charged, so it is written as it comes, not only when the trial ends."""
    point = NoisePoint(64, 4, 8, -0.25, 31.5)
    with opened(url) as study:
        for _ in range(2):
            record = study.begin(spec(), AXES)
            study.report(dataclasses.replace(report(record.number, (64,), 0.5), noise=(point,)))
        study.report(dataclasses.replace(report(record.number, (320,), 0.4), noise=(point,)))
        study.finish(finished(study.record(record.number)))
    with opened(url) as study:
        study.sweep()
        assert [record.noise for record in study.records] == [(point,), (point, point)]
        assert study.records[0].cause == "orphan"


def test_plain_optuna_opens_the_study(url: str) -> None:
    """Users of Optuna and optuna-dashboard find states, values and parameters where they expect them."""
    with opened(url) as study:
        run_one(study)
        record = study.begin(spec(), AXES)
        study.report(report(record.number, (64,), 0.75))
        study.finish(finished(study.record(record.number), state="pruned"))
    ordinary = optuna.load_study(study_name="digits", storage=url)
    complete, pruned = ordinary.trials
    assert ordinary.direction == optuna.study.StudyDirection.MINIMIZE
    assert complete.state == optuna.trial.TrialState.COMPLETE
    assert complete.value == 1 / 640
    assert complete.intermediate_values == {64: 1 / 64, 320: 1 / 320, 640: 1 / 640}
    assert complete.params == {"batch_size_log2": 6, "learning_rate": 0.1 / 3}
    assert complete.user_attrs["global_batch_size"] == 64
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert pruned.value == 0.75


def test_a_list_of_odd_batches_is_an_index(url: str) -> None:
    """Sizes that are no powers of two are stored as the index into the user's list."""
    axes = Axes((48, 96), (1e-4, 1.0), {"batch_size": Dimension.of([48, 64, 96])})
    parameters, distributions = axes.parameters(spec(global_batch_size=96))
    assert parameters["batch_size_index"] == 2
    assert distributions["batch_size_index"] == optuna.distributions.IntDistribution(0, 2)
    assert "batch_size_log2" not in parameters


def test_a_plan_survives_the_storage() -> None:
    """Ranges, lists, scalars and Optuna's distributions in a space come back as they were."""
    space = {
        "batch_size": [32, 64],
        "learning_rate": (1e-4, 0.1),
        "momentum": 0.9,
        "weight_decay": optuna.distributions.FloatDistribution(1e-4, 0.1, log=True),
    }
    plan = Plan(space=space, baseline=(64, 0.1), goal="time", target=0.5)
    assert decode_plan(json.loads(json.dumps(encode_plan(plan)))) == plan


def test_a_space_is_stored_as_it_always_was() -> None:
    """To the byte, whatever shape it has in memory: a study of an older version is compared with what is asked now."""
    dropout = optuna.distributions.FloatDistribution(0, 0.5, step=0.25)
    depth = optuna.distributions.IntDistribution(1, 8, log=True)
    act = optuna.distributions.CategoricalDistribution(["relu", None])
    asked = {
        "width": (1e-4, 1),
        "batch_size": (32, 256),
        "learning_rate": [0.1, 1],
        "dropout": dropout,
        "depth": depth,
        "act": act,
        "nesterov": True,
        "momentum": 0.9,
    }
    stored = {
        "act": {"distribution": distribution_to_json(act)},
        "batch_size": {"range": [32, 256]},
        "depth": {"distribution": distribution_to_json(depth)},
        "dropout": {"distribution": distribution_to_json(dropout)},
        "learning_rate": [0.1, 1.0],
        "momentum": 0.9,
        "nesterov": True,
        "width": {"range": [0.0001, 1.0]},
    }
    space = check_search(space=asked).plan.space
    assert json.dumps(encode_space(space)) == json.dumps(stored)
    assert decode_plan({"space": stored}).space == space


def test_a_stored_space_that_was_changed_is_refused() -> None:
    """It is held against the same rules as what a user asks for."""
    with pytest.raises(ArgumentError, match=r"space\['batch_size'\]\[1\]='x': expected a whole number"):
        decode_plan({"space": {"batch_size": [32, "x"]}})


# --- death at any moment ------------------------------------------------------------------------------------------


def test_an_orphan_fails_and_is_charged_to_its_last_report(url: str) -> None:
    """A search killed in the middle of a trial leaves it running; the next start ends it and knows its samples."""
    with opened(url) as study:
        done = run_one(study)
        record = study.begin(spec(), AXES)
        study.report(report(record.number, (64,), 0.5, samples=70))
    with opened(url) as study:
        assert study.records[1].state == "running"
        assert [orphan.number for orphan in study.sweep()] == [record.number]
        assert study.records[0] == done
    with opened(url) as study:
        orphan = study.records[1]
        assert (orphan.state, orphan.cause, orphan.samples, orphan.values) == ("failed", "orphan", 70, ((64, 0.5),))
        assert study.sweep() == []
    trial = optuna.load_study(study_name="digits", storage=url).trials[1]
    assert trial.state == optuna.trial.TrialState.FAIL
    assert trial.user_attrs["orphan"] is True


def test_a_trial_whose_result_was_written_is_finished(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the result and Optuna's state, the trial counts as finished and is not run again."""
    with opened(url) as study:
        record = study.begin(spec(), AXES)
        record = finished(study.report(report(record.number, (640,), 0.25)))
        with monkeypatch.context() as patch:
            patch.setattr(trial_writes, "end_trial", killed_between_the_writes)
            with pytest.raises(SystemExit):
                study.finish(record)
    with opened(url) as study:
        assert study.records[0].state == "running"
        assert study.sweep() == []
        assert study.records == (record,)
    assert optuna.load_study(study_name="digits", storage=url).trials[0].value == 0.25


def test_a_study_that_is_deleted_leaves_nothing_behind(url: str) -> None:
    """In no table, and the other one is whole; a second time there is none."""

    def counted() -> list[tuple[str, int]]:
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return [(name, database.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in names]

    with opened(url, "other") as study:
        run_one(study)
    before = counted()
    with opened(url) as study:
        study.set(probe_key={"a": 1})
        run_one(study)
        study.report(report(study.begin(spec(), AXES).number, (64,), math.nan))
        assert counted() != before
        forget_study(study)
        with pytest.raises(KeyError, match="no longer there"):
            forget_study(study)
    assert counted() == before


def test_a_study_of_a_newer_bstune(url: str) -> None:
    """It is left alone, and is not in the way of another study that looks for a stored probe."""
    with opened(url) as study:
        study.set(bstune_schema=99, bstune_version="9.9")
    with pytest.raises(StudyError, match=r"written by bstune 9\.9.*Update bstune"), opened(url):
        pass
    with opened(url, "other") as study:
        assert [found.name for found in studies(study.storage, readable=True)] == ["other"]


def test_a_study_that_is_not_ours(url: str) -> None:
    """A study of the user's own in the same file is left alone."""
    optuna.create_study(storage=url, study_name="digits").ask()
    with pytest.raises(StudyError, match=r"was not made by bstune\. Choose another name with --study"), opened(url):
        pass
    with opened(url, "other") as study:
        run_one(study)


@pytest.mark.parametrize(
    ("plan", "budget"),
    [
        (Plan(budget=8), 8),
        (Plan(budget_s=1200.0), "20min"),
        (Plan(budget_s=30.0), "30s"),
        (Plan(budget_s=86400.0 * 3), "3d"),
        (Plan(budget_s=1e9), "1000000000s"),
        (Plan(budget_s=90.1), "90.1s"),
        (Plan(budget_s=1e-5), "1e-05s"),
    ],
)
def test_a_stored_budget_is_given_again_as_it_was(url: str, plan: Plan, budget: float | str) -> None:
    """As a number or as a duration; a study that is older than durations has a number."""
    with open_storage(url) as storage:
        study = make_study(storage, "digits")
        study.set(plan=encode_plan(plan))
        again = stored_arguments(study)
        assert again["budget"] == budget
        assert check_search(**again).plan == plan
        study.set(plan={name: value for name, value in encode_plan(Plan(budget=7)).items() if name != "budget_s"})
        assert check_search(**stored_arguments(study)).plan == Plan(budget=7)
