"""Files of somebody else, and a search that meets them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.tuner.core.errors import StudyError

SPACE = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}
VICTIM = "my only copy\n"


@bstune.objective(n_samples=320, epochs=4, evals=4, name="formula")
def formula(trial: bstune.Trial) -> None:
    """A bowl in the learning rate."""
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        if samples >= trial.next_report:
            trial.report(val_loss=1 + (trial.learning_rate - 0.01) ** 2 + 100 / samples, samples=samples)


def search(url: str, **changes: Any) -> bstune.SearchResult:
    """Search the formula in this process."""
    arguments: dict[str, Any] = {"isolation": "none", "space": SPACE, "budget": 2, "storage": url}
    return bstune.search(formula, **(arguments | changes))


def contents(folder: Path) -> dict[str, Any]:
    """Every file and link below a folder, with its content."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def check_unharmed(folder: Path, message: str, url: str) -> None:
    """A search is refused with this message, and nothing in the folder has changed."""
    before = contents(folder)
    with pytest.raises(StudyError, match=message):
        search(url)
    assert contents(folder) == before


def link(path: Path, victim: Path) -> None:
    """A link to it."""
    path.symlink_to(victim)


def copy(path: Path, victim: Path) -> None:
    """A file of its own."""
    shutil.copyfile(victim, path)


def folder_of(path: Path, victim: Path) -> None:
    """A folder with it in it."""
    path.mkdir()
    shutil.copyfile(victim, path / "file")


def dangling(path: Path, victim: Path) -> None:
    """A link to nothing."""
    path.symlink_to(victim.with_name("nowhere"))


def made(path: Path, *statements: str) -> None:
    """Make a database, or add to one."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
