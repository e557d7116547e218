"""Where the studies of these tests are kept."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage that does not exist yet."""
    return f"sqlite:///{tmp_path}/bstune.db"
