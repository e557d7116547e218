"""The storage that remembers: an ordinary Optuna storage with exactly one writer and any number of readers.

By default it is a SQLite file (`sqlite.py`). A journal file (`journal.py`) and a database server (`database_server.py`)
serve as well. Whatever path leads to a file, it has one lock (`writer_lock.py`), and a file that bstune or Optuna did
not make is refused before anything is written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..core.errors import StudyError
from . import database_server, journal, sqlite
from .location import VARIABLE, Location, locate
from .own_files import open_plain
from .storage_errors import guard, reading, study_error
from .writer_lock import InUseError, WriterLock, writer_of

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import URL


class NoStudiesError(StudyError):
    """A database server answers, and has no tables of Optuna yet."""


class Storage:
    """An open storage: reads and writes through Optuna, with errors that say what to do.

    Attributes:
        location: Where it is.
        backend: Optuna's own storage object.
    """

    def __init__(
        self, location: Location, backend: BaseStorage, lock: WriterLock | database_server.ServerLock | None = None
    ) -> None:
        """Take over an open backend; use `open_storage` or `read_storage`."""
        self.location = location
        self.backend = backend
        self.is_new = False
        """The file was made for this call, and goes again if it stays empty."""
        self._lock = lock
        self._lost: StudyError | None = None
        self._journal_fd: int | None = None
        self._turn = threading.RLock()
        """Several studies of one storage may be written by a thread each: one at a time."""
        if location.kind == "journal" and lock is not None and location.path is not None:
            self._journal_fd = open_plain(location.path, os.O_RDONLY)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn what the database can say into one clear StudyError.

        Raises:
            StudyError: What this call writes to is no longer there.
        """
        with self._turn:
            self.check()
            with guard(self.location):
                yield

    def check(self) -> None:
        """Make sure that the writer still has what it locked: nobody has removed or replaced the storage or its lock.

        Raises:
            StudyError: It is gone; the message says where the results are.
        """
        with self._turn:
            self._check()

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost
        if self._lock is None:
            return
        if isinstance(self._lock, database_server.ServerLock):
            if not self._lock.is_held():
                self._lost = StudyError(
                    f"The storage {self.location.url} has lost the lock of this search: the server ended its "
                    "connection. What was finished is stored; run the same command again."
                )
        elif (missing := self._lock.missing()) is not None:
            self._lost = self._gone(missing)
        if self._lost is not None:
            raise self._lost

    def _gone(self, missing: Path) -> StudyError:
        path = self.location.path
        if missing != path:
            return StudyError(
                f"The lock {missing} was removed or replaced while this search ran, so another may have begun to "
                f"write. What was finished is stored in {path}; run the same command again."
            )
        try:
            saved = self._rescued(missing)
        except (OSError, sqlite3.Error) as error:
            return StudyError(
                f"The storage {path} was removed or replaced while this search wrote to it, and its results are lost: "
                f"{error}."
            )
        return StudyError(
            f"The storage {path} was removed or replaced while this search wrote to it. What was finished is saved in "
            f"{saved}: go on with --storage {'journal' if self.location.kind == 'journal' else 'sqlite'}:///{saved}."
        )

    def _rescued(self, path: Path) -> Path:
        """Save the content of the removed file, beside it where its folder is still there, and return where."""
        folder = path.parent if path.parent.is_dir() else Path(tempfile.mkdtemp(prefix="bstune-rescued-"))
        number = 1
        while os.path.lexists(
            saved := folder / f"{path.stem}.rescued{'' if number == 1 else f'-{number}'}{path.suffix}"
        ):
            number += 1
        if self._journal_fd is not None:
            journal.rescue_journal(self._journal_fd, saved)
        else:
            sqlite.rescue_database(self.backend, saved)
        return saved

    def names(self) -> list[str]:
        """Return the names of all studies, oldest first."""
        self.check()
        with reading(self.location):
            names: list[object] = [
                s.study_name for s in sorted(self.backend.get_all_studies(), key=lambda s: s._study_id)
            ]
            if not all(isinstance(name, str) for name in names):
                raise sqlite3.DatabaseError("malformed: the name of a study is no text")
            return [str(name) for name in names]

    def quiet(self) -> contextlib.AbstractContextManager[None]:
        """Keep Optuna from announcing a new study."""
        return _quiet()

    def writer(self) -> str | None:
        """Return who writes to this storage now, in words; None when nobody does."""
        if self.location.server is not None:
            return _server_writer(self.location)
        return None if self.location.lock_path is None else writer_of(self.location.lock_path)

    def close(self) -> None:
        """Close it; the writer also leaves write-ahead mode and removes its lock, and a new file that stayed empty.

        Raises:
            StudyError: What was written to is no longer there.
        """
        stays = True
        with contextlib.suppress(StudyError):
            self.check()
            stays = not self.is_new or bool(self.names())
        lock, self._lock = self._lock, None
        path = self.location.path
        if self.location.kind == "sqlite" and path is not None:
            gone = isinstance(lock, WriterLock) and lock.missing() == path
            (sqlite.abandon_database if gone else sqlite.close_database)(self.backend, path)
            if lock is not None and not gone:
                sqlite.leave_write_ahead_mode(path)
        else:
            self.backend.remove_session()
            if (engine := getattr(self.backend, "engine", None)) is not None:
                engine.dispose()
        if self._journal_fd is not None:
            os.close(self._journal_fd)
            self._journal_fd = None
        if not stays and path is not None:
            path.unlink(missing_ok=True)
        if lock is not None:
            lock.close()
            if self._lost is not None:
                raise self._lost

    def __enter__(self) -> Storage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StudyError:
            if error is None:  # Otherwise it was said already, or another error is to be shown.
                raise


def open_storage(url: str | None) -> Storage:
    """Open a storage as its one writer; it is made if there is none.

    Raises:
        StudyError: It is in use, cannot be written, or is something else.
    """
    location = locate(url)
    if location.kind == "memory":
        with _quiet():
            from optuna.storages import InMemoryStorage

        return Storage(location, InMemoryStorage())
    if location.server is not None:
        return _open_server(location, location.server)
    path, lock_path = location.path, location.lock_path
    assert path is not None
    assert lock_path is not None
    with guard(location):
        found = path.stat() if os.path.lexists(path) else None
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise StudyError(
            f"The storage {path} is a folder: expected a file, such as "
            f"{location.url.partition(':')[0]}:///{path / 'bstune.db'}."
        )
    if location.read_only:
        raise study_error(OSError("read-only"), location)
    with guard(location):
        lock = WriterLock(lock_path, path)
    try:
        with reading(location), _quiet():
            is_new = not os.path.lexists(path)
            if is_new:
                (journal.create_journal if location.kind == "journal" else sqlite.create_database)(path)
            lock.hold_file()
            _check_contents(location)
            storage = Storage(location, _open_file(location, write=True), lock)
        storage.is_new = is_new
        return storage
    except BaseException:
        lock.close()
        raise


def read_storage(url: str | None) -> Storage:
    """Open a storage for reading only, also while a search writes to it.

    Raises:
        StudyError: There is none, or it is something else.
    """
    location = locate(url)
    if location.kind == "memory":
        raise StudyError(
            f"The storage {location.url} lives in memory: nothing of it is left to read after the call that made it."
        )
    if location.server is not None:
        with guard(location), _quiet():
            if not database_server.has_tables(location.server):
                raise NoStudiesError(f"There are no studies yet in {location.url}. `bstune search` makes the tables.")
            return Storage(location, database_server.open_server(location.server, create=False))
    if location.path is None or not os.path.lexists(location.path):
        raise StudyError(
            f"There is no storage {location.path}. `bstune search` makes one; --storage or ${VARIABLE} name another."
        )
    with reading(location), _quiet():
        _check_contents(location)
        return Storage(location, _open_file(location, write=False))


# --- opening ------------------------------------------------------------------------------------------------------


def _open_server(location: Location, url: URL) -> Storage:
    with guard(location):
        try:
            lock = database_server.ServerLock(url)
        except database_server.HeldError as error:
            raise InUseError(
                f"The storage {location.url} is in use: {error}. Wait for it, or give this search one of its own."
            ) from None
    try:
        with guard(location), _quiet():
            return Storage(location, database_server.open_server(url, create=True), lock)
    except BaseException:
        lock.close()
        raise


def _server_writer(location: Location) -> str | None:
    assert location.server is not None
    try:
        with guard(location):
            database_server.ServerLock(location.server).close()
    except database_server.HeldError:
        return "another process uses it"
    return None


def _check_contents(location: Location) -> None:
    """Refuse a file that is something else, before anything is written to it."""
    assert location.path is not None
    (journal.check_journal if location.kind == "journal" else sqlite.check_database)(location.path)


def _open_file(location: Location, *, write: bool) -> BaseStorage:
    assert location.path is not None
    return (journal.open_journal if location.kind == "journal" else sqlite.open_database)(location.path, write=write)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to themselves what Optuna logs of a new study, and what its progress bar lacks in a notebook."""
    if "optuna" not in sys.modules:  # Filters are the whole process's, so they are changed once.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")
            import optuna  # noqa: F401
    logger = logging.getLogger("optuna.storages")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
