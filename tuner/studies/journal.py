"""A storage as a journal file: one line for each write, for network file systems on which SQLite's locks do not work.

It is Optuna's own journal (`optuna.storages.journal`). What bstune adds: a file is proved to be a journal before it is
written to; the half line that a killed writer left is cut, and nothing else ever is; and a lock for the milliseconds of
one write that tells ours from others'.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..core.errors import StudyError
from .own_files import NotPlainError, create_whole, open_plain, remove_same

if TYPE_CHECKING:
    from optuna.storages import JournalStorage

SCHEME = "journal:"
LOCK_SUFFIX = ".lock"
"""Of the lock that is taken for the milliseconds of one write.

Optuna's own has the same name, so that each keeps the other out.
"""
PATIENCE_S = 10.0
"""How long a write waits for another program's."""
MOST_LINE_BYTES = 16 << 20
"""A file with a longer line is no journal, and need not be read to its end to know."""
N_OPERATIONS = 11
"""Optuna numbers what a line of a journal does from 0 on. Source: optuna.storages.journal, JournalOperation."""
MARK = "bstune journal write"
"""The content of our lock of one write."""
FIRST_LINE = (
    json.dumps({"op_code": 2, "worker_id": "bstune", "study_id": -1, "user_attr": {"made_by": "bstune"}}).encode()
    + b"\n"
)
"""An attribute of a study that does not exist, which Optuna passes over: so that a journal is never empty."""


def create_journal(path: Path) -> None:
    """Make a new journal.

    Raises:
        OSError: It cannot be made.
    """
    os.close(create_whole(path, FIRST_LINE))


def open_journal(path: Path, *, write: bool) -> JournalStorage:
    """Open a journal that was checked; if it is for writing, the half line at its end is cut first."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if write:
        remove_stale_lock(path)
        cut_torn_line(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=cast("Any", _WriteLock(path))))


def check_journal(path: Path) -> None:
    """Refuse a file that is something else, before anything is written to it.

    Raises:
        StudyError: It is not a journal of Optuna, or a line of it is damaged. Half a line at its end is not damage.
    """
    try:
        fd = open_plain(path, os.O_RDONLY)
    except NotPlainError as error:
        raise StudyError(
            f"The storage {path} is not a plain file: expected a journal of Optuna. Name another with --storage."
        ) from error
    with open(fd, "rb") as file:
        if not _is_entry(file.readline(MOST_LINE_BYTES)):
            raise StudyError(
                f"{path} is not a journal of Optuna: expected lines of JSON, one for each write. Name another with "
                "--storage."
            )
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES), b""), start=2):
            # Half a line at the end is what a killed writer leaves: the beginning of an entry, and not much of it.
            torn = not line.endswith(b"\n") and line.startswith(b"{") and len(line) < MOST_LINE_BYTES
            if not _is_entry(line) and not torn:
                raise StudyError(
                    f"The storage {path} cannot be used: the journal is damaged at line {number}. Restore a copy, or "
                    "name another file with --storage."
                )


def _is_entry(line: bytes) -> bool:
    """Tell whether a line is a whole one of Optuna's."""
    if not line.endswith(b"\n"):
        return False
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(entry, dict)
        and type(entry.get("op_code")) is int
        and 0 <= entry["op_code"] < N_OPERATIONS
        and isinstance(entry.get("worker_id"), str)
    )


def cut_torn_line(path: Path) -> int:
    """Cut off what a killed writer left of a line at the end of a checked journal; return how many bytes that was."""
    fd = open_plain(path, os.O_RDWR)
    with open(fd, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end, block = size, b""
        while end and b"\n" not in block:
            start = max(0, end - (1 << 16))
            file.seek(start)
            block = file.read(end - start)
            end = start + block.rfind(b"\n") + 1
        file.truncate(end)
        return size - end


# --- the lock of one write ----------------------------------------------------------------------------------------


def remove_stale_lock(path: Path) -> None:
    """Remove the lock of a write that was killed.

    Only the one writer of the journal may: so no other bstune is writing now.

    Raises:
        StudyError: A lock stays that bstune did not make.
    """
    lock = path.with_name(path.name + LOCK_SUFFIX)
    deadline_s = time.monotonic() + PATIENCE_S
    while os.path.lexists(lock):
        if _is_ours(lock):
            gone = remove_same(lock, fd := open_plain(lock, os.O_RDONLY))
            os.close(fd)
            if not gone:
                raise StudyError(
                    f"{lock} is the lock of a write that was killed, and belongs to another user: it cannot be removed "
                    "here. Ask them to, or name another file with --storage."
                )
            return
        if time.monotonic() > deadline_s:
            raise _not_ours(lock, path)
        time.sleep(0.05)


def _not_ours(lock: Path, path: Path) -> StudyError:
    return StudyError(
        f"{lock} keeps bstune from writing to {path}, and was not made by bstune: another program is writing, was "
        "killed while it wrote, or uses that name for something else. It is left alone: remove it if nothing needs "
        "it, or name another file with --storage."
    )


def _is_ours(lock: Path) -> bool:
    try:
        fd = open_plain(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        return MARK.encode() in os.pread(fd, 256, 0)
    finally:
        os.close(fd)


class _WriteLock:
    """The lock of one write: a file whose content says that it is ours. Optuna's own are empty files or links."""

    def __init__(self, path: Path) -> None:
        """Lock this journal when asked to."""
        self._journal = path
        self._lock = path.with_name(path.name + LOCK_SUFFIX)
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Wait for the lock and take it.

        Raises:
            StudyError: Another program does not release it.
        """
        content = json.dumps({MARK: str(uuid.uuid4()), "pid": os.getpid(), "host": socket.gethostname()}).encode()
        deadline_s = time.monotonic() + PATIENCE_S
        while self._fd is None:
            try:
                self._fd = create_whole(self._lock, content)
            except FileExistsError:
                if time.monotonic() > deadline_s:
                    raise _not_ours(self._lock, self._journal) from None
                time.sleep(0.001)
        return True

    def release(self) -> None:
        """Release it."""
        if self._fd is not None:
            remove_same(self._lock, self._fd)
            os.close(self._fd)
            self._fd = None


def rescue_journal(fd: int, path: Path) -> None:
    """Copy the content of an open journal into a new file: the file itself may have been removed.

    Raises:
        OSError: It cannot be made.
    """
    content = b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    os.close(create_whole(path, content))
