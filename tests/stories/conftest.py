"""Where the studies of these tests are kept, and the model whose trials misbehave."""

from __future__ import annotations

from pathlib import Path

import pytest
from bstune.tests.stories.faulty import MODEL


@pytest.fixture(autouse=True)
def _formulas(formulas_take_no_time: None) -> None:
    """What most of these tests train is one; a file in which seconds are to tell has its own of this name."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage that does not exist yet."""
    return f"sqlite:///{tmp_path}/bstune.db"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model whose trials do what FAULTS says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path
