"""A storage as a SQLite file: proved to be Optuna's before it is written to, opened by its path and nothing else.

While a search writes, the database is in write-ahead mode, so that readers never wait and never see "database is
locked"; when it ends, the database goes back to one plain file that can be copied and read anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sqlite3
import tempfile
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..core.errors import StudyError
from .optuna_tables import check_tables, expected_columns
from .own_files import NotPlainError, create_whole, identity, is_plain, open_plain

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

BUSY_S = 60.0
"""How long a write waits for a reader that locks the database for a moment."""
STATEMENT_S = 120.0
"""One statement may take so long.

Reading ten thousand trials takes seconds; what a stranger put into a database may never end.
"""
STEPS = 100_000
"""SQLite looks at the clock once in so many steps of its machine: some milliseconds."""
HEADS = {
    "-wal": (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"),
    "-journal": (b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7",),
    "-shm": (b"\x18\xe2\x2d\x00", b"\x00\x2d\xe2\x18", bytes(4)),
}
"""How the files begin that SQLite keeps beside a database.

Source: sqlite.org/fileformat2.html and sqlite.org/walformat.html.
"""
_OPEN: Counter[Path] = Counter()
"""The databases that this process has open."""


class _StudyConnection(sqlite3.Connection):
    """A connection whose statements are interrupted when they take too long."""

    deadline_s = math.inf

    def watch(self) -> None:
        """Begin to look at the clock."""
        self.begin()
        self.set_progress_handler(lambda: time.monotonic() > self.deadline_s, STEPS)

    def begin(self) -> None:
        """Let the next statement have the whole time."""
        self.deadline_s = time.monotonic() + STATEMENT_S


# --- whose it is --------------------------------------------------------------------------------------------------


def create_database(path: Path) -> None:
    """Make a new database with Optuna's tables, complete as soon as it can be seen.

    Raises:
        StudyError: Files of a database of this name are there.
        OSError: It cannot be made.
    """
    left = [str(beside) for suffix in HEADS if os.path.lexists(beside := Path(f"{path}{suffix}"))]
    if left:
        raise StudyError(
            f"There is no database {path}, but {' and '.join(left)}: SQLite would take that for a part of it. Move it "
            "away, or name another file with --storage."
        )
    os.close(create_whole(path, _empty_database()))


def _empty_database() -> bytes:
    """Return the bytes of a database with Optuna's tables and nothing in them."""
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import StaticPool

    with tempfile.TemporaryDirectory(prefix="bstune-") as folder:
        in_memory = hasattr(sqlite3.Connection, "serialize")  # Since Python 3.11.
        file = Path(folder) / "empty.db"
        connection: Any = sqlite3.connect(":memory:" if in_memory else file, check_same_thread=False)
        with contextlib.closing(connection):
            backend = RDBStorage("sqlite://", engine_kwargs={"creator": lambda: connection, "poolclass": StaticPool})
            backend.remove_session()
            content = bytes(connection.serialize()) if in_memory else b""
            backend.engine.dispose()
        return content or file.read_bytes()


def check_database(path: Path) -> None:
    """Refuse a file that is not a database of Optuna, before anything is written to it or asked of it.

    Raises:
        StudyError: It is something else.
        sqlite3.Error: It is no database, or a damaged one.
    """
    if not is_plain(path):
        raise StudyError(f"The storage {path} is not a plain file: expected a database. Name another with --storage.")
    if path.stat().st_size == 0:
        raise StudyError(
            f"{path} is empty, and bstune makes no empty file: it is left alone. Remove it, or name another with "
            "--storage."
        )
    _check_beside(path)
    if path.stat().st_nlink > 1 and not os.path.lexists(f"{path}-wal") and _in_write_ahead_mode(path):
        raise StudyError(
            f"{path} has several names, and a search that used another of them was killed: its last results are beside "
            "that name. Go on with that one, or remove the others."
        )
    with contextlib.closing(_connect(path, write=False)) as connection:
        rows = connection.execute("SELECT name, type, sql FROM sqlite_master").fetchall()
        tables = {
            str(name) for name, kind, sql in rows if kind == "table" and str(sql).upper().startswith("CREATE TABLE")
        }
        columns = {
            table: {row[1] for row in connection.execute("SELECT * FROM pragma_table_info(?)", (table,))}
            for table in tables
        }
    expected = expected_columns()
    strange = sorted(
        {str(name) for name, kind, _ in rows if kind == "trigger" or (kind == "view" and str(name).lower() in expected)}
    )
    if strange:
        raise StudyError(
            f"{path} holds code that would run when bstune uses it ({', '.join(strange[:3])}: a trigger, or a view in "
            "place of a table): Optuna makes none. Name another with --storage."
        )
    check_tables(str(path), columns)


def _check_beside(path: Path) -> None:
    """Refuse a database next to a file that SQLite would take for a part of it and overwrite."""
    for suffix, heads in HEADS.items():
        beside = Path(f"{path}{suffix}")
        # To close -shm, which holds the locks of the write-ahead mode, would release those that this process has.
        if suffix == "-shm" and _OPEN[path] and is_plain(beside):
            continue
        with contextlib.suppress(FileNotFoundError):
            head = _head(beside)
            ours = head is not None and (not head or head.startswith(heads)) and os.lstat(beside).st_nlink == 1
            if suffix == "-wal" and head and ours:  # Else it is the log of another database that had this name.
                ours = _in_write_ahead_mode(path)
            if not ours:
                raise StudyError(
                    f"{beside} was not made by SQLite, which would take it for a part of {path.name} and overwrite "
                    "it: it is left alone. Move it away, or name another file with --storage."
                )


def _head(path: Path) -> bytes | None:
    """Return the first bytes of a file; None where it is not a plain file."""
    try:
        fd = open_plain(path, os.O_RDONLY)
    except NotPlainError:
        return None
    try:
        return os.pread(fd, 8, 0)
    finally:
        os.close(fd)


# --- opening ------------------------------------------------------------------------------------------------------


def open_database(path: Path, *, write: bool) -> BaseStorage:
    """Open a database that was checked, through Optuna."""
    from optuna.storages import RDBStorage
    from sqlalchemy import event
    from sqlalchemy.pool import QueuePool

    made: weakref.WeakSet[sqlite3.Connection] = weakref.WeakSet()

    def connect() -> sqlite3.Connection:
        connection = _connect(path, write=write)
        made.add(connection)
        if write:
            connection.execute("PRAGMA journal_mode=WAL")
            # A commit survives the death of the process; only a power failure can take back the last ones.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                "PRAGMA wal_autocheckpoint=250"
            )  # Pages: the log beside the database stays at about 1 MB.
        return connection

    def begin(connection: Any, *_: Any) -> None:
        connection.connection.dbapi_connection.begin()

    try:
        # The path is given to SQLite as it is: in a URL, `#`, `?`, `%` and braces would be something else.
        backend = RDBStorage(
            "sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool}, skip_table_creation=True
        )
        event.listen(backend.engine, "before_cursor_execute", begin)
        backend.get_all_studies()
    except BaseException:
        for connection in list(made):  # Nobody else has them: Optuna's storage was not made, or is not given back.
            connection.close()
        raise
    _OPEN[path] += 1
    if write:
        vars(backend)["bstune_beside"] = {
            beside: identity(beside) for beside in map(Path, (f"{path}-wal", f"{path}-shm"))
        }
    return backend


def close_database(backend: Any, path: Path) -> None:
    """Close all its connections."""
    backend.remove_session()
    backend.engine.dispose()
    _OPEN[path] -= 1


def abandon_database(backend: Any, path: Path) -> None:
    """Leave a database that was removed or replaced, and take away what SQLite keeps beside it.

    Its connections are not closed: the last one to close removes the log by its name, whosever that is by now; and a
    database put in this one's place must not be read together with this one's log.
    """
    backend.remove_session()
    pool = backend.engine.pool
    for connection in [pool.connect() for _ in range(pool.checkedin())]:
        for kept in (connection, connection.driver_connection):  # Not even the end of the interpreter may close it.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    _OPEN[path] -= 1
    for beside, made in vars(backend)["bstune_beside"].items():
        if made is not None and identity(beside) == made:
            beside.unlink()


def _connect(path: Path, *, write: bool) -> _StudyConnection:
    """Connect to a file that is there."""
    as_it_stands = "&immutable=1" if not write and _is_at_rest(path) else ""
    address = f"file:{quote(os.fsencode(path))}?mode={'rw' if write else 'ro'}{as_it_stands}"
    connection = sqlite3.connect(
        address, uri=True, timeout=BUSY_S if write else 10.0, check_same_thread=False, factory=_StudyConnection
    )
    connection.watch()
    connection.execute("PRAGMA trusted_schema=OFF")
    return connection


def _is_at_rest(path: Path) -> bool:
    """Tell whether a database was left in write-ahead mode by a search that was killed, and nobody has it open.

    To open it would make the files that SQLite keeps beside such a one, and fail where the folder cannot be written.
    """
    if _OPEN[path] or os.path.lexists(f"{path}-shm"):
        return False
    if os.path.lexists(f"{path}-wal"):
        return not os.access(path.parent, os.W_OK)
    return _in_write_ahead_mode(path)


def _in_write_ahead_mode(path: Path) -> bool:
    """Tell whether a database is in write-ahead mode; while this process has it open, it is."""
    if _OPEN[path]:  # To open and close it here would release the locks that SQLite has on it.
        return True
    fd = open_plain(path, os.O_RDONLY)
    try:
        return os.pread(fd, 2, 18) == b"\2\2"  # Source: sqlite.org/fileformat2.html, 1.3.1.
    finally:
        os.close(fd)


def leave_write_ahead_mode(path: Path) -> None:
    """Make the database one plain file again; a reader that has it open prevents that, which does no harm."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_connect(path, write=True)) as connection:
        connection.execute("PRAGMA busy_timeout=200")
        connection.execute("PRAGMA journal_mode=DELETE")


def rescue_database(backend: Any, path: Path) -> None:
    """Copy the content of an open database into a new file: the file itself may have been removed.

    Raises:
        OSError: It cannot be made.
        sqlite3.Error: It cannot be read or written.
    """
    os.close(create_whole(path, _empty_database()))
    backend.remove_session()
    source = backend.engine.raw_connection()
    try:
        with contextlib.closing(_connect(path, write=True)) as target:
            source.driver_connection.backup(target)
    finally:
        source.close()
