"""A study that is taken up with another goal: its trials count, and one that has ended is only ranked anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tuner.core.progress import Progress
from bstune.tuner.searching.taken_up import TakenUp
from bstune.tuner.show import show
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import open_storage

pytestmark = pytest.mark.usefixtures("formulas_take_no_time")
SPACE = {"batch_size": [16, 32, 64], "learning_rate": [0.001, 0.01, 0.1]}


@bstune.objective(n_samples=320, epochs=4, evals=4, name="goals")
def goals(trial: bstune.Trial) -> None:
    """The larger the batch, the worse; a target of 0.3 can be reached."""
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        worse = abs(trial.learning_rate - 0.01) + trial.global_batch_size / 2000
        trial.report(0.2 + 100 / (samples + 500) + worse + 0.001 * trial.seed, samples=samples)


def search(url: str, **changes: Any) -> tuple[bstune.SearchResult, list[Progress]]:
    """Search in this process, and return what was told."""
    heard: list[Progress] = []
    arguments: dict[str, Any] = {"isolation": "none", "space": SPACE, "budget": 6, "goal": "loss", "storage": url}
    return bstune.search(goals, callbacks=[heard.append], **(arguments | changes)), heard


def said(heard: list[Progress]) -> str:
    """What was told of the study."""
    return next(progress.message for progress in heard if progress.kind == "study")


def started(heard: list[Progress]) -> int:
    """How many trials began."""
    return sum(progress.kind == "start" for progress in heard)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage that does not exist yet."""
    return f"sqlite:///{tmp_path}/bstune.db"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"goal": "largest"}, "goal was loss, is now largest"),
        ({"goal": "time", "target": 0.5}, "goal was loss, is now time, target was not given, is now 0.5"),
        ({"tolerance": 0.5}, "tolerance was 0.02, is now 0.5"),
    ],
)
def test_another_goal_ranks_a_finished_study_anew(url: str, changes: dict[str, Any], words: str) -> None:
    """Nothing is run; the new answer is shown by this call, by the next, and by whoever only looks."""
    first, _ = search(url)
    second, heard = search(url, **changes)
    assert started(heard) == 0
    assert said(heard) == f"{len(first.records)} trials so far; {words}: ranked anew, nothing is run again"
    assert (second.records, second.stopped_by, second.study) == (first.records, first.stopped_by, first.study)
    assert second.goal == changes.get("goal", "loss")

    third, heard = search(url, **changes)
    assert (third.recommendation, started(heard)) == (second.recommendation, 0)
    assert said(heard) == f"{len(first.records)} trials so far"
    shown = show("goals", storage=url).result
    assert shown is not None
    assert (shown.recommendation, shown.goal) == (second.recommendation, second.goal)

    back, _ = search(url)
    assert back.recommendation == first.recommendation


def test_the_answer_is_that_of_the_goal(url: str) -> None:
    """What was the lowest loss is not the largest batch that is as good."""
    changes = {"tolerance": 0.2, "baseline": (64, 0.01), "confirm": 0}  # Of batch 64 one full run is known.
    lowest, _ = search(url, **changes)
    largest, _ = search(url, goal="largest", **changes)
    assert lowest.recommendation.global_batch_size < largest.recommendation.global_batch_size


def test_a_larger_budget_goes_on_for_the_new_goal(url: str) -> None:
    """What is more than another ranking is run."""
    first, _ = search(url, budget=2)
    second, heard = search(url, goal="largest", budget=6)
    assert second.records[: len(first.records)] == first.records
    assert started(heard) == len(second.records) - len(first.records) > 0
    assert said(heard).endswith("goal was loss, is now largest: what was run counts for that too")


def test_a_search_that_was_cut_off_goes_on_for_the_new_goal(url: str) -> None:
    """It had not come to its end."""

    def interrupt(progress: Progress) -> None:
        if progress.kind == "finish":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bstune.search(goals, isolation="none", space=SPACE, budget=6, goal="loss", storage=url, callbacks=[interrupt])
    second, heard = search(url, goal="largest")
    assert started(heard) > 0
    assert said(heard).endswith("what was run counts for that too")
    assert second.goal == "largest"


def test_a_study_of_an_older_bstune_takes_another_goal(url: str) -> None:
    """Its goal was part of what could not change."""
    first, _ = search(url)
    with open_storage(url) as storage:
        study = find_study(storage, "goals")
        assert study is not None
        study.set(fingerprint={**study.attributes["fingerprint"], "goal": "loss"})
    second, heard = search(url, goal="largest")
    assert (second.records, started(heard)) == (first.records, 0)


def test_a_new_study_has_nothing_to_say(url: str) -> None:
    """Nor one in which nothing was finished."""
    _, heard = search(url)
    assert said(heard) == "new"
    assert TakenUp() == TakenUp(ended_by=None, said="")
