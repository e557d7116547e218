"""Folders in which things lie that have the names of bstune's files, and commands that are typed there."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import stat
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from bstune.cli import main
from bstune.objectives import seal
from click.testing import CliRunner
from hypothesis import strategies as st

LOOP = """
import bstune

@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def objective(trial):
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2, samples=samples)
"""
NET = """
import bstune, torch

def data(seed):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))

objective = bstune.Supervised(
    model=lambda: torch.nn.Linear(4, 1),
    train_data=data(0),
    val_data=data(1),
    loss=torch.nn.functional.mse_loss,
    epochs=4,
    name="formula",
)
"""
SEARCH = (
    "--isolation",
    "none",
    "--space",
    "batch_size=16",
    "--space",
    "learning_rate=0.001,0.01",
    "--budget",
    "2",
    "--confirm",
    "0",
)
BLOCKED_S = 30.0


# --- what may lie around ------------------------------------------------------------------------------------------

TEXTS = {
    "text": b"my notes\n",
    "text without a last newline": b"my notes",
    "empty": b"",
    "lines of JSON": b'{"epoch": 1}\n{"epoch": 2}\n',
    "lines of JSON with operations": b'{"op_code": 99, "worker_id": "x"}\n{"op_code": "create"}\n',
    "JSON": b'{"epoch": 1}',
    "a list": b"[1, 2]\n",
    "almost a database": b"SQLite format 3\0" + b"x" * 184,
}
ENDLESS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT count(*) AS study_id, 'x' AS study_name FROM n"
)
FOREIGN = {
    "notes": "CREATE TABLE notes (t); INSERT INTO notes VALUES ('mine');",
    "notes in write-ahead mode": "PRAGMA journal_mode=WAL; CREATE TABLE notes (t); INSERT INTO notes VALUES ('mine');",
    "studies of something else": "CREATE TABLE studies (id INTEGER PRIMARY KEY, title TEXT); INSERT INTO studies "
    "VALUES (1, 'mine');",
    "studies and trials of something else": "CREATE TABLE studies (study_id INTEGER PRIMARY KEY, study_name TEXT);"
    "CREATE TABLE trials (trial_id INTEGER PRIMARY KEY, study_id INTEGER); INSERT INTO studies VALUES (1, 'mine');",
    "a view without an end": f"CREATE VIEW studies AS {ENDLESS};",
    "a table of studies and a view without an end": "CREATE TABLE studies (study_id INTEGER PRIMARY KEY, study_name "
    f"TEXT);CREATE VIEW version_info AS {ENDLESS}; CREATE VIEW alembic_version AS {ENDLESS};",
    "a trigger": "CREATE TABLE studies (study_id INTEGER PRIMARY KEY, study_name TEXT); CREATE TABLE mine (t); "
    "INSERT INTO mine VALUES (1);CREATE TRIGGER t AFTER INSERT ON studies BEGIN DELETE FROM mine; END;",
    "no tables": "VACUUM;",
}
DATABASES = ("optuna.db", "bstune.db", "optuna with a trigger.db")
JOURNALS = ("optuna.journal", "bstune.journal")
NAMES = (
    "bstune.db",
    "bstune.db.lock",
    "bstune.db-wal",
    "bstune.db-shm",
    "bstune.db-journal",
    "bstune.db.checkpoints-formula",
    "runs.journal",
    "runs.journal.lock",
    "runs.journal.writer.lock",
    "runs.journal.checkpoints-formula",
    "probe.png",
    "bstune",
    "bstune/key",
)
URLS = (
    "sqlite:///bstune.db",
    "journal:///runs.journal",
    "sqlite:///runs.journal",
    "journal:///bstune.db",
    "sqlite:///bstune.db.lock",
    "sqlite:///bstune.db-wal",
    "sqlite:///probe.png",
    "journal:///bstune.db.checkpoints-formula",
)


@dataclass(frozen=True)
class Thing:
    """One thing in the folder: a file, a link, a hard link, a folder or a pipe."""

    kind: str
    content: str | bytes = "text"
    mode: int = 0o644


CONTENTS = st.sampled_from([*TEXTS, *FOREIGN, *DATABASES, *JOURNALS]) | st.binary(min_size=1, max_size=40)
THINGS = (
    st.builds(Thing, st.just("file"), CONTENTS, st.sampled_from([0o644, 0o600, 0o444, 0o666]))
    | st.builds(Thing, st.sampled_from(["link", "hard link"]), CONTENTS)
    | st.builds(Thing, st.sampled_from(["folder", "link to a folder", "link to nothing", "pipe"]))
)
LYING = st.dictionaries(st.sampled_from(NAMES), THINGS, min_size=1, max_size=4)


class Stock(dict[str, bytes]):
    """The contents of files, by name."""

    def __repr__(self) -> str:
        """Say it in a word, since Hypothesis shows what a failed test was given."""
        return "stock"


def opened(path: Path, scheme: str) -> optuna.storages.BaseStorage:
    """Open a storage as plain Optuna does."""
    if scheme == "sqlite":
        return optuna.storages.RDBStorage(f"sqlite:///{path}")
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def fill(storage: optuna.storages.BaseStorage) -> None:
    """Add a study of another program: one trial that has ended, one that has failed and one that runs."""
    study = optuna.create_study(storage=storage, study_name="somebody's")
    study.set_user_attr("note", "mine")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    study.ask()
    close(storage)


def close(storage: optuna.storages.BaseStorage) -> None:
    """Let go of a storage's file."""
    storage.remove_session()
    if isinstance(storage, optuna.storages.RDBStorage):
        storage.engine.dispose()


class Place:
    """A folder with things in it, victims outside of it, and what is known of every file."""

    def __init__(self, base: Path, lying: dict[str, Thing], stock: Stock) -> None:
        """Lay the things out."""
        self.base = base
        self.here = base / "here"
        self.outside = base / "outside"
        self.here.mkdir(parents=True)
        self.outside.mkdir()
        self.stock = stock
        self.storages: dict[int, str] = {}
        """By inode: the scheme of a file that is a true storage of Optuna, or `any` for an empty one."""
        for name in sorted(lying):
            path = self.here / name
            path.parent.mkdir(exist_ok=True) if not os.path.lexists(path.parent) else None
            if path.parent.is_dir() and not path.parent.is_symlink():
                self._lay(path, lying[name])

    def _lay(self, path: Path, thing: Thing) -> None:
        victim = self.outside / path.name
        if thing.kind == "file":
            self._write(path, thing)
        elif thing.kind in ("link", "hard link"):
            self._write(victim, thing)
            path.symlink_to(victim) if thing.kind == "link" else path.hardlink_to(victim)
        elif thing.kind in ("folder", "link to a folder"):
            folder = path if thing.kind == "folder" else victim
            (folder / "inner").mkdir(parents=True)
            for name in ("trial-0.pt", "notes.txt", ".hidden", "inner/thesis.txt"):
                (folder / name).write_text("mine")
            path.symlink_to(folder) if thing.kind == "link to a folder" else None
        elif thing.kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(self.outside / "nothing")

    def _write(self, path: Path, thing: Thing) -> None:
        content = thing.content if isinstance(thing.content, bytes) else self.stock[thing.content]
        path.write_bytes(content)
        path.chmod(thing.mode)
        if thing.content in (
            *DATABASES,
            "no tables",
        ):  # Without tables, as a search leaves it that is killed as it begins.
            self.storages[path.stat().st_ino] = "sqlite"
        elif thing.content in JOURNALS:
            self.storages[path.stat().st_ino] = "journal"
        elif not content:
            self.storages[path.stat().st_ino] = "any"

    def contents(self) -> dict[str, tuple[Any, ...]]:
        """Return what lies here and outside: kind, mode, owner, inode, links, and its bytes or where it leads."""
        found: dict[str, tuple[Any, ...]] = {}
        for path in sorted(self.base.rglob("*")):
            at = path.lstat()
            is_file, is_link = stat.S_ISREG(at.st_mode), stat.S_ISLNK(at.st_mode)
            inside = path.read_bytes() if is_file else os.readlink(path) if is_link else None
            found[str(path.relative_to(self.base))] = (
                inside,
                at.st_mode,
                at.st_uid,
                at.st_ino,
                at.st_nlink if is_file else 0,
            )
        return found

    def run(self, command: tuple[str, ...]) -> None:
        """Run a command, and compare what it has left with what was there."""
        before = self.contents()
        url = command[command.index("--storage") + 1] if "--storage" in command else "sqlite:///bstune.db"
        scheme, _, name = url.partition(":///")
        storage = (self.here / name).resolve()
        said, typed = answer(command), " ".join(command)
        after = self.contents()
        for path, was in before.items():
            now = after.get(path)
            assert now is not None, f"{typed}: {path} is gone; {said}"
            if now != was:
                assert now[1:] == was[1:], f"{typed}: {path} was {was[1:]}, is {now[1:]}; {said}"
                assert is_same(self.base / path, storage), f"{typed}: {path} was written to; {said}"
                assert self.storages.get(was[3]) in (scheme, "any"), (
                    f"{typed}: {path} was no storage, and was written to; {said}"
                )
                self._holds_all(was[0], now[0], scheme)
                self.storages[was[3]] = scheme
        new = {self.base / path for path in after.keys() - before.keys()}
        mine = {storage, self.here / "bstune", self.here / "bstune" / "key"}
        assert new <= mine, f"{typed}: left {sorted(map(str, new - mine))}; {said}"
        if storage in new:
            self.storages[storage.stat().st_ino] = scheme

    def _holds_all(self, was: bytes, now: bytes, scheme: str) -> None:
        """Assert that all studies and trials of a storage are still there."""
        if was:
            old, new = (self._read(content, scheme) for content in (was, now))
            lost = {study: rest for study, rest in old.items() if not set(rest) <= set(new.get(study, ()))}
            assert not lost, f"lost of {lost}: now {new}"

    def _read(self, content: bytes, scheme: str) -> dict[str, list[str]]:
        """Return the trials of all studies as text, and the attributes of those that bstune did not make."""
        copy = self.base.with_name("copy")
        copy.write_bytes(content)
        storage = opened(copy, scheme)
        found = {}
        for study in storage.get_all_studies():
            trials = [repr(trial) for trial in storage.get_all_trials(study._study_id)]
            found[study.study_name] = [
                *trials,
                *([] if "bstune_schema" in study.user_attrs else [repr(study.user_attrs)]),
            ]
        close(storage)
        copy.unlink()
        return found


def is_same(path: Path, storage: Path) -> bool:
    """Whether two paths lead to the same file."""
    return path.exists() and storage.exists() and path.samefile(storage)


# --- what is done there -------------------------------------------------------------------------------------------


def answer(command: tuple[str, ...]) -> str:
    """Return what a command says; it succeeds, or there is one message and its exit code."""
    typed = " ".join(command)
    forking = multiprocessing.get_context(
        "fork"
    )  # In a process of its own, since what waits inside of SQLite cannot be interrupted.
    ours, theirs = forking.Pipe(duplex=False)
    process = forking.Process(target=answer_here, args=(command, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(BLOCKED_S), f"{typed} still runs after {BLOCKED_S:g} s"
        outcome = ours.recv()
    finally:
        process.kill()
        process.join()
        ours.close()
    return checked(command, *outcome)


def checked(command: tuple[str, ...], exit_code: int, stdout: str, stderr: str, exception: str) -> str:
    """Return what a command says, which is success, or one message and its exit code."""
    typed = " ".join(command)
    said = f"exit {exit_code}, {stdout!r}, {stderr!r} {exception}"
    assert not exception, f"{typed}: {exception}"
    assert exit_code in (0, 1, 2), f"{typed}: {said}"
    assert "Traceback" not in stdout + stderr, f"{typed}: {said}"
    if exit_code != 0 and command[0] not in ("doctor", "seal"):
        assert stdout == "", f"{typed}: {said}"
        assert stderr.count("Error: ") == 1, f"{typed}: {said}"
    return said


def answer_here(command: tuple[str, ...], connection: Any) -> None:
    """Send what a command says."""
    connection.send(outcome_here(command))


def outcome_here(command: tuple[str, ...]) -> tuple[int, str, str, str]:
    """Return what a command says: exit code, stdout, stderr, and the traceback of what it should have caught."""
    if command == ("seal",):  # What every search of a file does first.
        with contextlib.suppress(seal._NoKeyError):
            seal._make_key()
        return 0, "", "", ""
    result = CliRunner().invoke(main, command)
    unforeseen = result.exception is not None and not isinstance(result.exception, SystemExit)
    trace = "".join(traceback.format_exception(result.exception)) if unforeseen else ""
    return result.exit_code, result.stdout, result.stderr, trace
