"""A storage has one writer and many readers; what cannot be one is refused, and a full disk loses nothing."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bstune.tests.studies.written import opened, run_one
from bstune.tuner.core.errors import StudyError
from bstune.tuner.studies.storage import Storage, open_storage, read_storage
from bstune.tuner.studies.study import Study

# --- one writer, many readers -------------------------------------------------------------------------------------


def test_the_second_writer_is_told_who_holds_the_storage(url: str) -> None:
    """It names the process, and the first one is not disturbed."""
    with opened(url) as study:
        with pytest.raises(StudyError, match=rf"in use: process {os.getpid()} on .* uses it since 20.*Wait for it"):
            open_storage(url)
        run_one(study)
    assert sorted(path.name for path in Path(url.removeprefix("sqlite:///")).parent.iterdir()) == ["bstune.db"]


def test_the_lock_of_a_dead_process_is_taken_over(url: str, tmp_path: Path) -> None:
    """A lock file that nobody has locked costs nothing."""
    code = f"import os; from bstune.tuner.studies.storage import open_storage; open_storage({url!r}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (tmp_path / "bstune.db.lock").exists()
    with opened(url) as study:
        run_one(study)
    assert not (tmp_path / "bstune.db.lock").exists()


def test_readers_never_wait_for_the_writer(url: str, tmp_path: Path) -> None:
    """While a write is under way, a reader that is not ready to wait reads what was there before."""
    with opened(url) as study:
        run_one(study)
        with study.storage.backend.engine.begin() as writing:  # type: ignore[attr-defined]
            writing.exec_driver_sql("UPDATE studies SET study_name = 'other'")
            with contextlib.closing(sqlite3.connect(tmp_path / "bstune.db", timeout=0)) as reader:
                assert reader.execute("SELECT study_name FROM studies").fetchall() == [("digits",)]
            with read_storage(url) as storage:
                assert storage.names() == ["digits"]
            writing.rollback()


def test_reading_makes_nothing(url: str, tmp_path: Path) -> None:
    """Asking for a study in a storage that is not there is an error and leaves no file."""
    with pytest.raises(StudyError, match="There is no storage"):
        read_storage(url)
    assert list(tmp_path.iterdir()) == []


def test_a_new_storage_that_stays_empty_is_removed(url: str, tmp_path: Path) -> None:
    """A search that failed before it had a study leaves nothing."""
    open_storage(url).close()
    assert list(tmp_path.iterdir()) == []


def test_a_storage_in_memory_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sqlite:///:memory:` works and leaves nothing."""
    monkeypatch.chdir(tmp_path)
    with opened("sqlite:///:memory:") as study:
        assert run_one(study).number == 0
    assert list(tmp_path.iterdir()) == []


def test_a_brace_in_the_path_is_only_a_brace(tmp_path: Path) -> None:
    """Optuna formats its URL; a folder called {x} must not matter."""
    (tmp_path / "{x}").mkdir()
    with opened(f"sqlite:///{tmp_path}/{{x}}/bstune.db") as study:
        run_one(study)
    assert (tmp_path / "{x}" / "bstune.db").exists()


# --- what a storage can be besides one ------------------------------------------------------------------------------


def test_a_file_that_is_no_database(url: str, tmp_path: Path) -> None:
    """It is named, not touched, and no lock is left."""
    (tmp_path / "bstune.db").write_text("my thesis " * 1000)
    for attempt in (open_storage, read_storage):
        with pytest.raises(
            StudyError, match=r"bstune\.db cannot be used: it is not a database\. Name another file with --storage"
        ):
            attempt(url)
    assert (tmp_path / "bstune.db").read_text() == "my thesis " * 1000
    assert not (tmp_path / "bstune.db.lock").exists()


def test_a_database_of_something_else(url: str, tmp_path: Path) -> None:
    """Optuna's tables are not added to somebody's address book."""
    with contextlib.closing(sqlite3.connect(tmp_path / "bstune.db")) as connection:
        connection.execute("CREATE TABLE addresses (name)")
        connection.commit()
    with pytest.raises(StudyError, match=r"something else \(tables addresses\)"):
        open_storage(url)
    with contextlib.closing(sqlite3.connect(tmp_path / "bstune.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("addresses",)]


def test_a_read_only_storage(url: str, tmp_path: Path) -> None:
    """`mode=ro` can be shown but not searched in; permission bits would prove nothing for root."""
    with opened(url) as study:
        run_one(study)
    read_only = f"sqlite:///file:{tmp_path}/bstune.db?mode=ro&uri=true"
    with pytest.raises(StudyError, match=r"cannot be written \(read-only\)"):
        open_storage(read_only)
    with read_storage(read_only) as storage:
        assert storage.names() == ["digits"]
    with opened(url) as study:
        assert len(study.records) == 1


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("sqlite:///{tmp}/missing/bstune.db", "its folder does not exist"),
        ("sqlite:///{tmp}", "is a folder"),
        ("oracle://localhost/db", "of an unknown kind: expected sqlite:///FILE"),
        ("runs.db", r"is not a storage URL: expected sqlite:///FILE.*; for a file, sqlite:///runs\.db"),
        ("journal:", "names no file"),
    ],
)
def test_urls_that_cannot_be(bad: str, said: str, tmp_path: Path) -> None:
    """Each has one clear message."""
    with pytest.raises(StudyError, match=said):
        open_storage(bad.format(tmp=tmp_path))


def fill_up(storage: Storage) -> None:
    """Let SQLite say SQLITE_FULL from the next page on."""
    import sqlalchemy

    engine = storage.backend.engine  # type: ignore[attr-defined]

    @sqlalchemy.event.listens_for(engine, "connect")
    def limit(connection: Any, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")

    storage.backend.remove_session()
    engine.dispose()


def fill(study: Study) -> None:
    """Write until there is no room."""
    for _ in range(200):
        run_one(study)


def test_a_full_disk_loses_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error; finished trials are there once there is room, and Python's random numbers are as before."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # Optuna tries five times, with random pauses.
    state = random.getstate()
    with opened(url) as study:
        kept = run_one(study)
        fill_up(study.storage)
        with pytest.raises(StudyError, match=r"the disk is full\. Free some space and run the same command again"):
            fill(study)
    assert random.getstate() == state
    with opened(url) as study:
        study.sweep()
        assert study.records[0] == kept
        assert run_one(study).state == "complete"


def test_tables_of_another_optuna(url: str, tmp_path: Path) -> None:
    """A schema that this Optuna does not know is said in one sentence."""
    with opened(url):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "bstune.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
        connection.commit()
    with pytest.raises(StudyError, match="another version of Optuna made its tables"):
        open_storage(url)
