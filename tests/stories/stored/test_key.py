"""The key that seals studies is this user's alone; without one, or with another, bstune asks."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bstune.objectives import seal
from bstune.tests.stories.stored.stored import (
    ASKED,
    NOBODY,
    as_root,
    asks,
    contents,
)
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.storage import open_storage


def test_the_key_is_this_users_alone(made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made on first use, whatever the umask, in folders of its own, and is then kept."""
    assert len(made["state/bstune/key"]) == 32
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "new" / "state"))
    old = os.umask(0)
    try:
        first = sealed(tmp_path)
    finally:
        os.umask(old)
    assert [
        stat.S_IMODE((tmp_path / "new" / "state" / name).stat().st_mode) for name in ("", "bstune", "bstune/key")
    ] == [
        0o700,
        0o700,
        0o600,
    ]
    assert first is not None
    assert first == sealed(tmp_path)


def sealed(folder: Path) -> str | None:
    """Return the seal of a study in this folder."""
    with open_storage(f"sqlite:///{folder}/bstune.db") as storage:
        study = find_study(storage, "digits") or make_study(storage, "digits")
        return seal.make_seal(study, objective="/model.py:objective", source="abc", asked=ASKED)


def test_searches_that_start_at_once_make_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes second takes the key of the first; nobody overwrites one."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        seal._make_key()
        keys.append(seal._read_key())

    keys: list[bytes] = []
    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) >= 1
    assert set(keys) == {(tmp_path / "state" / "bstune" / "key").read_bytes()}


def test_a_study_in_memory_and_one_without_a_file_need_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can go on from them, so nothing is made for them."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with open_storage("sqlite:///:memory:") as storage:
        assert (
            seal.make_seal(make_study(storage, "a"), objective="/model.py:objective", source="abc", asked=ASKED) is None
        )
    with open_storage(f"sqlite:///{tmp_path}/bstune.db") as storage:
        assert seal.make_seal(make_study(storage, "a"), objective=None, source="abc", asked=ASKED) is None
    assert not (tmp_path / "state").exists()


def linked(path: Path) -> None:
    """Put a link in the place of a thing."""
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def exchanged(path: Path, make: Callable[[Path], Any]) -> None:
    """Put something else in the place of a file or a folder."""
    path.unlink() if path.is_file() else shutil.rmtree(path)
    make(path)


BAD_KEYS: dict[str, Callable[[Path], Any]] = {
    "a link": linked,
    "readable by others": lambda key: key.chmod(0o644),
    "readable by a group": lambda key: key.chmod(0o640),
    "a folder": lambda key: exchanged(key, Path.mkdir),
    "a pipe": lambda key: exchanged(key, os.mkfifo),
    "empty": lambda key: key.write_bytes(b""),
    "too long": lambda key: key.write_bytes(b"x" * 33),
    "in a folder that others may write": lambda key: key.parent.chmod(0o777),
    "in a folder that is a link": lambda key: linked(key.parent),
    "in a file instead of a folder": lambda key: exchanged(key.parent, Path.touch),
}
if os.geteuid() == 0:
    BAD_KEYS["another user's"] = lambda key: os.chown(key, NOBODY, NOBODY)
else:
    BAD_KEYS["not readable"] = lambda key: key.chmod(0)


@pytest.mark.parametrize("what", BAD_KEYS)
def test_a_key_that_cannot_be_secret_is_none(folder: Path, what: str) -> None:
    """A study sealed with it is asked about, a new one gets no seal, and whatever lies there stays as it is."""
    BAD_KEYS[what](folder / "state" / "bstune" / "key")

    assert "its seal cannot be checked: " in asks(folder)
    before = contents(folder / "state")
    (folder / "elsewhere").mkdir()
    assert sealed(folder / "elsewhere") is None
    assert contents(folder / "state") == before


def test_another_key_does_not_fit(folder: Path) -> None:
    """Of another user, or lost and made again."""
    (folder / "state" / "bstune" / "key").write_bytes(b"x" * 32)

    assert "its seal does not fit: another user made it" in asks(folder)


def test_a_key_that_is_gone_is_said(folder: Path) -> None:
    """To look is not to make one."""
    shutil.rmtree(folder / "state")

    assert f"this user has no key yet ({folder}/state/bstune/key)" in asks(folder)


@pytest.mark.parametrize("home", ["", "/", "relative", "{}/missing"])
def test_without_a_home_there_is_no_seal(folder: Path, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made in the working directory or at the root of the disk either."""
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", home.format(folder))

    assert "this user has no home folder for a key" in asks(folder)
    before = set(os.listdir("/"))
    (folder / "elsewhere").mkdir()
    assert sealed(folder / "elsewhere") is None
    assert not (folder / "missing").exists()
    assert not (folder / "not").exists()
    assert set(os.listdir("/")) == before


def test_the_home_of_the_user_holds_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where XDG says: in ~/.local/state."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert sealed(tmp_path) is not None
    assert (tmp_path / ".local" / "state" / "bstune" / "key").is_file()


@as_root
def test_nothing_is_made_in_the_home_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `sudo` that keeps HOME: the user could not read it later."""
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", NOBODY, NOBODY)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert sealed(tmp_path) is None
    assert list((tmp_path / "home").iterdir()) == []
