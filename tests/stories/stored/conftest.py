"""A finished study with its model and the key that seals it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tests.stories.stored.stored import (
    MODEL,
    PROBE,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a finished search of model.py, by name: a seal names the path, so all tests go on in this folder."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        (folder / "model.py").write_text(MODEL)
        space: dict[str, Any] = {"batch_size": 16, "learning_rate": [0.001, 0.01]}
        bstune.search(
            bstune.load(folder / "model.py"),
            probe=PROBE,
            space=space,
            budget=2,
            device="cpu",
            storage=f"sqlite:///{folder}/bstune.db",
        )
    names = ("model.py", "bstune.db", "state/bstune/key")
    return {"": str(folder).encode(), **{name: (folder / name).read_bytes() for name in names}}


@pytest.fixture
def folder(made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the study, its model and the key as they were after the search."""
    folder = Path(made[""].decode())
    shutil.rmtree(folder)
    (folder / "state" / "bstune").mkdir(0o700, parents=True)
    for name, content in made.items():
        if name:
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600 if name.endswith("key") else 0o644)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)
    return folder
