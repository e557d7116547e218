"""Files and folders that bstune makes: complete from the start, and opened only where they are what they should be.

A file of bstune is never empty: it gets its name when its content is complete. So a file that is empty, or a link, or
something else than a plain file, was made by somebody else, and is left alone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

MODE = 0o666
"""Less what the umask takes away, as for any other file."""
_CANNOT = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.EXDEV, errno.ENOENT)
"""What a file system says that cannot name a file after it was written."""


def create_whole(path: Path, content: bytes, before_naming: Callable[[int], None] = lambda fd: None) -> int:
    """Make a new file that is complete from the moment on at which it can be seen, and return its descriptor.

    Args:
        path: Where; nothing may be there, not even a dangling link.
        content: All of it.
        before_naming: What else is to be done with the descriptor before others can open the file, such as locking it.

    Raises:
        FileExistsError: Something of that name is there.
        OSError: The folder does not exist or cannot be written, or the disk is full.
    """
    if not os.path.isdir(path.parent):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    if hasattr(os, "O_TMPFILE"):
        try:
            return _named_last(path, content, before_naming)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
    return _named_first(path, content, before_naming)


def _named_last(path: Path, content: bytes, before_naming: Callable[[int], None]) -> int:
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, MODE)
    try:
        before_naming(fd)
        write_all(fd, content)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # With a folder's descriptor Python calls linkat, which follows the link to the open file; link would not.
            os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _named_first(path: Path, content: bytes, before_naming: Callable[[int], None]) -> int:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    try:
        before_naming(fd)
        write_all(fd, content)
    except BaseException:
        remove_same(path, fd)
        os.close(fd)
        raise
    return fd


def write_all(fd: int, content: bytes) -> None:
    """Write all of the content at the beginning of a file."""
    at = 0
    while at < len(content):
        at += os.pwrite(fd, content[at:], at)


def open_plain(path: Path, flags: int) -> int:
    """Open a plain file and return its descriptor; no link is followed and no pipe is waited for.

    Raises:
        NotPlainError: It is a link, a folder, a pipe or a device.
        OSError: It is not there, or may not be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO):
            raise NotPlainError(error.errno, "it is not a plain file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotPlainError(errno.EINVAL, "it is not a plain file", str(path))
    return fd


class NotPlainError(OSError):
    """What has the name of a file is a link, a folder, a pipe or a device."""


def is_plain(path: Path) -> bool:
    """Tell whether a plain file is there, and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of what is there, a link itself and not what it leads to; None where nothing is."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def remove_same(path: Path, fd: int) -> bool:
    """Remove a file if it is still the one that is open; tell whether it is gone."""
    held = os.fstat(fd)
    if identity(path) == (held.st_dev, held.st_ino):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
    return True
