"""The storage and the study in it.

What is written is read back, by us and by plain Optuna, whatever happens in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.dimension import Dimension
from bstune.tuner.core.errors import ArgumentError, StudyError
from bstune.tuner.core.probe_results import DeviceInfo
from bstune.tuner.core.results import NoisePoint, TrialRecord
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import Facts, TrialReport, TrialSpec
from bstune.tuner.studies.catalog import (
    choose_study,
    find_study,
    fingerprint,
    make_study,
    newest_study,
    probe_key,
    same_probe,
    studies,
    touch,
)
from bstune.tuner.studies.optuna_parameters import Axes
from bstune.tuner.studies.spec_json import decode_plan, encode_plan, encode_space
from bstune.tuner.studies.storage import Storage, open_storage, read_storage
from bstune.tuner.studies.study import Study, stored_arguments
from optuna.distributions import distribution_to_json

AXES = Axes((4, 256), (1e-4, 1.0), {})
FACTS = Facts(name=None, kind="loop", n_samples=1000, epochs=2.0, source_hash="abc")
CPU = DeviceInfo("cpu", "here")


def spec(**changes: Any) -> TrialSpec:
    """A run of 640 samples at batch 64."""
    values: dict[str, Any] = {
        "number": -1,
        "stage": "search",
        "global_batch_size": 64,
        "micro_batch_size": 32,
        "accumulation_steps": 2,
        "learning_rate": 0.1 / 3,
        "seed": 0,
        "end_samples": 640,
        "points": (64, 320, 640),
    }
    return TrialSpec(**(values | changes))


def report(number: int, points: tuple[int, ...], loss: float, samples: int | None = None) -> TrialReport:
    """A report as a worker sends it."""
    return TrialReport(number, points, samples or max(points), loss, {"accuracy": 0.5}, 1.5)


def finished(record: TrialRecord, **changes: Any) -> TrialRecord:
    """The record of a run that came to its end."""
    loss = record.values[-1][1] if record.values else None
    return dataclasses.replace(
        record, **({"state": "complete", "reason": "", "val_loss": loss, "seconds": 2.0} | changes)
    )


def run_one(study: Study, **changes: Any) -> TrialRecord:
    """Run one trial from its beginning to its end."""
    record = study.begin(spec(**changes), AXES)
    for point in (64, 320, 640):
        record = study.report(report(record.number, (point,), 1 / point))
    record = finished(record)
    study.finish(record)
    return record


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage that does not exist yet."""
    return f"sqlite:///{tmp_path}/bstune.db"


@contextlib.contextmanager
def opened(url: str, name: str = "digits") -> Iterator[Study]:
    """The study of this name, open for writing."""
    with open_storage(url) as storage:
        yield find_study(storage, name) or make_study(storage, name)


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
            patch.setattr(
                optuna.storages.RDBStorage, "set_trial_state_values", lambda *_: (_ for _ in ()).throw(SystemExit)
            )
            with pytest.raises(SystemExit):
                study.finish(record)
    with opened(url) as study:
        assert study.records[0].state == "running"
        assert study.sweep() == []
        assert study.records == (record,)
    assert optuna.load_study(study_name="digits", storage=url).trials[0].value == 0.25


# --- one writer, many readers -------------------------------------------------------------------------------------


def test_the_second_writer_is_told_who_holds_the_storage(url: str) -> None:
    """It names the process, and the first one is not disturbed."""
    with opened(url) as study:
        with pytest.raises(StudyError, match=rf"in use: process {os.getpid()} on .* uses it since 20.*Wait for it"):
            open_storage(url)
        run_one(study)
    assert sorted(path.name for path in Path(url.removeprefix("sqlite:///")).parent.iterdir()) == ["bstune.db"]


def test_the_lock_of_a_dead_process_is_taken_over(url: str, tmp_path: Path) -> None:
    """A lock file that nobody has locked costs nothing."""
    code = f"import os; from bstune.tuner.studies.storage import open_storage; open_storage({url!r}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (tmp_path / "bstune.db.lock").exists()
    with opened(url) as study:
        run_one(study)
    assert not (tmp_path / "bstune.db.lock").exists()


def test_readers_never_wait_for_the_writer(url: str, tmp_path: Path) -> None:
    """While a write is under way, a reader that is not ready to wait reads what was there before."""
    with opened(url) as study:
        run_one(study)
        with study.storage.backend.engine.begin() as writing:  # type: ignore[attr-defined]
            writing.exec_driver_sql("UPDATE studies SET study_name = 'other'")
            with contextlib.closing(sqlite3.connect(tmp_path / "bstune.db", timeout=0)) as reader:
                assert reader.execute("SELECT study_name FROM studies").fetchall() == [("digits",)]
            with read_storage(url) as storage:
                assert storage.names() == ["digits"]
            writing.rollback()


def test_reading_makes_nothing(url: str, tmp_path: Path) -> None:
    """Asking for a study in a storage that is not there is an error and leaves no file."""
    with pytest.raises(StudyError, match="There is no storage"):
        read_storage(url)
    assert list(tmp_path.iterdir()) == []


def test_a_new_storage_that_stays_empty_is_removed(url: str, tmp_path: Path) -> None:
    """A search that failed before it had a study leaves nothing."""
    open_storage(url).close()
    assert list(tmp_path.iterdir()) == []


def test_a_storage_in_memory_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sqlite:///:memory:` works and leaves nothing."""
    monkeypatch.chdir(tmp_path)
    with opened("sqlite:///:memory:") as study:
        assert run_one(study).number == 0
    assert list(tmp_path.iterdir()) == []


def test_a_brace_in_the_path_is_only_a_brace(tmp_path: Path) -> None:
    """Optuna formats its URL; a folder called {x} must not matter."""
    (tmp_path / "{x}").mkdir()
    with opened(f"sqlite:///{tmp_path}/{{x}}/bstune.db") as study:
        run_one(study)
    assert (tmp_path / "{x}" / "bstune.db").exists()


# --- what a storage can be besides one ------------------------------------------------------------------------------


def test_a_file_that_is_no_database(url: str, tmp_path: Path) -> None:
    """It is named, not touched, and no lock is left."""
    (tmp_path / "bstune.db").write_text("my thesis " * 1000)
    for attempt in (open_storage, read_storage):
        with pytest.raises(
            StudyError, match=r"bstune\.db cannot be used: it is not a database\. Name another file with --storage"
        ):
            attempt(url)
    assert (tmp_path / "bstune.db").read_text() == "my thesis " * 1000
    assert not (tmp_path / "bstune.db.lock").exists()


def test_a_database_of_something_else(url: str, tmp_path: Path) -> None:
    """Optuna's tables are not added to somebody's address book."""
    with contextlib.closing(sqlite3.connect(tmp_path / "bstune.db")) as connection:
        connection.execute("CREATE TABLE addresses (name)")
        connection.commit()
    with pytest.raises(StudyError, match=r"something else \(tables addresses\)"):
        open_storage(url)
    with contextlib.closing(sqlite3.connect(tmp_path / "bstune.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("addresses",)]


def test_a_read_only_storage(url: str, tmp_path: Path) -> None:
    """`mode=ro` can be shown but not searched in; permission bits would prove nothing for root."""
    with opened(url) as study:
        run_one(study)
    read_only = f"sqlite:///file:{tmp_path}/bstune.db?mode=ro&uri=true"
    with pytest.raises(StudyError, match=r"cannot be written \(read-only\)"):
        open_storage(read_only)
    with read_storage(read_only) as storage:
        assert storage.names() == ["digits"]
    with opened(url) as study:
        assert len(study.records) == 1


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("sqlite:///{tmp}/missing/bstune.db", "its folder does not exist"),
        ("sqlite:///{tmp}", "is a folder"),
        ("oracle://localhost/db", "of a kind that is not known: expected sqlite:///FILE"),
        ("runs.db", r"is not a storage URL: expected sqlite:///FILE.*; for a file, sqlite:///runs\.db"),
        ("journal:", "names no file"),
    ],
)
def test_urls_that_cannot_be(bad: str, said: str, tmp_path: Path) -> None:
    """Each has one clear message."""
    with pytest.raises(StudyError, match=said):
        open_storage(bad.format(tmp=tmp_path))


def fill_up(storage: Storage) -> None:
    """Let SQLite say SQLITE_FULL from the next page on."""
    import sqlalchemy

    engine = storage.backend.engine  # type: ignore[attr-defined]

    @sqlalchemy.event.listens_for(engine, "connect")
    def limit(connection: Any, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    storage.backend.remove_session()
    engine.dispose()


def fill(study: Study) -> None:
    """Write until there is no room."""
    for _ in range(200):
        run_one(study)


def test_a_full_disk_loses_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error; finished trials are there once there is room, and Python's random numbers are as before."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # Optuna tries five times, with random pauses.
    state = random.getstate()
    with opened(url) as study:
        kept = run_one(study)
        fill_up(study.storage)
        with pytest.raises(StudyError, match=r"the disk is full\. Free some space and run the same command again"):
            fill(study)
    assert random.getstate() == state
    with opened(url) as study:
        study.sweep()
        assert study.records[0] == kept
        assert run_one(study).state == "complete"


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


def test_tables_of_another_optuna(url: str, tmp_path: Path) -> None:
    """A schema that this Optuna does not know is said in one sentence."""
    with opened(url):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "bstune.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
        connection.commit()
    with pytest.raises(StudyError, match="another version of Optuna made its tables"):
        open_storage(url)


@pytest.mark.parametrize(
    ("plan", "budget"), [(Plan(budget=8), 8), (Plan(budget_s=1200.0), "1200.0 s"), (Plan(budget_s=1e-5), "1e-05 s")]
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


# --- which study --------------------------------------------------------------------------------------------------


def chosen(storage: Storage, *, seed: int = 0, named: bool = False, fresh: bool = False, **changes: Any) -> Study:
    """The study that a search with these settings would go on with."""
    wanted = fingerprint(dataclasses.replace(FACTS, **changes), Plan(seed=seed), CPU)
    study = choose_study(storage, "digits", wanted, named=named, fresh=fresh)
    study.set(fingerprint=wanted)
    return study


def test_changed_settings_are_named_old_and_new(url: str) -> None:
    """The message says what changed, and the three ways on."""
    with open_storage(url) as storage:
        run_one(chosen(storage))
        with pytest.raises(StudyError) as caught:
            chosen(storage, seed=7, source_hash="xyz", epochs=3.0)
        text = str(caught.value)
        assert "source of the objective: was abc, now xyz" in text
        assert "epochs: was 2.0, now 3.0" in text
        assert "seed: was 0, now 7" in text
        assert "precision" not in text
        assert "--fresh" in text
        assert "'digits-2'" in text
        assert "--study" in text
        assert chosen(storage).name == "digits"


def test_the_same_code_in_another_text_goes_on(url: str) -> None:
    """Both hashes are then stored as they are now. A study of an older bstune has that of the text alone."""
    with open_storage(url) as storage:
        run_one(chosen(storage, source_hash="text", code_hash=None))
        old = dict(chosen(storage, source_hash="text", code_hash="code").attributes["fingerprint"])
        del old["code"]
        find = find_study(storage, "digits")
        assert find is not None
        find.set(fingerprint=old)
        with pytest.raises(StudyError, match="source of the objective: was text, now other"):
            chosen(storage, source_hash="other", code_hash="code")
        assert chosen(storage, source_hash="text", code_hash="code").attributes["fingerprint"]["code"] == "code"

        assert chosen(storage, source_hash="comment", code_hash="code").attributes["fingerprint"]["source"] == "comment"
        assert chosen(storage, source_hash="comment", code_hash="another Python's").name == "digits"
        with pytest.raises(StudyError, match="source of the objective: was comment, now mended"):
            chosen(storage, source_hash="mended", code_hash="mended")
        with pytest.raises(StudyError, match="source of the objective"):
            chosen(storage, source_hash="unreadable", code_hash=None)


def test_a_stored_probe_answers_the_same_code() -> None:
    """It was made of the model, not of what is said about it."""
    wanted = probe_key(dataclasses.replace(FACTS, source_hash="text", code_hash="code"), CPU)
    old = {name: value for name, value in wanted.items() if name != "code"}
    assert same_probe(wanted, wanted)
    assert same_probe(old, wanted)
    assert same_probe({**wanted, "source": "comment"}, wanted)
    assert not same_probe({**wanted, "source": "comment", "code": None}, wanted)
    assert not same_probe({**wanted, "source": "mended", "code": "mended"}, wanted)
    assert not same_probe({**wanted, "seed": 1}, wanted)
    assert not same_probe(None, wanted)


def test_fresh_keeps_the_old_study(url: str) -> None:
    """`--fresh` makes NAME-2; afterwards the plain command finds the one that matches."""
    with open_storage(url) as storage:
        run_one(chosen(storage))
        run_one(chosen(storage, seed=7, fresh=True))
        assert storage.names() == ["digits", "digits-2"]
        assert chosen(storage, seed=7).name == "digits-2"
        assert chosen(storage, seed=0).name == "digits"
        with pytest.raises(StudyError, match="made with other settings"):
            chosen(storage, seed=7, named=True)
        assert chosen(storage, fresh=True).name == "digits-3"


def test_a_study_that_learned_nothing_makes_way(url: str) -> None:
    """After a first trial that failed, the repaired file needs no new name."""
    with open_storage(url) as storage:
        study = chosen(storage)
        record = study.begin(spec(), AXES)
        study.finish(dataclasses.replace(record, state="failed", reason="ValueError: no", cause="error"))
        again = chosen(storage, source_hash="mended")
        assert (again.name, again.records) == ("digits", ())


def test_a_finished_trial_is_seen_before_a_study_makes_way(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two writes of its only trial, the study has learned something and is not replaced."""
    with open_storage(url) as storage:
        study = chosen(storage)
        record = study.begin(spec(), AXES)
        record = finished(study.report(report(record.number, (640,), 0.25)))
        with monkeypatch.context() as patch:
            patch.setattr(
                optuna.storages.RDBStorage, "set_trial_state_values", lambda *_: (_ for _ in ()).throw(SystemExit)
            )
            with pytest.raises(SystemExit):
                study.finish(record)
    with open_storage(url) as storage:
        with pytest.raises(StudyError, match="made with other settings"):
            chosen(storage, seed=7)
        assert chosen(storage).records == (record,)


def test_the_newest_study_is_the_one_used_last(url: str) -> None:
    """Not the one made last."""
    with open_storage(url) as storage:
        first, second = make_study(storage, "first"), make_study(storage, "second")
        touch(second)
        first.set(objective="/there/model.py:objective")
        touch(first)
        assert newest_study(storage).name == "first"
        assert newest_study(storage, with_file=True).name == "first"
        assert newest_study(storage, name="second").name == "second"
        with pytest.raises(StudyError, match="no study 'second' that stores a file"):
            newest_study(storage, name="second", with_file=True)
        touch(second)
        assert newest_study(storage).name == "second"
        assert newest_study(storage, with_file=True).name == "first"
