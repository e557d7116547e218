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


def test_the_only_objective_of_a_file_may_have_any_name(tmp_path: Path) -> None:
    """With two, the message names what the file has, and how to say which."""
    path = tmp_path / "model.py"
    train = "@bstune.objective(n_samples=5)\ndef train(trial): ...\n"
    path.write_text(f"import bstune\nrate = 3\n{train}")
    assert bstune.load(path).resolve().name is None
    assert bstune.load(path).default_study_name == "model"

    path.write_text(f"import bstune\nrate = 3\n{train}{train.replace('train', 'other')}")
    with pytest.raises(bstune.ObjectiveError, match=r"has no 'objective'.*found train, other.*model.py:train"):
        bstune.load(path).resolve()
