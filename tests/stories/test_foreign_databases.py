"""Databases that other programs made or changed are left alone, and run nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from bstune.tests.stories.victims import (
    check_unharmed,
    made,
    search,
)
from bstune.tuner.core.errors import StudyError
from bstune.tuner.show import show
from bstune.tuner.studies import sqlite as sqlite_module
from bstune.tuner.studies.catalog import make_study
from bstune.tuner.studies.storage import open_storage, read_storage

ENDLESS = (
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS study_id, 'a' AS study_name FROM n"
)


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["CREATE TABLE studies (id INTEGER, title TEXT)"], "database of something else"),
        (
            [
                "CREATE TABLE studies (study_id, study_name)",
                "CREATE TABLE trials (trial_id, study_id)",
                "CREATE TABLE version_info (schema_version)",
            ],
            "another version of Optuna",
        ),
        (
            [f"CREATE VIEW studies AS {ENDLESS}", "CREATE TABLE trials (a)", "CREATE TABLE version_info (a)"],
            "holds code that would run",
        ),
        (["CREATE TABLE contacts (name)"], "database of something else"),
    ],
)
def test_a_database_of_another_program_is_not_written_to(tmp_path: Path, statements: list[str], said: str) -> None:
    """Also where it has a table, or a view without end, of one of Optuna's names."""
    made(tmp_path / "bstune.db", *statements)
    check_unharmed(tmp_path, said, f"sqlite:///{tmp_path}/bstune.db")
    with pytest.raises(StudyError, match=said):
        read_storage(f"sqlite:///{tmp_path}/bstune.db")


@pytest.mark.parametrize(
    "statements",
    [
        [
            "DROP TABLE trial_values",
            "CREATE VIEW trial_values AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT * "
            "FROM n",
        ],
        ["CREATE TRIGGER more AFTER INSERT ON trials BEGIN DELETE FROM studies; END"],
    ],
)
def test_code_in_a_database_is_not_run(tmp_path: Path, statements: list[str]) -> None:
    """A trigger would run at the first write, a view in place of a table at the first look."""
    search(f"sqlite:///{tmp_path}/bstune.db")
    made(tmp_path / "bstune.db", *statements)
    check_unharmed(tmp_path, "holds code that would run when bstune uses it", f"sqlite:///{tmp_path}/bstune.db")


def test_a_statement_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a database still find a way: the search is not deaf for ever."""
    url = f"sqlite:///{tmp_path}/bstune.db"
    with open_storage(url) as storage:
        make_study(storage, "digits")
    monkeypatch.setattr(sqlite_module, "STATEMENT_S", 0.1)
    with (
        read_storage(url) as storage,
        pytest.raises(StudyError, match="took longer than two minutes"),
        storage.guard(),
        storage.backend.engine.connect() as connection,  # type: ignore[attr-defined]
    ):
        connection.exec_driver_sql(f"SELECT count(*) FROM ({ENDLESS})")


def test_other_studies_in_a_database_stay(tmp_path: Path) -> None:
    """A database of Optuna is shared, not taken over."""
    url = f"sqlite:///{tmp_path}/bstune.db"
    theirs = optuna.create_study(study_name="theirs", storage=url)
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    before = theirs.trials
    search(url)
    assert optuna.load_study(study_name="theirs", storage=url).trials == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE study_directions SET direction = 'UP'",
        "UPDATE studies SET study_name = x'ff00fe' WHERE study_id = 1",
        "UPDATE study_user_attributes SET value_json = 'null' WHERE key = 'used_s'",
        "UPDATE study_user_attributes SET value_json = '\"x\"' WHERE key = 'used_s'",
    ],
)
def test_values_of_another_program_are_one_error_or_none(tmp_path: Path, statement: str) -> None:
    """Never a traceback."""
    url = f"sqlite:///{tmp_path}/bstune.db"
    search(url)
    search(url, study="other")
    made(tmp_path / "bstune.db", statement)
    attempts: list[Callable[[], Any]] = [lambda: show(storage=url), lambda: search(url, study="other", budget=3)]
    for attempt in attempts:
        try:
            answer = attempt()
        except StudyError as error:
            answer = str(error)
        assert answer


@pytest.mark.parametrize(
    "line",
    [b'{"op_code": 4, "worker_id": "x"}', b'{"op_code": 0, "worker_id": "x", "study_name": "a", "directions": [9]}'],
)
def test_a_journal_of_impossible_entries_is_one_error(tmp_path: Path, line: bytes) -> None:
    """They look like Optuna's, and are not."""
    (tmp_path / "runs.journal").write_bytes(line + b"\n")
    check_unharmed(tmp_path, "what is stored in it is damaged", f"journal:///{tmp_path}/runs.journal")


def by_link(folder: Path) -> Path:
    """A link to the file."""
    (folder / "other.db").symlink_to(folder / "bstune.db")
    return folder / "other.db"


def by_folder(folder: Path) -> Path:
    """A link to the folder."""
    (folder / "elsewhere").symlink_to(folder)
    return folder / "elsewhere" / "bstune.db"


def by_hard_link(folder: Path) -> Path:
    """Another name of the same file, with a sidecar of its own."""
    os.link(folder / "bstune.db", folder / "other.db")
    return folder / "other.db"


def without_lock(folder: Path) -> Path:
    """The same path, but the sidecar is gone."""
    (folder / "bstune.db.lock").unlink()
    return folder / "bstune.db"


@pytest.mark.parametrize("other", [by_link, by_folder, by_hard_link, without_lock])
def test_a_second_writer_is_refused_whatever_the_path(tmp_path: Path, other: Callable[[Path], Path]) -> None:
    """The lock belongs to the file. In a process of its own, as a second search would be."""
    first = open_storage(f"sqlite:///{tmp_path}/bstune.db")
    make_study(first, "digits")
    url = f"sqlite:///{other(tmp_path)}"
    code = f"from bstune.tuner.studies.storage import open_storage; open_storage({url!r})"
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is in use" in second.stderr
    with contextlib.suppress(StudyError):
        first.close()
    open_storage(f"sqlite:///{tmp_path}/bstune.db").close()
