"""`bstune search` without MODEL runs what the newest study stores.

So it runs only what this user has chosen, here, and as it was.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.objectives import seal
from bstune.tests.stories.stored.stored import (
    ASKED,
    MODEL,
    OPTIONS,
    PROBE,
    asks,
    invoke,
    ordinary,
)
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.storage import open_storage, read_storage

# --- what goes on -------------------------------------------------------------------------------------------------


def test_a_study_of_ones_own_goes_on(folder: Path) -> None:
    """It says on stderr what it runs, and runs it."""
    result = invoke("search")

    assert result.exit_code == 0, result.output
    assert "checked by" in result.stdout.splitlines()[0]
    assert result.stderr.startswith(f"Going on with study model: runs {folder}/model.py\n")
    assert (folder / "ran").read_text().startswith(f"{folder}/model.py")


@pytest.mark.parametrize("option", ["--dry-run", "--fresh", "--json"])
def test_options_change_nothing_of_it(folder: Path, option: str) -> None:
    """A dry run executes the file too."""
    ordinary().set_user_attr("objective", f"{folder}/other.py:objective")
    shutil.copy("model.py", "other.py")

    assert f"{folder}/other.py" in asks(folder, option)


def test_a_study_says_how_to_search_but_not_where_it_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for who says --yes."""
    seen = watch(monkeypatch)
    ordinary().set_user_attr(
        "asked", {"storage": f"sqlite:///{folder}/other.db", "study": "other", "trial_timeout": 7.0}
    )

    assert "seen" in invoke("search", "--yes").stderr
    assert (seen[0].storage, seen[0].study, seen[0].trial_timeout) == (None, "model", 7.0)


@pytest.mark.parametrize(
    ("options", "budget", "budget_s"),
    [((), 12.0, 90.0), (("--budget", "5"), 5.0, None), (("--budget", "2h"), 12.0, 7200.0)],
)
def test_a_budget_in_seconds_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], budget: float, budget_s: float | None
) -> None:
    """Without options as it was stored; it may become another one, of either kind."""
    seen = watch(monkeypatch)
    ordinary().set_user_attr("plan", {**ordinary().user_attrs["plan"], "budget": 12.0, "budget_s": 90.0})

    assert "seen" in invoke("search", *options).stderr
    assert (seen[0].plan.budget, seen[0].plan.budget_s) == (budget, budget_s)


@pytest.mark.parametrize(
    ("options", "goal", "target"),
    [
        ((), "time", 0.5),
        (("--goal", "loss"), "loss", None),
        (("--goal", "time"), "time", 0.5),
        (("--target", "0.25"), "time", 0.25),
    ],
)
def test_another_goal_gives_up_the_stored_target(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], goal: str, target: float | None
) -> None:
    """It belongs to the goal that was stored with it."""
    seen = watch(monkeypatch)
    ordinary().set_user_attr("plan", {**ordinary().user_attrs["plan"], "goal": "time", "target": 0.5})

    assert "seen" in invoke("search", *options).stderr
    assert (seen[0].plan.goal, seen[0].plan.target) == (goal, target)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let a search end where it would begin, and return the list that takes its arguments."""
    seen: list[Any] = []

    def run_search(objective: Any, arguments: Any) -> None:
        seen.append(arguments)
        raise bstune.BstuneError(f"seen {objective.path}")

    monkeypatch.setattr("bstune.tuner.search.run_search", run_search)
    return seen


# --- what has changed ---------------------------------------------------------------------------------------------


def test_a_file_that_was_changed_is_not_run(folder: Path) -> None:
    """And the way out does not promise that its trials count."""
    with open("model.py", "a") as file:
        file.write("# mended\n")

    said = asks(folder)
    assert "the file was changed since" in said
    assert "--fresh" in said
    assert "seal" not in said


def test_another_comment_is_no_other_code(folder: Path) -> None:
    """Whoever names the file goes on, and has then named the file as it is now; what the code does may not change."""
    trials = ordinary().trials
    text = (folder / "model.py").read_text()
    (folder / "model.py").write_text('"""A model."""\n' + text.replace("bstune, torch", "bstune,  torch  # both"))
    asks(folder)

    (folder / "probe.json").write_text(PROBE.to_json())
    again = invoke("search", "model.py", *OPTIONS)
    assert (again.exit_code, ordinary().trials) == (0, trials), again.output
    assert invoke("search").exit_code == 0

    (folder / "model.py").write_text(text.replace("0.01)", "0.02)"))
    again = invoke("search", "model.py", *OPTIONS)
    assert (again.exit_code, ordinary().trials) == (1, trials)
    assert "code of the objective: objective() changed" in again.stderr


def test_a_file_that_is_gone_is_said_once(folder: Path) -> None:
    """To say --yes would not help, so it is not offered."""
    (folder / "model.py").unlink()

    result = invoke("search")
    assert result.exit_code == 1
    assert f"{folder}/model.py: no such file" in result.stderr
    assert "--yes" not in result.stderr


def test_a_link_in_its_place_is_not_run(folder: Path) -> None:
    """What it leads to has the same content, but other neighbours."""
    (folder / "other").mkdir()
    shutil.move("model.py", "other/model.py")
    (folder / "model.py").symlink_to("other/model.py")

    assert "it is a link" in asks(folder)


def test_a_database_that_was_copied_or_renamed_is_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database from elsewhere may have been put in its place, too."""
    (folder / "copy").mkdir()
    shutil.copy("bstune.db", "copy")
    os.rename("bstune.db", "renamed.db")
    assert "its seal does not fit" in asks(folder, "--storage", "sqlite:///renamed.db")
    monkeypatch.chdir("copy")
    assert "its seal does not fit" in asks(folder)


def test_a_database_is_known_by_any_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link leads to the same file."""
    watch(monkeypatch)
    (folder / "link.db").symlink_to("bstune.db")

    assert f"seen {folder}/model.py" in invoke("search", "--storage", f"sqlite:///{folder}/link.db").stderr


@pytest.mark.parametrize("old", [None, 5])
def test_a_study_without_a_seal_is_asked_about(folder: Path, old: Any) -> None:
    """As an older bstune has made it."""
    ordinary().set_user_attr("objective_seal", old)

    assert "it has no seal of this user: an older bstune made it" in asks(folder)


def test_a_journal_is_sealed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, like a database."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    reference = bstune.load(model)
    target = f"{model}:objective"
    url = f"journal:///{tmp_path}/runs.journal"
    with open_storage(url) as storage:
        study = make_study(storage, "digits")
        code = seal.make_seal(study, objective=target, source=reference.source_hash, asked=ASKED)
        study.set(objective=target, fingerprint={"source": reference.source_hash}, asked=ASKED, objective_seal=code)
    (tmp_path / "runs.journal").chmod(0o600)
    watch(monkeypatch)
    assert f"seen {model}" in invoke("search", "--storage", url).stderr

    os.rename(tmp_path / "runs.journal", tmp_path / "other.journal")
    assert "its seal does not fit" in asks(tmp_path, "--storage", f"journal:///{tmp_path}/other.journal")


# --- the two ways out ---------------------------------------------------------------------------------------------


def test_yes_runs_what_is_stored_and_seals_it(folder: Path) -> None:
    """After saying what; from then on it goes on by itself."""
    (folder / "other").mkdir()
    shutil.copy("model.py", "other/model.py")
    ordinary().set_user_attr("objective", f"{folder}/other/model.py:objective")
    asks(folder)

    result = invoke("search", "--yes")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(f"Going on with study model: runs {folder}/other/model.py\n")
    assert (folder / "other" / "ran").exists()
    assert not (folder / "ran").exists()
    again = invoke("search", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["study"] == "model"


def test_to_name_the_file_seals_it(folder: Path) -> None:
    """An old study, once its model is named, goes on without it."""
    ordinary().set_user_attr("objective_seal", None)
    asks(folder)

    (folder / "probe.json").write_text(PROBE.to_json())
    named = invoke("search", "model.py", *OPTIONS, "--yes")
    assert named.exit_code == 0, named.output
    assert "Going on with" not in named.stderr
    with read_storage(None) as storage:
        study = find_study(storage, "model")
        assert study is not None
        assert isinstance(study.attributes["objective_seal"], str)
        seal.require_trusted(study, seal.stored_reference(study))
