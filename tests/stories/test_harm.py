"""What bstune did not make stays as it is, and what it made is not lost when somebody takes it away."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bstune
import optuna
import pytest
from bstune.tuner.core.errors import StudyError
from bstune.tuner.show import show
from bstune.tuner.studies import own_files
from bstune.tuner.studies import sqlite as sqlite_module
from bstune.tuner.studies.catalog import make_study
from bstune.tuner.studies.checkpoints import MARK, checkpoint_folder
from bstune.tuner.studies.location import locate
from bstune.tuner.studies.storage import open_storage, read_storage

SPACE = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}
VICTIM = "my only copy\n"


@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def formula(trial: bstune.Trial) -> None:
    """A bowl in the learning rate."""
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2 + 100 / samples, samples=samples)


def search(url: str, **changes: Any) -> bstune.SearchResult:
    """Search the formula in this process."""
    arguments: dict[str, Any] = {"isolation": "none", "space": SPACE, "budget": 2, "storage": url}
    return bstune.search(formula, **(arguments | changes))


def contents(folder: Path) -> dict[str, Any]:
    """Every file and link below a folder, with its content."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def check_unharmed(folder: Path, message: str, url: str) -> None:
    """A search is refused with this message, and nothing in the folder has changed."""
    before = contents(folder)
    with pytest.raises(StudyError, match=message):
        search(url)
    assert contents(folder) == before


# --- files of others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"no newline at all",
        b'{"a": 1}',
        b'{"a": 1}\n{"b": 2}\n',
        b"",
        b"\x00" * 100,
        b"[" * 200_000 + b"\n",
        b'"x"\n',
        b'{"op_code": "0"}\n',
    ],
)
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_file_of_somebody_else_is_no_storage(tmp_path: Path, kind: str, content: bytes) -> None:
    """Whatever is in it: also where a journal could be torn, and where nothing is in it at all."""
    (tmp_path / "notes").write_bytes(content)
    check_unharmed(
        tmp_path,
        r"not a journal of Optuna|it is not a database|is empty, and bstune makes no empty file",
        f"{kind}:///{tmp_path}/notes",
    )


def link(path: Path, victim: Path) -> None:
    """A link to it."""
    path.symlink_to(victim)


def hard_link(path: Path, victim: Path) -> None:
    """Another name of it."""
    os.link(victim, path)


def copy(path: Path, victim: Path) -> None:
    """A file of its own."""
    shutil.copyfile(victim, path)


def folder_of(path: Path, victim: Path) -> None:
    """A folder with it in it."""
    path.mkdir()
    shutil.copyfile(victim, path / "file")


def dangling(path: Path, victim: Path) -> None:
    """A link to nothing."""
    path.symlink_to(victim.with_name("nowhere"))


@pytest.mark.parametrize("make", [link, hard_link, copy, folder_of, dangling])
@pytest.mark.parametrize(
    "name",
    [
        "bstune.db",
        "bstune.db.lock",
        "bstune.db-wal",
        "bstune.db-shm",
        "bstune.db-journal",
        "bstune.db.checkpoints-formula",
    ],
)
@pytest.mark.parametrize("database", ["no database", "a database"])
def test_what_has_the_name_of_a_file_of_bstune_is_left_alone(
    tmp_path: Path, name: str, make: Callable[[Path, Path], None], database: str
) -> None:
    """A link, a hard link, a file or a folder: it is refused by its name, or not needed."""
    victim = tmp_path / "home" / "thesis.txt"
    victim.parent.mkdir()
    victim.write_text(VICTIM)
    place = tmp_path / "work"
    place.mkdir()
    url = f"sqlite:///{place}/bstune.db"
    if database == "a database" and name != "bstune.db":
        search(url)
    make(place / name, victim)
    before = contents(tmp_path)
    with contextlib.suppress(StudyError):  # Of the folder of checkpoints: a formula has none.
        search(url)
    after = contents(tmp_path)
    assert {path: content for path, content in after.items() if path in before and path != "work/bstune.db"} == {
        path: content for path, content in before.items() if path != "work/bstune.db"
    }
    assert victim.read_text() == VICTIM


def test_the_lock_file_of_another_program_is_not_deleted(tmp_path: Path) -> None:
    """`sqlite:///poetry` would be locked by `poetry.lock`."""
    (tmp_path / "poetry.lock").write_text("# generated by Poetry\n")
    check_unharmed(
        tmp_path,
        r"poetry\.lock has the name of the lock of .*poetry, and was not made by bstune",
        f"sqlite:///{tmp_path}/poetry",
    )


def test_an_empty_lock_file_is_used_and_stays(tmp_path: Path) -> None:
    """Programs that lock with `flock` leave such files: it is as good as ours, and still theirs."""
    url = f"sqlite:///{tmp_path}/bstune.db"
    (tmp_path / "bstune.db.lock").touch()
    with open_storage(url) as storage:
        make_study(storage, "digits")
        with pytest.raises(StudyError, match="in use"):
            open_storage(url)
    assert sorted(contents(tmp_path)) == ["bstune.db", "bstune.db.lock"]
    assert (tmp_path / "bstune.db.lock").read_bytes() == b""


def stale_log(path: Path) -> None:
    """Leave beside this name the log of a database whose search was killed."""
    code = (
        "import os\nfrom bstune.tuner.studies.storage import open_storage\nfrom bstune.tuner.studies.catalog import "
        f"make_study\nmake_study(open_storage('sqlite:///{path}'), 'killed')\nos._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    path.with_name(f"{path.name}.lock").unlink()


def test_the_log_of_another_database_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """A backup put in the place of a database whose search was killed: the old log would overwrite it."""
    search(f"sqlite:///{tmp_path}/backup.db")
    stale_log(tmp_path / "bstune.db")
    shutil.copyfile(tmp_path / "backup.db", tmp_path / "bstune.db")
    check_unharmed(tmp_path, r"bstune\.db-wal was not made by SQLite|is left alone", f"sqlite:///{tmp_path}/bstune.db")


def test_a_log_with_two_names_is_left_alone(tmp_path: Path) -> None:
    """It is another database's, too."""
    stale_log(tmp_path / "other.db")
    stale_log(tmp_path / "bstune.db")
    (tmp_path / "bstune.db-wal").unlink()
    os.link(tmp_path / "other.db-wal", tmp_path / "bstune.db-wal")
    check_unharmed(tmp_path, "is left alone", f"sqlite:///{tmp_path}/bstune.db")


def test_a_killed_search_goes_on_by_the_name_that_it_had(tmp_path: Path) -> None:
    """By another name of the same file its last results would not be seen, and be lost."""
    stale_log(tmp_path / "bstune.db")
    os.link(tmp_path / "bstune.db", tmp_path / "other.db")
    check_unharmed(tmp_path, "has several names", f"sqlite:///{tmp_path}/other.db")
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        assert storage.names() == ["killed"]


def test_the_lock_that_another_user_left_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where each may only remove what is theirs, it cannot be removed: that is not tried for ever."""
    (tmp_path / "bstune.db.lock").write_text('{"program": "bstune", "pid": 1, "host": "a", "since": "2026"}')

    def refused(path: Any, **_: Any) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises(StudyError, match="belongs to another user"):
        open_storage(f"sqlite:///{tmp_path}/bstune.db")


# --- databases of others ------------------------------------------------------------------------------------------


def made(path: Path, *statements: str) -> None:
    """Make a database, or add to one."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


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


def test_a_path_that_cannot_be_is_one_error(tmp_path: Path) -> None:
    """The name is longer than a file system takes."""
    with pytest.raises(StudyError, match="cannot be used"):
        search(f"sqlite:///{tmp_path}/{'a' * 300}.db")


def test_a_folder_may_have_a_name_that_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a file system a name is bytes."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(odd)
    monkeypatch.chdir(odd)
    search("sqlite:///bstune.db")
    assert os.listdir(odd) == ["bstune.db"]


# --- one database, one lock ---------------------------------------------------------------------------------------


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


def test_a_path_may_hold_whatever_a_path_may_hold(tmp_path: Path) -> None:
    """`#`, spaces, quotes and braces: one file, of that name, and no other."""
    name = "a#b % {x}'.db"
    search(f"sqlite:///{tmp_path}/{name}")
    assert list(contents(tmp_path)) == [name]
    assert len(search(f"sqlite:///{tmp_path}/{name}").records) > 0


# --- taken away under the search ----------------------------------------------------------------------------------


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


# --- checkpoints --------------------------------------------------------------------------------------------------


def a_study(storage: Any) -> Any:
    """A study whose trials can go on."""
    study = make_study(storage, "digits")
    study.set(facts={"can_continue": True})
    return study


@pytest.mark.parametrize("make", [link, copy, folder_of, dangling])
def test_a_folder_of_checkpoints_that_is_somebody_elses(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    """A link to a home folder, a file, a folder without the mark: refused, and nothing in it is deleted."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "trial-0.pt").write_text(VICTIM)
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        study = a_study(storage)
        make(tmp_path / "bstune.db.checkpoints-digits", home if make is link else home / "trial-0.pt")
        before = contents(tmp_path)
        with pytest.raises(StudyError, match="and was not made by bstune"), checkpoint_folder(study):
            pass
        assert contents(tmp_path) == before
    assert (home / "trial-0.pt").read_text() == VICTIM


def test_what_others_put_into_our_folder_stays(tmp_path: Path) -> None:
    """Only names that bstune writes are emptied; then the folder stays, too."""
    folder = tmp_path / "bstune.db.checkpoints-digits"
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        study = a_study(storage)
        with checkpoint_folder(study) as path:
            assert path == folder
            (folder / "trial-0.pt").write_text("ours")
            (folder / "notes.txt").write_text(VICTIM)
        assert contents(folder) == {MARK: (folder / MARK).read_bytes(), "notes.txt": VICTIM.encode()}
        (folder / "notes.txt").unlink()
        with checkpoint_folder(study):
            pass
    assert not folder.exists()


def test_a_long_name_of_a_study_has_a_folder(tmp_path: Path) -> None:
    """Two of them have two."""
    names = ["é" * 150 + end for end in "ab"]
    folders = {locate(f"sqlite:///{tmp_path}/bstune.db").checkpoint_path(name) for name in names}
    assert len(folders) == 2
    for folder in folders:
        assert folder is not None
        folder.mkdir()


def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could put a link where a checkpoint is written next. A folder that all may write to is as bad."""
    folder = tmp_path / "bstune.db.checkpoints-digits"
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        study = a_study(storage)
        folder.mkdir()
        (folder / MARK).touch()
        folder.chmod(0o777)
        with pytest.raises(StudyError, match="not made by bstune for this user"), checkpoint_folder(study):
            pass
        folder.chmod(0o700)
        us = os.geteuid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: us + 1)
            with pytest.raises(StudyError, match="not made by bstune for this user"), checkpoint_folder(study):
                pass


def test_a_folder_that_was_not_marked_in_time_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk was full, or the search was killed, right after it was made."""
    folder = tmp_path / "bstune.db.checkpoints-digits"
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        study = a_study(storage)
        folder.mkdir(mode=0o700)
        with checkpoint_folder(study) as path:
            assert path == folder
        assert not folder.exists()


# --- files that are born whole ------------------------------------------------------------------------------------


def test_a_file_is_never_seen_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that can name a finished file, and on one that cannot."""
    path = tmp_path / "new"
    seen = []
    os.close(own_files.create_whole(path, b"all", before_naming=lambda fd: seen.append(path.exists())))
    assert (path.read_bytes(), seen) == (b"all", [False])
    with pytest.raises(FileExistsError):
        own_files.create_whole(path, b"other")
    path.unlink()
    monkeypatch.delattr(os, "O_TMPFILE")
    os.close(own_files.create_whole(path, b"all"))
    assert path.read_bytes() == b"all"
    with pytest.raises(FileExistsError):
        own_files.create_whole(path, b"other")
    assert path.read_bytes() == b"all"
