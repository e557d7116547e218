"""A storage as a journal file: one line for each write, for network file systems on which SQLite's locks do not work.

It is Optuna's own journal (`optuna.storages.journal`). A writer that was killed in the middle of a line, or with Optuna's lock in its
hand, would make every later start fail or wait; both are mended before the file is opened for writing.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import StudyError

if TYPE_CHECKING:
    from optuna.storages import JournalStorage

SCHEME = "journal:"
LOCK_SUFFIX = ".lock"
"""Of Optuna's lock, which is held for the milliseconds of one write."""
STALE_S = 2.0
BLOCK_BYTES = 1 << 16


def open_journal(path: Path, *, write: bool) -> JournalStorage:
    """Open a journal, mended first if it is for writing by the one who may."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if write:
        remove_stale_lock(path)
        cut_torn_line(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def check_journal(path: Path) -> None:
    """Refuse a file that is something else, before anything is written to it.

    Raises:
        StudyError: It is not a journal of Optuna.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb") as file:
        first = file.readline(BLOCK_BYTES)
    if first.endswith(b"\n") and not isinstance(_parsed(first), dict):
        raise StudyError(f"{path} is not a journal of Optuna: expected lines of JSON. Name another file with --storage.")


def cut_torn_line(path: Path) -> int:
    """Cut what a killed writer left of a line at the end of the file, and return how many bytes that were."""
    if not path.exists():
        return 0
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end and not _is_whole(line := _last_line(file, end)):
            end -= len(line)
        file.truncate(end)
        return size - end


def _last_line(file: Any, end: int) -> bytes:
    """Return the last line of the part of a file before `end`."""
    start, block = end, b""
    while start and b"\n" not in block[:-1]:
        start = max(0, start - BLOCK_BYTES)
        file.seek(start)
        block = file.read(end - start)
    return block[block.rfind(b"\n", 0, -1) + 1 :]


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") and isinstance(_parsed(line), dict)


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def remove_stale_lock(path: Path, stale_s: float = STALE_S) -> None:
    """Remove Optuna's lock if nobody lets go of it; a write takes milliseconds, and bstune's own lock keeps other searches away."""
    lock = path.with_name(path.name + LOCK_SUFFIX)
    deadline_s = time.monotonic() + stale_s
    while os.path.lexists(lock):
        if time.monotonic() > deadline_s:
            lock.unlink(missing_ok=True)
            return
        time.sleep(0.05)
