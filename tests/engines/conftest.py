"""What the tests of Ray start."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bstune.tests.engines.ray_searches import MODEL, SHAPE


@pytest.fixture(scope="module")
def needs_ray() -> None:
    """Skip where Ray is missing. Only here, since it takes a second in each process that collects the tests."""
    pytest.importorskip("ray.tune", reason="Ray is not installed: pip install 'bstune[ray]'")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A formula in a file with a neighbour, in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "shape.py").write_text(SHAPE)
    (folder / "socket.py").write_text("raise ImportError('a file of the user was taken for one of Python')\n")
    (folder / "model.py").write_text(MODEL)
    return folder / "model.py"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage that does not exist yet."""
    return f"sqlite:///{tmp_path}/bstune.db"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of this test alone, with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
