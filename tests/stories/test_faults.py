"""What may happen to a search while it runs, provoked for real; `docs/reliability.md` says what is to come of it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import resource
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bstune
import psutil
import pytest
from bstune.tests.stories.faulty import PROBE, command, records, search
from bstune.tests.warm_start import others_below
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import TrialSpec, Verdict
from bstune.tuner.engines.base import Event, Finished, Lost, Reported
from bstune.tuner.engines.local import LocalPool, device_lost
from bstune.tuner.searching.loop import Drive
from bstune.tuner.searching.probes import corrected
from bstune.tuner.searching.result import make_strategy
from bstune.tuner.studies import sqlite as sqlite_module
from bstune.tuner.studies.catalog import make_study
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.testing.replay import TablePool
from bstune.tuner.testing.tables import synthetic
from bstune.tuner.workers import messages


def test_whatever_a_trial_does_the_search_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hung, killed, crashed, late out-of-memory, with children: each is one trial with its cause."""
    monkeypatch.setenv("FAULTS", "fine,hang,sigkill,segfault,exit,children")
    sleep = ["sleep", f"1000.{os.getpid()}"]  # Nobody else on this machine sleeps just as long.
    monkeypatch.setenv("SLEEP_S", sleep[1])

    result = search(folder, trial_timeout=4.0)

    lost = {record.number: (record.cause, record.reason) for record in result.records if record.state == "failed"}
    assert {number: cause for number, (cause, _) in lost.items()} == {
        1: "hung",
        2: "killed",
        3: "crashed",
        4: "crashed",
        5: "crashed",
    }
    assert lost[1][1] == "hung: nothing was heard of it for 4 s"
    assert "SIGKILL" in lost[2][1]
    assert "SIGSEGV" in lost[3][1]
    assert "code 7" in lost[4][1]
    assert result.recommendation.learning_rate == 0.01
    assert result.recommendation.verified
    assert result.spent.full_runs <= 4 + 1 / 4
    assert others_below() == []
    assert not any(process.info["cmdline"] == sleep for process in psutil.process_iter(["cmdline"]))
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["bstune.db", "model.py"]


def test_out_of_memory_late_in_a_run_makes_the_point_infeasible(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its reports, in two spellings: neither cell nor micro-batch is tried again, and the search goes on."""
    monkeypatch.setenv("FAULTS", "fine,late oom,fine,fine,cudnn")

    result = search(folder)

    out = [record for record in result.records if record.cause == "oom"]
    assert out[0].number == 1
    assert all(record.state == "failed" and record.samples > 0 for record in out)
    cell = (out[0].global_batch_size, out[0].learning_rate)
    assert cell not in {(record.global_batch_size, record.learning_rate) for record in result.records[2:]}
    assert all(record.micro_batch_size <= out[0].micro_batch_size // 2 for record in result.records[2:])
    assert any(
        record.global_batch_size >= out[0].global_batch_size for record in result.records[2:]
    )  # It is accumulated now.
    assert result.recommendation.micro_batch_size <= out[0].micro_batch_size // 2
    assert result.probe == PROBE


def test_each_out_of_memory_halves_the_micro_batch() -> None:
    """Only one at the size that is used now, and of memory."""

    def record(micro: int, cause: str | None) -> Any:
        return SimpleNamespace(micro_batch_size=micro, cause=cause)

    assert corrected(None, []) is None
    assert corrected(PROBE, [record(64, "killed"), record(64, None)]) == PROBE
    after = corrected(PROBE, [record(64, "oom"), record(64, "oom"), record(32, "oom")])  # Two ran side by side.
    assert after is not None
    assert (after.micro_batch_size, after.eval_batch_size) == (16, 16)
    at_one = corrected(dataclasses.replace(PROBE, micro_batch_size=1), [record(1, "oom")])
    assert at_one is not None
    assert at_one.micro_batch_size == 1


class Card:
    """A host whose card fails in a trial, and works or not when it is tried again."""

    device = "cuda:0"

    def __init__(self, message: str, *, works: bool) -> None:
        """Fail with a message."""
        self.failure = messages.Failure("error", "AcceleratorError", message, "", False)
        self._works = works

    def start(self, work: Any, **_: Any) -> Any:
        """Start nothing: the worker has already failed."""
        return SimpleNamespace(
            take=lambda: self.failure, started_s=time.monotonic(), tail=lambda: None, end=lambda: None
        )

    def news(self, workers: list[Any], timeout_s: float) -> list[Any]:
        """Return the worker that has failed."""
        return workers

    def check_device(self) -> None:
        """Try the card."""
        if not self._works:
            raise bstune.DeviceError("cuda:0 was lost while a trial ran on it.")


SPEC = TrialSpec(0, "search", 16, 16, 1, 0.1, 0, 320, (320,))


def test_a_card_that_comes_back_costs_a_trial_and_one_that_does_not_ends_the_search() -> None:
    """It is not the user's mistake, so it stops nothing by itself, and the trial is run again."""
    pool = LocalPool(Card("CUDA error: unspecified launch failure", works=True))  # type: ignore[arg-type]
    pool.submit(SPEC)
    (event,) = pool.events(1.0)
    assert isinstance(event, Lost)
    assert event.cause == "crashed"
    pool = LocalPool(Card("CUDA error: no CUDA-capable device is detected", works=False))  # type: ignore[arg-type]
    pool.submit(SPEC)
    with pytest.raises(bstune.DeviceError, match="was lost"):
        list(pool.events(1.0))
    pool.close()


@pytest.mark.parametrize(
    "message", ["CUDA error: device-side assert triggered", "CUDA error: an illegal memory access was encountered"]
)
def test_a_mistake_on_a_card_is_a_mistake(message: str) -> None:
    """An index out of range is the user's, and is told as such."""
    assert not device_lost(message)
    pool = LocalPool(Card(message, works=False))  # type: ignore[arg-type]
    pool.submit(SPEC)
    (event,) = pool.events(1.0)
    assert isinstance(event, Lost)
    assert event.cause == "error"


FORMULA = """
import math
import bstune

@bstune.objective(n_samples=320, epochs=4, evals=4)
def objective(trial):
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            loss = 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(trial.learning_rate / 0.01) ** 2
            trial.report(val_loss=loss + 0.001 * trial.seed, samples=samples)
"""


def test_a_full_disk_is_said_and_the_search_goes_on_from_there(folder: Path) -> None:
    """One sentence, exit 1; with room again, the same search keeps what was finished."""
    (folder / "model.py").write_text(FORMULA)  # In the search's own process, which without torch is there sooner.
    here: dict[str, Any] = {"isolation": "none", "probe": None, "study": "model"}
    search(folder, **here, budget=2)
    size = (folder / "bstune.db").stat().st_size
    full = subprocess.run(
        command("--budget", "12", "--isolation", "none", "--study", "model"),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        # Python gets an error then, as from a full disk, and no signal.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stderr
    assert "bstune.db cannot be used" in full.stderr.splitlines()[-1]
    before = [record for record in records(folder) if record.state != "running"]
    assert before
    result = search(folder, **here, budget=12)
    assert result.records[: len(before)] == tuple(before)
    assert len(result.records) > len(before)


def test_a_locked_database_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that will not let go of it, after a patient wait; nothing is lost."""
    monkeypatch.setattr(sqlite_module, "BUSY_S", 0.2)
    monkeypatch.setattr("time.sleep", lambda _: None)  # Optuna tries several times, with pauses.
    search(folder, isolation="none", probe=None, study="model", budget=2)
    before = records(folder)
    with contextlib.closing(sqlite3.connect(folder / "bstune.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(bstune.StudyError, match="another program holds a lock on the database"):
            search(folder, isolation="none", probe=None, study="model", budget=3)
    assert records(folder) == before
    assert search(folder, isolation="none", probe=None, study="model", budget=3).records[: len(before)] == tuple(before)


def test_a_clock_that_jumps_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that wakes, a clock that is set: waits and limits go by the clock that only goes forward."""
    calm = search(folder, isolation="none", probe=None)
    jumps = itertools.cycle([0, 86_400, -86_400, 3_600 * 24 * 365])
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + next(jumps))
    result = search(folder, isolation="none", probe=None, study="jumping", timeout=600, trial_timeout=60)
    assert [(r.state, r.learning_rate, r.val_loss) for r in result.records] == [
        (r.state, r.learning_rate, r.val_loss) for r in calm.records
    ]
    assert result.stopped_by == calm.stopped_by


class Scripted(TablePool):
    """Replays a table, but for one trial, of which something else comes."""

    def __init__(self, instead: Lost) -> None:
        """Give this event for the trial of its number."""
        super().__init__(synthetic(), 1)
        self._instead: Lost | None = instead

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Yield the event instead of the trial's own."""
        for event in super().events(timeout_s):
            number = event.report.number if isinstance(event, Reported) else event.number
            if self._instead is not None and number == self._instead.number:
                self.cancel(number)
                event, self._instead = self._instead, None
            yield event

    def reply(self, number: int, verdict: Verdict) -> None:
        """Answer, unless the trial is gone."""
        if number in self._running:
            super().reply(number, verdict)


@pytest.mark.parametrize("cause", ["killed", "crashed", "hung"])
def test_a_trial_that_was_lost_without_fault_is_tried_again(cause: Any) -> None:
    """The same cell, so that an accident decides nothing."""
    table = synthetic()
    with open_storage("sqlite:///:memory:") as storage:
        study = make_study(storage, "lost")
        strategy = make_strategy(Plan(budget=4, space=table.space), table.facts(), None, study)
        Drive(study, strategy, None, tell=lambda *_: None).run(Scripted(Lost(1, cause, "by accident")))
        lost, again = study.records[1], study.records[2]
    assert (lost.state, lost.cause) == ("failed", cause)
    assert (again.global_batch_size, again.learning_rate) == (lost.global_batch_size, lost.learning_rate)
    assert again.state != "failed"


def test_a_finish_without_a_report_is_no_result() -> None:
    """A loop that returns early has said nothing of its end."""
    event: Any = Finished(1, 100, 0.0)
    with open_storage("sqlite:///:memory:") as storage:
        study = make_study(storage, "early")
        table = synthetic()
        strategy = make_strategy(Plan(budget=4, space=table.space), table.facts(), None, study)
        Drive(study, strategy, None, tell=lambda *_: None).run(Scripted(event))
        assert (study.records[1].state, study.records[1].cause) == ("failed", "no_report")
