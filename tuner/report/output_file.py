"""A file that the user names, such as a page or a picture: written whole or not at all, and never over another's."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import tempfile
import zlib
from pathlib import Path

from ..core.errors import ArgumentError, BstuneError

MARK = b"bstune report"
"""In each file that can bear it: one that has it may be overwritten."""
_HEADS = {
    ".html": b"<!doctype html>\n<!-- bstune report -->",
    ".md": b"<!-- bstune report -->",
    ".png": b"\x89PNG\r\n",
    ".svg": b"<!-- bstune report -->",
    ".pdf": b"%PDF-",
    ".json": b'{\n  "recommendation": {',
    ".csv": b"number,stage,state,reason,",
}
_TAILS = {".png": b"tEXtSoftware\0bstune", ".pdf": b"\n% bstune report\n"}
"""Where the mark is not at the head."""
_MOST_BYTES = 64 << 20


def check_output(path: Path, kinds: tuple[str, ...], option: str, example: str) -> None:
    """Refuse a path that cannot be written or is another's file; it is better to know before the work.

    Args:
        path: Where to write.
        kinds: Suffixes that are allowed.
        option: The option that named it, for the message.
        example: A name that would do.

    Raises:
        BstuneError: The file is not one to write to.
    """
    if path.suffix.lower() not in kinds:
        raise ArgumentError(
            f"{option} {path}: nothing is written with this suffix. Name a file such as {example}; "
            f"suffixes: {', '.join(kinds)}."
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ArgumentError(f"{option} {path}: there is no folder {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BstuneError(f"{option} {path}: the folder {folder} cannot be written to.")
    if os.path.lexists(path) and not is_ours(path):
        raise BstuneError(
            f"{option} {path}: something that bstune did not make has this name, and is left as it is. "
            "Name another file."
        )


def is_ours(path: Path) -> bool:
    """Tell whether a file was written by bstune; one that is a link, or no plain file, was not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(_MOST_BYTES)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    kind = path.suffix.lower()
    return content.startswith(_HEADS[kind]) and _TAILS.get(kind, b"") in content


def write_output(path: Path, content: bytes, option: str) -> None:
    """Write a file beside its place and then put it there, so that it is never half a file.

    Raises:
        BstuneError: It cannot be written, or something that is not bstune's is in its place by now.
    """
    kind = path.suffix.lower()
    try:
        descriptor, name = tempfile.mkstemp(prefix=".bstune-", dir=path.absolute().parent)
        beside = Path(name)
        try:
            with open(descriptor, "wb") as file:
                file.write(marked(content, kind))
                umask = os.umask(0)
                os.umask(umask)
                os.fchmod(descriptor, 0o666 & ~umask)
            check_output(path, (kind,), option, path.name)  # Somebody may have put something there since.
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    except (OSError, ValueError) as error:
        raise BstuneError(f"{option} {path} could not be written: {error}. Name another file.") from error


def marked(content: bytes, kind: str) -> bytes:
    """Return a file with the mark that says who made it; pages and texts bear it already."""
    if kind == ".png":
        chunk = b"tEXtSoftware\0" + MARK
        length, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
        return content[:33] + length + chunk + check + content[33:]  # After the header, which has a fixed size.
    if kind == ".svg":
        return b"<!-- " + MARK + b" -->\n" + content
    return content + _TAILS[kind] if kind == ".pdf" else content
