"""The storage that remembers: an ordinary Optuna storage with exactly one writer and any number of readers.

By default it is a SQLite file. The writer holds a sidecar lock (`bstune.db.lock`), never a lock on the database. While it
works the database is in write-ahead mode, so that readers never wait and never see "database is locked"; when it ends, the
database goes back to one plain file that can be copied and read anywhere. A journal file (`journal.py`) and a database server
(`server.py`) serve as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import random
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from . import journal, server
from .errors import StudyError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import URL

DEFAULT_URL = "sqlite:///bstune.db"
EXPECTED = "sqlite:///FILE, journal:///FILE, postgresql://... or mysql://..."
VARIABLE = "BSTUNE_STORAGE"
_BUSY_S = 60.0
"""How long a write waits for a reader that holds the database for a moment."""


class InUseError(StudyError):
    """Another process is the writer of this storage."""


class NoStudiesError(StudyError):
    """A database server answers, and has no tables of Optuna yet."""


@dataclass(frozen=True)
class Location:
    """Where a storage is."""

    url: str
    """As it may be shown and stored: without a password."""
    path: Path | None
    """The file; None for a storage in memory or in a server."""
    kind: Literal["sqlite", "journal", "server", "memory"] = "sqlite"
    server: URL | None = field(default=None, repr=False)

    @property
    def lock_path(self) -> Path | None:
        """The sidecar lock of the one writer; Optuna's own lock of a journal has the plain name."""
        return self.path and self.path.with_name(self.path.name + (".writer.lock" if self.kind == "journal" else ".lock"))

    def checkpoint_path(self, study: str) -> Path | None:
        """The folder for the checkpoints of a study, beside the file."""
        return self.path and self.path.with_name(f"{self.path.name}.checkpoints-{quote(study, safe=' ')}")


def locate(url: str | None) -> Location:
    """Find the storage: the one given, else `$BSTUNE_STORAGE`, else `bstune.db` in the working directory.

    Raises:
        StudyError: The URL is none of SQLite, PostgreSQL, MySQL or a journal file.
    """
    import sqlalchemy
    from sqlalchemy.engine import make_url

    text = url or os.environ.get(VARIABLE) or DEFAULT_URL
    if text.startswith(journal.SCHEME):
        name = text.removeprefix(journal.SCHEME).removeprefix("///")
        if not name:
            raise StudyError(f"{text!r} names no file: expected journal:///FILE.")
        return Location(text, Path(name).absolute(), "journal")
    try:
        parsed = make_url(text)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        if "@" in text:  # It may hold a password.
            raise StudyError(f"The storage is not a URL that can be read: expected {EXPECTED}.") from None
        raise StudyError(f"{text!r} is not a storage URL: expected {EXPECTED}; for a file, sqlite:///{text}.") from error
    backend = parsed.get_backend_name()
    if backend in server.DRIVERS:
        return Location(parsed.render_as_string(hide_password=True), None, "server", parsed)
    if backend != "sqlite":
        raise StudyError(f"The storage {parsed.render_as_string(hide_password=True)} is of a kind that is not known: expected {EXPECTED}.")
    name = parsed.database or ":memory:"
    if name == ":memory:" or parsed.query.get("mode") == "memory":
        return Location(text, None, "memory")
    name = name.removeprefix("file:") if parsed.query.get("uri") else name
    return Location(text, Path(name).absolute())


class Storage:
    """An open storage: reads and writes through Optuna, with errors that say what to do.

    Attributes:
        location: Where it is.
        backend: Optuna's own storage object.
    """

    def __init__(
        self, location: Location, backend: BaseStorage, lock: IO[str] | server.ServerLock | None = None, *, is_new: bool = False
    ) -> None:
        """Take over an open backend; use `open_storage` or `read_storage`."""
        self.location = location
        self.backend = backend
        self._lock = lock
        self._is_new = is_new

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """Turn what the database can say into one clear StudyError."""
        return _guard(self.location)

    def names(self) -> list[str]:
        """Return the names of all studies, oldest first."""
        with self.guard():
            names: list[str | None] = [s.study_name for s in sorted(self.backend.get_all_studies(), key=lambda s: s._study_id)]
            if None in names:
                raise sqlite3.DatabaseError("malformed: a study has no name")
            return [str(name) for name in names]

    def quiet(self) -> contextlib.AbstractContextManager[None]:
        """Keep Optuna from announcing a new study."""
        return _quiet()

    def writer(self) -> str | None:
        """Return who writes to this storage now, in words; None when nobody does."""
        if self.location.server is not None:
            return _server_writer(self.location)
        path = self.location.lock_path
        try:
            with open(path or os.devnull, encoding="utf-8") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return _holder(lock)
        except OSError:
            pass
        return None

    def close(self) -> None:
        """Close it; the writer also leaves write-ahead mode and removes its lock, and a new file that stayed empty."""
        stayed_empty = False
        if self._is_new:
            with contextlib.suppress(StudyError):
                stayed_empty = not self.names()
        self.backend.remove_session()
        engine = getattr(self.backend, "engine", None)
        if engine is not None:
            engine.dispose()
        if self._lock is None:
            return
        if self.location.kind == "sqlite":
            _leave_write_ahead_mode(self.location)
        if stayed_empty and self.location.path is not None:
            self.location.path.unlink(missing_ok=True)
        if isinstance(self._lock, server.ServerLock):
            self._lock.close()
        else:
            _unlock(self._lock, self.location)
        self._lock = None

    def __enter__(self) -> Storage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_storage(url: str | None) -> Storage:
    """Open a storage as its one writer; it is made if there is none.

    Raises:
        StudyError: It is in use, cannot be written, or is something else.
    """
    location = locate(url)
    if location.kind == "memory":
        from optuna.storages import InMemoryStorage

        return Storage(location, InMemoryStorage())
    if location.server is not None:
        return _open_server(location, location.server)
    path = location.path
    assert path is not None
    if path.is_dir():
        raise StudyError(
            f"The storage {path} is a folder: expected a file, such as {location.url.partition(':')[0]}:///{path / 'bstune.db'}."
        )
    lock = _take_lock(location)
    try:
        is_new = not path.exists()
        _check_contents(location)
        return Storage(location, _open_file(location, write=True), lock, is_new=is_new)
    except BaseException:
        _unlock(lock, location)
        raise


def read_storage(url: str | None) -> Storage:
    """Open a storage for reading only, also while a search writes to it.

    Raises:
        StudyError: There is none, or it is something else.
    """
    location = locate(url)
    if location.kind == "memory":
        raise StudyError(f"The storage {location.url} lives in memory: nothing of it is left to read after the call that made it.")
    if location.server is not None:
        with _guard(location), _quiet():
            if not server.has_tables(location.server):
                raise NoStudiesError(f"There are no studies yet in {location.url}. `bstune search` makes the tables.")
            return Storage(location, server.open_server(location.server, create=False))
    if location.path is None or not location.path.exists():
        raise StudyError(f"There is no storage {location.path}. `bstune search` makes one; --storage or ${VARIABLE} name another.")
    _check_contents(location)
    return Storage(location, _open_file(location, write=False))


@contextlib.contextmanager
def _guard(location: Location) -> Iterator[None]:
    """Turn what a database can say into one clear StudyError, and leave Python's random numbers as they were."""
    # When a write fails Optuna draws the pause before the next try from the global generator.
    state = random.getstate()
    try:
        yield
    except _database_errors() as error:
        raise _study_error(error, location) from error
    finally:
        random.setstate(state)


# --- opening ------------------------------------------------------------------------------------------------------


def _open_server(location: Location, url: URL) -> Storage:
    with _guard(location):
        try:
            lock = server.ServerLock(url)
        except server.HeldError as error:
            raise InUseError(f"The storage {location.url} is in use: {error}. Wait for it, or give this search one of its own.") from None
    try:
        with _guard(location), _quiet():
            return Storage(location, server.open_server(url, create=True), lock)
    except BaseException:
        lock.close()
        raise


def _server_writer(location: Location) -> str | None:
    assert location.server is not None
    try:
        with _guard(location):
            server.ServerLock(location.server).close()
    except server.HeldError:
        return "another process uses it"
    return None


def _open_file(location: Location, *, write: bool) -> BaseStorage:
    path = location.path
    assert path is not None
    if location.kind == "journal":
        with _guard(location):
            return journal.open_journal(path, write=write)
    return _open_backend(location, location.url if write else _read_only_url(path), write=write)


def _open_backend(location: Location, url: str, *, write: bool) -> BaseStorage:
    import sqlalchemy
    from optuna.storages import RDBStorage

    engine_kwargs: dict[str, Any] = {"connect_args": {"timeout": _BUSY_S if write else 10.0}}

    def connected(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # A commit survives the death of the process; only a power failure can take back the last ones.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint=250")  # Pages: the log beside the database stays at about 1 MB.

    with _guard(location), _quiet():
        # Optuna fills in {SCHEMA_VERSION} by str.format; a brace in the path is none.
        backend = RDBStorage(url.replace("{", "{{").replace("}", "}}"), engine_kwargs=engine_kwargs, skip_table_creation=not write)
        if write:
            sqlalchemy.event.listen(backend.engine, "connect", connected)
            backend.remove_session()
            backend.engine.dispose()  # So that every connection from here on is a listened-to one.
            backend.get_all_studies()
        return backend


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's "A new study created" to itself."""
    logger = logging.getLogger("optuna.storages")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_only_url(path: Path) -> str:
    return f"sqlite:///file:{quote(str(path))}?mode=ro&uri=true" + ("" if _readable_as_is(path) else "&immutable=1")


def _readable_as_is(path: Path) -> bool:
    """A database left in write-ahead mode on a read-only file system opens only when declared immutable."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        return "unable to open" not in str(error) and "readonly" not in str(error)
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        pass  # Not a database, or a damaged one whose bytes are in what SQLite says; whoever reads it next says so.
    return True


def _check_contents(location: Location) -> None:
    """Refuse a file that is something else, before anything is written to it."""
    path = location.path
    assert path is not None
    if location.kind == "journal":
        with _guard(location):
            journal.check_journal(path)
        return
    if not path.exists() or path.stat().st_size == 0:
        return
    with _guard(location):
        suffix = "" if _readable_as_is(path) else "&immutable=1"
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro{suffix}", uri=True, timeout=10.0)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and "studies" not in tables:
        found = ", ".join(sorted(tables)[:3])
        raise StudyError(
            f"{path} is a database of something else (tables {found}): expected an Optuna storage. Name another with --storage."
        )


def _leave_write_ahead_mode(location: Location) -> None:
    """Make the database one plain file again; a reader that has it open right now prevents that, and no harm is done."""
    assert location.path is not None
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(location.path, timeout=0.2)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


# --- the lock of the one writer -----------------------------------------------------------------------------------


def _take_lock(location: Location) -> IO[str]:
    path = location.lock_path
    assert path is not None
    while True:
        try:
            lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115  # Held for as long as the storage is open.
        except OSError as error:
            raise _study_error(error, location) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(lock)
            lock.close()
            raise InUseError(
                f"The storage {location.path} is in use: {holder}. Wait for it, or give this search a --storage of its own."
            ) from None
        except OSError as error:
            lock.close()
            raise _study_error(error, location) from error
        # Its last holder may have removed the file between our opening and our locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                break
        lock.close()
    lock.truncate(0)
    try:
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, lock)
        lock.flush()
    except OSError as error:
        _unlock(lock, location)
        raise _study_error(error, location) from error
    return lock


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    try:
        held = json.loads(lock.read())
        return f"process {held['pid']} on {held['host']} uses it since {held['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process uses it"


def _unlock(lock: IO[str], location: Location) -> None:
    assert location.lock_path is not None
    with contextlib.suppress(OSError):
        location.lock_path.unlink()
    with contextlib.suppress(OSError):  # Closing flushes, and a full disk may refuse even that.
        lock.close()


# --- what a database can say --------------------------------------------------------------------------------------


def _database_errors() -> tuple[type[BaseException], ...]:
    import sqlalchemy
    from optuna.exceptions import StorageInternalError

    return (
        StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        json.JSONDecodeError,
        UnicodeDecodeError,
        ImportError,
        RuntimeError,
        OSError,
    )


_SAYINGS = {
    "disk is full": "the disk is full. Free some space and run the same command again: it goes on after the last finished trial",
    "not a database": "it is not a database. Name another file with --storage",
    "codec can't decode": "the database is damaged. Restore a copy, or name another file with --storage",
    "malformed": "the database is damaged. Restore a copy, or name another file with --storage",
    "readonly": "it cannot be written (read-only). Name another file with --storage",
    "read-only": "it cannot be written (read-only). Name another file with --storage",
    "is locked": "another program holds a lock on the database. End it, or name another file with --storage",
    "unable to open": "it cannot be opened. Check that the folder exists and can be written, or name another file with --storage",
    "no such file": "its folder does not exist. Make it, or name another file with --storage",
    "no space left": "the disk is full. Free some space and run the same command again: it goes on after the last finished trial",
    "permission denied": "permission denied. Name another file with --storage",
    "no longer compatible": "another version of Optuna made its tables. Install that version, or name another file with --storage",
    "connection refused": "no database server answers there. Start it, or check the address",
    "timeout expired": "the database server does not answer. Check the address",
    "name or service not known": "there is no such host. Check the address",
    "could not translate host": "there is no such host. Check the address",
    "password authentication failed": "the server refuses the user or the password. Check both",
    "to database": "the server has no such database, or keeps this user out of it. Make it first: bstune makes only the tables",
    "access denied": "the server refuses the user or the password. Check both",
    "unknown database": "the server has no such database. Make it first: bstune makes the tables, not the database",
    "does not exist": "the server has no such database or user. Make it first: bstune makes the tables, not the database",
    "incorrect string value": "the database cannot hold these letters. Make it with CHARACTER SET utf8mb4, or use another name",
    **dict.fromkeys(
        ("server closed the connection", "terminating connection", "the connection is lost", "lost connection", "gone away"),
        "the database server went away. Run the same command again when it is back",
    ),
    "too large for the file system": "the disk is full. Free some space and run the same command again",
    "file too large": "the file may not grow further (a limit of the system). Raise it, or name another file with --storage",
    "i/o error": "the disk could not be read or written (I/O error). Check it and run the same command again",
}


def _study_error(error: BaseException, location: Location) -> StudyError:
    """Say what happened to the storage, from the innermost cause."""
    cause: BaseException | None = error
    texts = []
    while cause is not None:
        texts.append(f"{cause} {getattr(cause, 'sqlite_errorname', '')}".strip())
        cause = cause.__cause__ or getattr(cause, "orig", None)
    said = " ".join(texts).lower()
    plain = f"{_without_password(texts[-1], location)}. Name another storage with --storage"
    meaning = next((meaning for saying, meaning in _SAYINGS.items() if saying in said), plain)
    if isinstance(error, json.JSONDecodeError):
        meaning = "the journal is damaged. Restore a copy, or name another file with --storage"
    elif isinstance(error, ImportError) and location.server is not None:
        meaning = f"the driver of its database is not installed. Install it: {server.DRIVERS[location.server.get_backend_name()]}"
    return StudyError(f"The storage {location.path or location.url} cannot be used: {meaning}.")


def _without_password(text: str, location: Location) -> str:
    """Return what a driver said, in case it repeats what it was given."""
    password = location.server.password if location.server is not None else None
    return text.replace(str(password), "***") if password else text
