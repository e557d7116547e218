"""What the runs of a command have printed: a folder beside the storage, with a file for each trial."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..core.errors import StudyError
from .study import Study

MOST_BYTES = 8 << 20
"""Of one log that is read; bstune writes less."""


def log_folder(study: Study) -> Path | None:
    """Make the folder where there is none and return it; None for a storage without a file.

    Raises:
        StudyError: Something else has its name.
    """
    path = study.storage.location.log_path(study.name)
    if path is None:
        return None
    with study.storage.guard():
        path.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StudyError(
            f"{path} has the name of the folder for this study's logs, and is not your folder: it is left alone. "
            "Move it away, or choose another name with --study."
        )
    return path


def log_name(number: int) -> str:
    """Return what the log of a trial is called in the folder."""
    return f"trial-{number}.log"


def read_log(study: Study, number: int) -> str:
    """Return what a trial has printed so far.

    Raises:
        StudyError: There is no such trial, or it left no log.
    """
    if not 0 <= number < len(study.records):
        raise StudyError(f"The study {study.name!r} has no trial {number}: it has {len(study.records)} trials.")
    folder = study.storage.location.log_path(study.name)
    try:
        if folder is None:
            raise FileNotFoundError
        file = os.open(folder / log_name(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise StudyError(
            f"Trial {number} of the study {study.name!r} has no log here. What a command prints is kept beside a "
            "storage that is a file; what other objectives print is shown only on an error."
        ) from None
    with open(file, "rb") as log:
        if not stat.S_ISREG(os.fstat(log.fileno()).st_mode):
            raise StudyError(f"{folder}/{log_name(number)} is not a plain file, so it is not read.")
        return log.read(MOST_BYTES).decode(errors="replace")
