"""The lock of the one writer of a storage file.

It has two parts. The sidecar (`bstune.db.lock`) says who writes, and works wherever the file system has `flock`. It
is beside the resolved path, so links lead to one lock. On Linux there is a second one that belongs to the file
itself, to its device and inode: a name in the kernel that ends with this process. It also works where a hard link leads
to the same file, and when the sidecar is removed. Neither is a lock on the database, so readers never wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from ..core.errors import StudyError
from .own_files import NotPlainError, create_whole, identity, open_plain, remove_same

MOST_BYTES = 4096
_WORDS = {"program", "pid", "host", "since"}


class InUseError(StudyError):
    """Another process is the writer of this storage."""


class WriterLock:
    """The lock of a storage file, taken when this object is made.

    Attributes:
        path: The sidecar.
    """

    def __init__(self, path: Path, storage: Path) -> None:
        """Take the lock.

        Args:
            path: The sidecar.
            storage: The file that it is for, whose links are resolved; it need not exist yet.

        Raises:
            InUseError: Another process has it.
            StudyError: Something that is no lock of bstune has its name.
            OSError: It cannot be made.
        """
        self.path = path
        self._storage = storage
        self._file: tuple[int, int] | None = None
        self._name: socket.socket | None = None
        self._fd, self._ours = self._take()

    def _take(self) -> tuple[int, bool]:
        """Return the descriptor of the locked sidecar, and whether it may be removed at the end."""
        held_by = {
            "program": "bstune",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        content = json.dumps(held_by).encode()
        while True:
            with contextlib.suppress(FileExistsError):
                return create_whole(self.path, content, before_naming=lambda fd: fcntl.flock(fd, fcntl.LOCK_EX)), True
            try:
                fd = open_plain(self.path, os.O_RDWR)
            except FileNotFoundError:  # Its last holder has removed it since.
                continue
            except NotPlainError as error:
                raise self._not_ours() from error
            try:
                found = os.pread(fd, MOST_BYTES, 0)
                if found and _holder_in(found) is None:
                    raise self._not_ours()
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise in_use(self._storage, said(found)) from None
                if self._is_same(fd) and not found:
                    return fd, False  # Somebody else's: it is used, and left as it is.
                # Of a search that was killed, if its last holder has not removed it since.
                if not remove_same(self.path, fd):
                    raise StudyError(
                        f"{self.path} is the lock of a search that was killed, and belongs to another user (number "
                        f"{os.fstat(fd).st_uid}): it cannot be removed here. Ask them to, or name another file with "
                        "--storage."
                    )
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _not_ours(self) -> StudyError:
        return StudyError(
            f"{self.path} has the name of the lock of {self._storage}, and was not made by bstune: it is left alone. "
            "Move it away, or name another file with --storage."
        )

    def _is_same(self, fd: int) -> bool:
        found = os.fstat(fd)
        return identity(self.path) == (found.st_dev, found.st_ino)

    def hold_file(self) -> None:
        """Lock the storage file itself, which exists from now on.

        Raises:
            InUseError: Another process writes to it, by another name or without its sidecar.
        """
        self._file = identity(self._storage)
        if self._file is None or not sys.platform.startswith("linux"):
            return
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind("\0bstune-writer-{:x}-{:x}".format(*self._file))
        except OSError:
            name.close()
            raise in_use(self._storage, "another process uses it, by another name or without its lock file") from None
        self._name = name

    def missing(self) -> Path | None:
        """Return which of the two files, storage or sidecar, is no longer the locked one; None while all is well."""
        if self._file is not None and identity(self._storage) != self._file:
            return self._storage
        return None if self._is_same(self._fd) else self.path

    def close(self) -> None:
        """Release it, and remove the sidecar if bstune made it."""
        if self._ours:
            remove_same(self.path, self._fd)
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # Closing would not do while a forked process has the descriptor too.
            os.close(self._fd)
        if self._name is not None:
            self._name.close()


def in_use(storage: Path, holder: str) -> InUseError:
    """Return the error of the second writer."""
    return InUseError(
        f"The storage {storage} is in use: {holder}. Wait for it, or give this search a --storage of its own."
    )


def writer_of(path: Path) -> str | None:
    """Return who has the sidecar locked now, in words; None when nobody does, or it is no lock of bstune."""
    try:
        fd = open_plain(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return said(os.pread(fd, MOST_BYTES, 0))
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def said(content: bytes) -> str:
    """Return who has a lock, from what is written in it."""
    held = _holder_in(content)
    return (
        f"process {held['pid']} on {held['host']} uses it since {held['since']}" if held else "another process uses it"
    )


def _holder_in(content: bytes) -> dict[str, Any] | None:
    """Return what a lock of bstune says, or None where it is none."""
    try:
        held = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(held, dict) or set(held) | {"program"} != _WORDS or held.get("program", "bstune") != "bstune":
        return None
    return (
        held if type(held["pid"]) is int and isinstance(held["host"], str) and isinstance(held["since"], str) else None
    )
