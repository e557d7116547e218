"""A model file is named, hashed and looked into without being run."""

from __future__ import annotations

from pathlib import Path

import bstune
import pytest


def test_load_does_not_execute_the_file(tmp_path: Path) -> None:
    """A reference knows path, name and hash; the file runs only when it is resolved, which workers do."""
    path = tmp_path / "model.py"
    path.write_text("raise RuntimeError('executed')\n")

    reference = bstune.load(f"{path}:mine")

    assert (reference.name, reference.default_study_name) == ("mine", "model-mine")
    with pytest.raises(RuntimeError, match="executed"):
        reference.resolve()


@pytest.mark.parametrize("target", ["missing.py", "missing.py:name", "no_such_thing", "data.csv"])
def test_missing_file_is_named(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that leads nowhere is one clear error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("1,2\n")

    with pytest.raises(bstune.ObjectiveError, match=target.split(":")[0]):
        bstune.load(target)


def test_file_without_objective_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    """The message names what the file has, and the objective under another name if there is one."""
    path = tmp_path / "model.py"
    path.write_text("import bstune\nrate = 3\n@bstune.objective(n_samples=5)\ndef train(trial): ...\n")

    with pytest.raises(bstune.ObjectiveError, match=r"has no 'objective'.*found train.*model.py:train"):
        bstune.load(path).resolve()
