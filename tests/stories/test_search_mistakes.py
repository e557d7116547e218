"""The user's mistakes in a search, failures of its trials, and silence."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import bstune
import pytest
from bstune.tests.stories.bowl import BUDGET, failing, formula, search
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.probe_results import Attempt
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import TrialSpec, Verdict
from bstune.tuner.engines.base import Event
from bstune.tuner.search import run_forecast
from bstune.tuner.searching.loop import Drive
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.storage import open_storage, read_storage
from bstune.tuner.testing.fake_device import known_probe

OURS = bstune.ObjectiveError


@pytest.mark.parametrize(
    ("few", "said"),
    [
        ({"n_trials": 1}, "n_trials=1 leaves none beside what confirms"),
        ({"budget": 0.01}, "0.01 full runs is less than the shortest"),
    ],
)
def test_a_search_without_room_for_a_trial_says_what_would_give_it(few: dict[str, Any], said: str) -> None:
    """No trial was run, so none had a loss that was not finite."""
    with pytest.raises(bstune.NoSignalError, match=f"No trial was run: a budget of .*{said}"):
        search(**few)


def test_nothing_learned_is_said(url: str) -> None:
    """A loss that is never finite leaves nothing to recommend, and one error says so."""

    @bstune.objective(n_samples=320, epochs=4, name="nan")
    def never(trial: bstune.Trial) -> None:
        trial.report(val_loss=math.nan, samples=trial.next_report)

    with pytest.raises(bstune.NoSignalError):
        search(never, storage=url)
    with read_storage(url) as storage:
        study = find_study(storage, "nan")
        assert study is not None
        assert all(record.state == "pruned" and "diverged" in record.reason for record in study.finished)


@pytest.mark.parametrize("dry", [False, True])
def test_a_search_that_has_only_diverged_promises_nothing_when_it_is_called_again(
    url: str, capsys: pytest.CaptureFixture[str], dry: bool
) -> None:
    """No larger budget helps; the error says where to look, also where only the forecast is asked for."""

    @bstune.objective(n_samples=320, epochs=4, name="nan")
    def never(trial: bstune.Trial) -> None:
        trial.report(val_loss=math.nan, samples=trial.next_report)

    asked: dict[str, Any] = {"isolation": "none", "storage": url, "budget": BUDGET}
    with pytest.raises(bstune.NoSignalError):
        bstune.search(never, **asked)
    capsys.readouterr()

    with pytest.raises(bstune.NoSignalError, match="look for what is not finite in the data, the model or the loss"):
        run_forecast(never, check_search(**asked)) if dry else bstune.search(never, **asked)

    said = capsys.readouterr().err
    assert "budget" not in said
    assert dry or "nothing is left to run: no trial has a finite validation loss" in said


def test_an_exception_in_the_first_trial_stops_the_search(url: str) -> None:
    """It is the user's own, with the user's own traceback; the trial is stored as failed."""
    with pytest.raises(bstune.ObjectiveError, match="Trial 0 failed: ValueError: bad rate") as caught:
        search(failing(lambda trial: True), storage=url)
    assert caught.value.traceback is not None
    assert "raise error" in caught.value.traceback
    with read_storage(url) as storage:
        study = find_study(storage, "failing")
        assert study is not None
        assert [(record.state, record.cause) for record in study.finished] == [("failed", "error")]


@pytest.mark.parametrize(("error", "said"), [(ValueError, "ValueError: bad rate 0.1"), (OURS, "bad rate 0.1")])
def test_a_later_exception_is_a_result(error: type[Exception], said: str) -> None:
    """One setting that fails does not stop a search that has learned something; what bstune refuses has no class."""
    result = search(failing(lambda trial: trial.learning_rate == 0.1, error))
    failed = [record for record in result.records if record.state == "failed"]
    assert failed
    assert all(record.reason.startswith(said) for record in failed)
    assert result.recommendation.learning_rate == 0.01


@pytest.mark.parametrize(("error", "said"), [(ValueError, "failed: ValueError: bad rate"), (OURS, "failed: bad rate")])
def test_what_fails_whatever_is_tried_stops_the_search(url: str, error: type[Exception], said: str) -> None:
    """Data that are gone, or a file that was changed, are not found out setting by setting."""
    with pytest.raises(bstune.ObjectiveError, match=said):
        search(failing(lambda trial: trial.number >= 5, error), storage=url)
    with read_storage(url) as storage:
        study = find_study(storage, "failing")
        assert study is not None
        assert [record.cause for record in study.finished[5:]] == ["error"] * 6


def test_running_out_of_memory_is_a_result() -> None:
    """Even in the first trials: it says something about the setting, not about the user's code."""
    result = search(failing(lambda trial: trial.global_batch_size == 32, MemoryError))
    assert {record.cause for record in result.records if record.global_batch_size == 32} == {"oom"}
    assert result.recommendation.global_batch_size == 16


def test_one_lack_of_memory_and_one_mistake_of_the_same_name_are_two_things() -> None:
    """PyTorch says both with a RuntimeError; it takes two of one to tell that nothing can work."""
    lack = type("RuntimeError", (MemoryError,), {"__qualname__": "RuntimeError"})
    seen: list[type[Exception]] = [lack, RuntimeError]

    @bstune.objective(n_samples=320, epochs=4, evals=4, name="failing")
    def function(trial: bstune.Trial) -> None:
        if seen:
            raise seen.pop(0)("no luck")
        formula(trial)

    result = search(function)

    assert [record.cause for record in result.records[:2]] == ["oom", "error"]
    assert result.recommendation.learning_rate == 0.01


class SilentPool:
    """Starts trials of which nothing is ever heard."""

    slots = 2
    places = False

    def __init__(self) -> None:
        """Run nothing yet."""
        self.submitted: list[int] = []
        self.cancelled: list[int] = []

    def submit(self, spec: TrialSpec) -> None:
        """Take a run."""
        self.submitted.append(spec.number)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Hear nothing."""
        time.sleep(timeout_s)
        yield from ()

    def reply(self, number: int, verdict: Verdict) -> None:
        """Never called: nothing is reported."""

    def cancel(self, number: int) -> None:
        """End a run."""
        self.cancelled.append(number)

    def close(self) -> None:
        """Nothing to do."""


def test_a_hung_trial_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that says nothing for far too long is a failed trial with a reason, and the search goes on without it."""
    monkeypatch.setattr("bstune.tuner.searching.loop.POLL_S", 0.01)
    monkeypatch.setattr("bstune.tuner.searching.loop.PATIENCE_UNKNOWN_S", 0.05)
    pool = SilentPool()
    with open_storage("sqlite:///:memory:") as storage:
        study = make_study(storage, "silent")
        drive = Drive(study, Strategy(Plan(n_trials=4), formula.facts, None), None, tell=lambda *_: None)
        drive.run(pool)
        assert {record.cause for record in study.finished} == {"hung"}
        assert "nothing was heard of it" in study.finished[0].reason
    assert sorted(pool.cancelled) == sorted(pool.submitted) == [record.number for record in study.finished]


HOURS = 3600.0
LOADS = Attempt(512, "ok", 1 << 30, HOURS, 3, 8, None, None)
"""An attempt of a probe of a model that takes long to load."""


@pytest.mark.parametrize(
    ("facts", "probe", "least_s"),
    [
        ({}, known_probe(validation_s=2 * HOURS), 2 * HOURS),
        ({}, known_probe(validation_s=1.0, start_s=HOURS), HOURS),
        ({}, known_probe(), 12 * HOURS),  # How long it validates is not known.
        ({"kind": "supervised"}, known_probe(), 12 * HOURS),
        ({"kind": "command"}, known_probe(step_s=None), 12 * HOURS),  # An epoch took longer than timing may.
        ({"step_times": ((1, 1e-6),)}, known_probe(step_s=(60.0, 0.0), validation_s=1.0), HOURS),
        ({"kind": "supervised"}, known_probe(validation_s_per_sample=100.0), HOURS),
        ({"kind": "supervised"}, known_probe(validation_s_per_sample=0.0, start_s=1.0, attempts=(LOADS,)), HOURS),
    ],
)
def test_what_is_only_slow_has_not_hung(facts: dict[str, Any], probe: bstune.ProbeResult, least_s: float) -> None:
    """A start, a validation or an epoch may take hours, and steps are not as quick here as on a cluster."""
    known = dataclasses.replace(formula.facts, n_val_samples=100, **facts)
    with open_storage("sqlite:///:memory:") as storage:
        strategy = Strategy(Plan(n_trials=4), known, probe)
        drive = Drive(make_study(storage, "slow"), strategy, probe, tell=lambda *_: None)
        proposal = strategy.ask()
        assert proposal is not None
        assert drive.patience_s(drive._begin(proposal).number) >= 2 * least_s


def test_trials_that_have_ended_tell_what_others_take() -> None:
    """Where no probe does: a hang does not last a day then, and a smaller batch may take as many times longer."""
    day_s = 24 * HOURS
    with open_storage("sqlite:///:memory:") as storage:
        study, strategy = make_study(storage, "slow"), Strategy(Plan(n_trials=9), formula.facts, known_probe())
        drive = Drive(study, strategy, known_probe(), tell=lambda *_: None)
        ends = [("pruned", None, 320, 1.0), ("failed", 0.5, 1280, 1.0), ("complete", 0.5, 1280, 100.0)]
        for state, loss, samples, seconds in ends:  # One that diverged, or failed, may not have validated.
            number = begin(drive, strategy, 32)
            assert drive.patience_s(number) == day_s
            ended = dataclasses.replace(
                study.record(number), state=state, val_loss=loss, samples=samples, seconds=seconds
            )
            drive._finish(ended)

        assert [drive.patience_s(begin(drive, strategy, batch)) for batch in (64, 32, 8)] == [2000, 2000, 8000]


def begin(drive: Drive, strategy: Strategy, batch: int) -> int:
    """Begin a full run at a batch size, and return its number."""
    proposal = strategy.ask()
    assert proposal is not None
    setting = dataclasses.replace(proposal.setting, global_batch_size=batch)
    return drive._begin(dataclasses.replace(proposal, setting=setting, end_samples=1280, points=(1280,))).number


def test_a_silence_that_ends_no_trial_for_long_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first trial that hangs may be the user's mistake; a day is long to wait for being told."""
    monkeypatch.setattr("bstune.tuner.searching.loop.NOTED_S", 0.0)
    said: list[str] = []
    with open_storage("sqlite:///:memory:") as storage:
        study, strategy = make_study(storage, "silent"), Strategy(Plan(n_trials=4), formula.facts, None)
        drive = Drive(study, strategy, None, tell=lambda *_: None, say=said.append)
        begin(drive, strategy, 32)
        begin(drive, strategy, 32)
        for _ in range(2):
            drive._end_hung(SilentPool())

    assert len(said) == 1
    assert "counts as hung after 24 h" in said[0]


class InterruptedPool(SilentPool):
    """Is interrupted while trials run."""

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Be interrupted."""
        raise KeyboardInterrupt


def test_what_ended_a_search_is_told_whatever_its_storage_says_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C stays Ctrl-C where none of several running trials can be written down any more."""

    def full(*_: Any) -> None:
        raise bstune.StudyError("the disk is full")

    with open_storage("sqlite:///:memory:") as storage:
        study = make_study(storage, "silent")
        monkeypatch.setattr(study, "finish", full)
        drive = Drive(study, Strategy(Plan(n_trials=4), formula.facts, None), None, tell=lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            drive.run(InterruptedPool())


def test_waiting_for_a_place_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a run may have to wait, it is not given up for being silent before it begins."""
    monkeypatch.setattr("bstune.tuner.searching.loop.POLL_S", 0.01)
    pool = SilentPool()
    pool.places = True
    with open_storage("sqlite:///:memory:") as storage:
        study, strategy = make_study(storage, "silent"), Strategy(Plan(n_trials=4), formula.facts, None)
        Drive(study, strategy, None, tell=lambda *_: None, deadline_s=time.monotonic() + 0.3, trial_timeout_s=0.05).run(
            pool
        )
        assert {record.cause for record in study.finished} == {"orphan"}
    assert pool.cancelled == []


def test_what_is_no_objective_is_refused() -> None:
    """A bare function is told what it lacks."""
    with pytest.raises(
        bstune.ArgumentError, match=r"expected a bstune\.Supervised, a function under @bstune\.objective"
    ):
        search(lambda trial: None)


def test_all_wrong_arguments_are_named_at_once() -> None:
    """Fixing one only to be told the next is a waste of time."""
    with pytest.raises(bstune.ArgumentError) as caught:
        search(
            budget=-1,
            jobs=0,
            goal="best",
            tolerance=2,
            space={"batch_size": [0], "learning_rate": (0.1, 0.01)},
            baseline=(64,),
        )
    text = str(caught.value)
    for name in (
        "budget=-1",
        "jobs=0",
        "goal='best'",
        "tolerance=2",
        "space['batch_size'][0]=0",
        "space['learning_rate']",
        "baseline=(64,)",
    ):
        assert name in text
    assert isinstance(caught.value, ValueError)
