"""The folder in which stopped trials leave what they need to go on.

It lies beside the storage, has bstune's mark, and goes when the search ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import StudyError
from .own_files import create_whole, identity
from .study import Study

MARK = ".made-by-bstune"
"""A file in each folder that bstune made. A folder without it is somebody else's, whatever its name."""
_OURS = re.compile(r"trial-[0-9]+\.pt(\.new)?")


def checkpoint_name(number: int) -> str:
    """Return what the checkpoint of a trial is called in the folder."""
    return f"trial-{number}.pt"


def forget_checkpoints(study: Study) -> None:
    """Forget the checkpoints that went with an earlier call, before anything is decided by them."""
    path = study.storage.location.checkpoint_path(study.name)
    for record in study.finished:
        file = None if record.checkpoint is None else Path(record.checkpoint)
        if file is not None and not (
            file.parent == path and _OURS.fullmatch(file.name) and _is_ours(path) and file.is_file()
        ):
            study.forget_checkpoint(record.number)


@contextlib.contextmanager
def checkpoint_folder(study: Study) -> Iterator[Path | None]:
    """Yield the folder of a study; keep what finished trials of a killed search left, and leave nothing at the end.

    None where there is nothing to keep: a storage in memory or in a server, an objective that cannot go on.

    Raises:
        StudyError: Something that bstune did not make has its name.
    """
    path = study.storage.location.checkpoint_path(study.name)
    if path is None or not study.attributes["facts"]["can_continue"]:
        yield None
        return
    with study.storage.guard():
        folder = _open_folder(path)
    try:
        kept = {Path(record.checkpoint).name for record in study.finished if record.checkpoint is not None}
        _empty(folder, kept)
        yield path
    finally:
        _empty(folder, set())
        if _is_same(path, folder):
            with contextlib.suppress(OSError):  # What somebody else has put there stays, and the folder with it.
                if set(os.listdir(folder)) == {MARK}:
                    os.unlink(MARK, dir_fd=folder)
                    os.rmdir(path)
        os.close(folder)


def _open_folder(path: Path) -> int:
    """Make the folder, or open the one that is there, and return its descriptor."""
    made = False
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        made = True
    folder = _opened(path)
    try:
        # An empty folder that only this user can enter is one that was about to be marked: nothing in it can be lost.
        if folder is not None and not os.listdir(folder):
            os.close(
                create_whole(
                    path / MARK, b"bstune empties this folder of its own checkpoints, and removes it in the end.\n"
                )
            )
    except OSError:
        if made:
            path.rmdir()
        raise
    if folder is None or not _is_marked(folder):
        raise StudyError(
            f"{path} has the name of the folder for this study's checkpoints, and was not made by bstune for this "
            "user: it is left alone. Move it away, or choose another name with --study."
        )
    return folder


def _opened(path: Path) -> int | None:
    """Return the descriptor of a folder, not of a link, that only this user can write to; None for anything else."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    found = os.fstat(folder)
    if found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return folder
    os.close(folder)
    return None


def _is_marked(folder: int) -> bool:
    """Tell whether bstune made this folder."""
    try:
        mark = os.stat(MARK, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(mark.st_mode) and mark.st_uid == os.geteuid()


def _is_ours(path: Path | None) -> bool:
    folder = None if path is None else _opened(path)
    if folder is None:
        return False
    try:
        return _is_marked(folder)
    finally:
        os.close(folder)


def _is_same(path: Path, folder: int) -> bool:
    found = os.fstat(folder)
    return identity(path) == (found.st_dev, found.st_ino)


def _empty(folder: int, kept: set[str]) -> None:
    """Remove the checkpoints in a folder, through its descriptor: whatever has its name by now."""
    for name in os.listdir(folder):
        if _OURS.fullmatch(name) and name not in kept:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
