"""A storage or a lock that is taken away under a search ends it, and loses nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bstune.tests.stories.victims import (
    VICTIM,
    made,
    search,
)
from bstune.tuner.core.errors import StudyError
from bstune.tuner.studies.catalog import make_study
from bstune.tuner.studies.storage import open_storage


def remove(path: Path) -> None:
    """Delete it."""
    path.unlink()


def move_away(path: Path) -> None:
    """Give it another name."""
    path.rename(path.with_name("moved"))


def replace(path: Path) -> None:
    """Put something else in its place."""
    other = path.with_name("other")
    made(
        other, "CREATE TABLE theirs (a)", "INSERT INTO theirs VALUES (7)"
    ) if path.suffix == ".db" else other.write_text(VICTIM)
    other.rename(path)


def remove_folder(path: Path) -> None:
    """Delete the folder, too."""
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("harm", [remove, move_away, replace, remove_folder])
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_storage_taken_away_ends_the_search_and_loses_nothing(
    tmp_path: Path, kind: str, harm: Callable[[Path], None]
) -> None:
    """One error says where the results are; the same search goes on from there, and runs nothing twice."""
    place = tmp_path / "work"
    place.mkdir()
    path = place / ("bstune.db" if kind == "sqlite" else "runs.journal")
    finished: list[Any] = []

    def strike(progress: Any) -> None:
        if progress.kind == "finish":
            finished.append(progress.trial)
            if len(finished) == 3:
                harm(path)

    with pytest.raises(
        StudyError, match=r"was removed or replaced while this search wrote to it\. What was finished is saved in"
    ) as caught:
        search(f"{kind}:///{path}", callbacks=[strike])
    url = str(caught.value).rpartition("--storage ")[2].rstrip(".")
    assert search(url).records[:3] == tuple(finished)
    if harm is replace and kind == "sqlite":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT a FROM theirs").fetchall() == [(7,)]
    if harm is replace and kind == "journal":
        assert path.read_text() == VICTIM
    if harm is not remove_folder:
        assert {name for name in os.listdir(place) if name.endswith(("-wal", "-shm", "lock"))} == set()


def test_a_lock_taken_away_ends_the_search(tmp_path: Path) -> None:
    """Another search may have begun to write; what was finished is there, and the same command goes on."""
    url = f"sqlite:///{tmp_path}/bstune.db"
    finished: list[Any] = []

    def strike(progress: Any) -> None:
        if progress.kind == "finish":
            finished.append(progress.trial)
            if len(finished) == 3:
                (tmp_path / "bstune.db.lock").unlink()

    with pytest.raises(StudyError, match=r"The lock .*bstune\.db\.lock was removed or replaced while this search ran"):
        search(url, callbacks=[strike])
    assert search(url).records[:3] == tuple(finished)


def test_a_storage_that_is_gone_at_the_very_end_is_said(tmp_path: Path) -> None:
    """A result is not returned as stored when it is not."""
    storage = open_storage(f"sqlite:///{tmp_path}/bstune.db")
    make_study(storage, "digits")
    (tmp_path / "bstune.db").unlink()
    with pytest.raises(StudyError, match="saved in"):
        storage.close()
