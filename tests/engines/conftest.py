"""What the tests of Ray start."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bstune.tests.engines.ray_searches import (
    MODEL,
    SHAPE,
    node_arguments,
)


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


@pytest.fixture
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make a cluster on this machine: an empty head and nodes of one trial each; nothing is reachable from outside."""
    from bstune.tuner.engines.ray_start import token

    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token())
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name, value in request.param().items():
        monkeypatch.setenv(name, value)
    from ray._private.authentication import authentication_token_setup
    from ray.cluster_utils import Cluster

    authentication_token_setup._enable_token_auth()  # Ray may have been imported before, and then does not look again.
    cluster = Cluster(initialize_head=True, head_node_args=node_arguments(0))
    try:
        yield cluster
    finally:
        cluster.shutdown()
