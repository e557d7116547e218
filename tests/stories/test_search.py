"""The story of a search: resumed, cut off, killed, refused, and what it leaves behind.

A formula stands in for training.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import bstune
import numpy as np
import pytest
import torch
from bstune.tests.stories.bowl import BUDGET, SPACE, failing, formula, search
from bstune.tuner.core.arguments import check_search
from bstune.tuner.core.progress import Progress
from bstune.tuner.search import SearchInterrupted, run_forecast
from bstune.tuner.studies import trial_writes
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import read_storage

ONE_REPORT = 1 / 4
"""A user's own loop may overrun the budget by one report interval; the formula reports four times in a full run."""


class Listener:
    """Keeps every progress, and may do something at one of them."""

    def __init__(self, act: Any = None, *, at: str = "", nth: int = 1) -> None:
        """Act at the nth progress of a kind."""
        self.heard: list[Progress] = []
        self._act, self._at, self._left = act, at, nth

    def __call__(self, progress: Progress) -> None:
        """Hear one."""
        self.heard.append(progress)
        if progress.kind == self._at:
            self._left -= 1
            if self._left == 0:
                self._act()

    def count(self, kind: str) -> int:
        """How many of a kind were heard."""
        return sum(progress.kind == kind for progress in self.heard)


def interrupt() -> None:
    """Press Ctrl-C."""
    raise KeyboardInterrupt


# --- the answer ---------------------------------------------------------------------------------------------------


def test_a_search_finds_the_bottom_of_the_bowl_within_its_budget() -> None:
    """The recommendation is the best rate, was run to the end on a fresh seed, and everything is accounted for."""
    listener = Listener()
    result = search(callbacks=[listener])
    assert result.recommendation.learning_rate == 0.01
    assert result.recommendation.verified
    assert result.spent.full_runs <= BUDGET + ONE_REPORT
    charged = sum(record.samples - record.start_samples for record in result.records)
    assert result.spent.samples == charged
    assert listener.count("forecast") == 1
    assert listener.count("start") == listener.count("finish") == len(result.records)
    assert bstune.SearchResult.from_dict(json.loads(result.to_json())) == result
    assert len(result.trials) == len(result.records)
    assert {record.state for record in result.records} <= {"complete", "pruned"}


def test_the_same_search_gives_the_same_answer() -> None:
    """With one job, asked settings and losses repeat exactly."""
    first, second = search(), search()
    assert [dataclasses.replace(record, seconds=None) for record in first.records] == [
        dataclasses.replace(record, seconds=None) for record in second.records
    ]


def test_a_finished_study_trains_nothing(url: str) -> None:
    """Running the same search again gives the same result without a single trial."""
    first = search(storage=url)
    listener = Listener()
    second = search(storage=url, callbacks=[listener])
    assert listener.count("start") == 0
    assert second.records == first.records
    assert second.recommendation == first.recommendation
    assert second.stopped_by == first.stopped_by


def test_a_larger_budget_goes_on(url: str) -> None:
    """What was trained before counts, and is not trained again."""
    first = search(storage=url, budget=2)
    listener = Listener()
    second = search(storage=url, budget=BUDGET, callbacks=[listener])
    assert second.records[: len(first.records)] == first.records
    assert listener.count("start") == len(second.records) - len(first.records) > 0
    assert second.spent.full_runs <= BUDGET + ONE_REPORT


def test_changed_settings_are_refused(url: str) -> None:
    """Another seed or space is another study; nothing is lost by asking."""
    first = search(storage=url)
    with pytest.raises(bstune.StudyError, match="seed: was 0, now 1"):
        search(storage=url, seed=1)
    with pytest.raises(bstune.StudyError, match=r"space: was .*0\.1.* now .*0\.2"):
        search(storage=url, space=SPACE | {"learning_rate": [0.1, 0.2]})
    assert search(storage=url).records == first.records


def test_two_objectives_of_one_function_are_told_apart(url: str) -> None:
    """Their code is the same, and what it holds is not; the message says how to name them, in words of Python."""

    def made(best: float, **options: Any) -> Any:
        @bstune.objective(n_samples=320, epochs=4, evals=4, **options)
        def function(trial: bstune.Trial) -> None:
            trial.report(val_loss=1 + math.log10(trial.learning_rate / best) ** 2, samples=trial.max_samples)

        return function

    first = search(made(0.01), storage=url)
    with pytest.raises(bstune.StudyError) as caught:
        search(made(0.1), storage=url)
    said = str(caught.value)
    assert "code of the objective: best changed\n" in said
    assert "fresh=True" in said
    assert "name='...'" in said
    assert "--" not in said

    other = search(made(0.1, name="other"), storage=url)
    assert (other.study, other.recommendation.learning_rate) == ("other", 0.1)
    assert search(made(0.01), storage=url).records == first.records


# --- cut off ------------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_best_so_far(url: str, tmp_path: Path) -> None:
    """The interruption has the best so far; the trial that ran is stored as cut off, and the same search goes on."""
    with pytest.raises(SearchInterrupted) as caught:
        search(storage=url, callbacks=[Listener(interrupt, at="report", nth=9)])
    result = caught.value.result
    assert result is not None
    assert result.stopped_by == "interrupted"
    assert not result.recommendation.verified
    assert result.records[-1].cause == "orphan"
    assert "interrupted" in result.records[-1].reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bstune.db"]
    again = search(storage=url)
    assert again.records[: len(result.records)] == result.records
    assert again.recommendation.verified
    assert again.spent.full_runs <= BUDGET + ONE_REPORT


def test_a_timeout_gives_the_best_so_far(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial answer says what ended it and that it is not verified. An hour passes when three trials have ended."""
    real = time.monotonic
    listener = Listener(lambda: monkeypatch.setattr(time, "monotonic", lambda: real() + 3600), at="finish", nth=3)
    result = search(storage=url, timeout=600.0, budget=100, callbacks=[listener])
    assert result.stopped_by == "timeout"
    assert not result.recommendation.verified


def test_nothing_is_continued_from_a_checkpoint_that_went_with_an_earlier_call(url: str) -> None:
    """Checkpoints go when a search ends; what continues it later starts such runs again, and keeps the budget."""
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    objective = bstune.Supervised(lambda: torch.nn.Linear(4, 2), data, data, epochs=4, name="linear")
    asked: dict[str, Any] = {
        "space": {"batch_size": [16, 32], "learning_rate": [1e-4, 1e-3, 1e-2, 1e-1]},
        "budget": 4,
        "storage": url,
    }
    first = bstune.search(objective, n_trials=5, confirm=0, **asked)
    kept = [record.number for record in first.records if record.state == "pruned"]
    # Steps of microseconds: what five trials have cost is a matter of luck, so the second call may spend more.
    later = bstune.search(objective, **{**asked, "budget": 12}).records[len(first.records) :]
    assert kept
    assert later
    assert not {record.continues for record in later} & set(kept)


def test_a_dry_run_changes_nothing_of_a_search(url: str) -> None:
    """It may be asked for with another budget, and for a new study: the old one goes on, and no new one is left."""
    search(storage=url)
    with read_storage(url) as storage:
        before = dict(find_study(storage, "formula").attributes)  # type: ignore[union-attr]
    asked: dict[str, Any] = {"isolation": "none", "space": SPACE, "budget": 40, "storage": url}
    for fresh in (False, True):
        left = run_forecast(formula, check_search(**asked, fresh=fresh)).most_reference_runs
        assert left is not None
        assert left == 40 if fresh else 30 < left < 40  # What was trained is not trained again.
    with read_storage(url) as storage:
        assert dict(find_study(storage, "formula").attributes) == before  # type: ignore[union-attr]
        assert storage.names() == ["formula"]


def test_another_baseline_does_not_stop_optunas_sampler(url: str) -> None:
    """The grid of rates moves with the baseline, and what was run is not on the new one."""
    asked: dict[str, Any] = {"sampler": "tpe", "storage": url, "space": {"batch_size": [16, 32]}}
    search(baseline=(16, 0.001), **asked)
    assert search(baseline=(16, 0.0013), **(asked | {"budget": BUDGET + 2})).recommendation.learning_rate > 0


# --- what it leaves behind ----------------------------------------------------------------------------------------


def states() -> tuple[Any, ...]:
    """The caller's random number generators."""
    state: Any = np.random.get_state()
    return random.getstate(), tuple(map(str, state)), state[1].tolist()


def test_the_caller_is_left_as_it_was(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers are the same to the bit after a search, an error and an interruption; only the storage is left."""
    monkeypatch.chdir(tmp_path)
    before = states()
    search(storage=url)
    with pytest.raises(bstune.StudyError):
        search(storage=url, seed=3)
    with pytest.raises(bstune.ObjectiveError):
        search(failing(lambda trial: True), storage=url)
    with pytest.raises(KeyboardInterrupt):
        search(storage=url, study="other", callbacks=[Listener(interrupt, at="report")])
    assert states() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bstune.db"]


# --- killed at any moment -----------------------------------------------------------------------------------------


def die() -> None:
    """End this process as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def searches_until(moment: str, url: str) -> None:
    """Search, and die at this moment."""
    listener: Any = Listener()
    if moment == "between the writes":
        original, calls = trial_writes.end_trial, []

        def second(backend: Any, trial_id: int, state: Any, value: Any, attributes: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:  # As a journal has it, or an older bstune.
                trial_writes.write_trial(backend, trial_id, attributes=attributes)
                die()
            return original(backend, trial_id, state, value, attributes)

        trial_writes.end_trial = second
    elif moment == "confirmation":

        def listener(progress: Progress) -> None:
            trial = progress.trial
            if progress.kind == "report" and trial is not None and trial.stage == "confirm" and trial.samples > 300:
                die()

    else:
        kind, nth = moment.split()
        listener = Listener(die, at=kind, nth=int(nth))
    search(storage=url, callbacks=[listener])


@pytest.mark.filterwarnings(r"ignore:.*multi-threaded, use of fork\(\):DeprecationWarning")
@pytest.mark.parametrize(
    "moment",
    [
        "study 1",
        "forecast 1",
        "start 1",
        "report 1",
        "finish 1",
        "start 3",
        "report 8",
        "finish 3",
        "between the writes",
        "confirmation",
    ],
)
def test_sigkill_loses_nothing(moment: str, url: str) -> None:
    """Killed and run again: no finished trial is lost or run twice, both halves are charged, and the result comes."""
    killed = multiprocessing.get_context("fork").Process(target=searches_until, args=(moment, url))
    killed.start()
    killed.join(60)
    died_by = killed.exitcode
    killed.kill()
    killed.join()
    assert died_by == -signal.SIGKILL
    with read_storage(url) as storage:
        study = find_study(storage, "formula")
        before = () if study is None else study.records
    result = search(storage=url)
    ended = [record for record in before if record.state != "running"]
    assert [result.records[record.number] for record in ended] == ended
    for record in before:
        after = result.records[record.number]
        assert after.state != "running"
        assert after.samples >= record.samples
    done = [
        (record.global_batch_size, record.learning_rate, record.seed)
        for record in result.records
        if record.state == "complete"
    ]
    assert len(done) == len(set(done))
    assert result.spent.samples == sum(record.samples - record.start_samples for record in result.records)
    assert result.spent.full_runs <= BUDGET + ONE_REPORT
    assert result.recommendation.learning_rate == 0.01
    if (
        not result.recommendation.verified
    ):  # What the killed confirmation had trained is spent; a larger budget buys it again.
        assert moment == "confirmation"
        assert search(storage=url, budget=BUDGET + 1).recommendation.verified
    assert not os.path.exists(f"{url.removeprefix('sqlite:///')}.lock")
