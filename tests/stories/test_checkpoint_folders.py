"""The folder of a study's checkpoints is used where bstune made it, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bstune.tests.stories.victims import (
    VICTIM,
    contents,
    copy,
    dangling,
    folder_of,
    link,
)
from bstune.tuner.core.errors import StudyError
from bstune.tuner.studies.catalog import make_study
from bstune.tuner.studies.checkpoints import MARK, checkpoint_folder
from bstune.tuner.studies.location import locate
from bstune.tuner.studies.storage import open_storage


def a_study(storage: Any) -> Any:
    """A study whose trials can go on."""
    study = make_study(storage, "digits")
    study.set(facts={"can_continue": True})
    return study


@pytest.mark.parametrize("make", [link, copy, folder_of, dangling])
def test_a_folder_of_checkpoints_that_is_somebody_elses(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    """A link to a home folder, a file, a folder without the mark: refused, and nothing in it is deleted."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "trial-0.pt").write_text(VICTIM)
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        study = a_study(storage)
        make(tmp_path / "bstune.db.checkpoints-digits", home if make is link else home / "trial-0.pt")
        before = contents(tmp_path)
        with pytest.raises(StudyError, match="and was not made by bstune"), checkpoint_folder(study):
            pass
        assert contents(tmp_path) == before
    assert (home / "trial-0.pt").read_text() == VICTIM


def test_what_others_put_into_our_folder_stays(tmp_path: Path) -> None:
    """Only names that bstune writes are emptied; then the folder stays, too."""
    folder = tmp_path / "bstune.db.checkpoints-digits"
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        study = a_study(storage)
        with checkpoint_folder(study) as path:
            assert path == folder
            (folder / "trial-0.pt").write_text("ours")
            (folder / "notes.txt").write_text(VICTIM)
        assert contents(folder) == {MARK: (folder / MARK).read_bytes(), "notes.txt": VICTIM.encode()}
        (folder / "notes.txt").unlink()
        with checkpoint_folder(study):
            pass
    assert not folder.exists()


def test_a_long_name_of_a_study_has_a_folder(tmp_path: Path) -> None:
    """Two of them have two."""
    names = ["é" * 150 + end for end in "ab"]
    folders = {locate(f"sqlite:///{tmp_path}/bstune.db").checkpoint_path(name) for name in names}
    assert len(folders) == 2
    for folder in folders:
        assert folder is not None
        folder.mkdir()


def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could put a link where a checkpoint is written next. A folder that all may write to is as bad."""
    folder = tmp_path / "bstune.db.checkpoints-digits"
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        study = a_study(storage)
        folder.mkdir()
        (folder / MARK).touch()
        folder.chmod(0o777)
        with pytest.raises(StudyError, match="not made by bstune for this user"), checkpoint_folder(study):
            pass
        folder.chmod(0o700)
        us = os.geteuid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: us + 1)
            with pytest.raises(StudyError, match="not made by bstune for this user"), checkpoint_folder(study):
                pass


def test_a_folder_that_was_not_marked_in_time_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk was full, or the search was killed, right after it was made."""
    folder = tmp_path / "bstune.db.checkpoints-digits"
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        study = a_study(storage)
        folder.mkdir(mode=0o700)
        with checkpoint_folder(study) as path:
            assert path == folder
        assert not folder.exists()
