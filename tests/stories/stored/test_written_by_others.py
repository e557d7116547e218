"""What somebody else wrote into the database, or made in another account, is not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
import pytest
from bstune.tests.stories.stored.stored import (
    MODEL,
    NOBODY,
    as_root,
    asks,
    contents,
    invoke,
    ordinary,
)

# --- what somebody else wrote into the database -------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["{}/other/model.py:objective", "{}/other/model.py:elsewhere", "{}/model.py:elsewhere", "other/model.py"]
)
def test_another_file_is_not_run(folder: Path, target: str) -> None:
    """An attribute that plain Optuna sets, even if the file is this user's and has the same content."""
    (folder / "other").mkdir()
    shutil.copy(folder / "model.py", folder / "other")
    ordinary().set_user_attr("objective", target.format(folder))

    said = asks(folder)
    assert "its seal does not fit" in said
    assert target.format(folder).removesuffix(":objective") in said


@pytest.mark.parametrize("target", ["antigravity:objective", "trap:objective", "trap.inner:objective"])
def test_a_module_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Not even its parent is imported to find that out."""
    monkeypatch.syspath_prepend(folder / "path")
    (folder / "path" / "trap").mkdir(parents=True)
    (folder / "path" / "trap" / "__init__.py").write_text(MODEL)
    ordinary().set_user_attr("objective", target)

    said = asks(folder)
    assert "its seal does not fit" in said
    assert "it is a module: what its code is now was not compared" in said
    assert {"antigravity", "trap", "trap.inner"} & set(sys.modules) == set()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("asked", {"engine": "ray", "ray_address": "198.51.100.7:6379"}),
        ("fingerprint", {"source": "0" * 16}),
        ("objective_seal", "0" * 64),
        ("objective_seal", ["\ud800"]),
    ],
)
def test_no_part_of_what_is_sealed_can_be_changed(folder: Path, attribute: str, value: Any) -> None:
    """Nor where it runs: on a cluster of somebody else, say."""
    ordinary().set_user_attr(attribute, value)

    assert "seal" in asks(folder)


def test_the_seal_of_one_study_does_not_serve_another(folder: Path) -> None:
    """Copied, with all its attributes, under another name."""
    optuna.copy_study(
        from_study_name="model",
        from_storage="sqlite:///bstune.db",
        to_storage="sqlite:///bstune.db",
        to_study_name="twin",
    )

    assert "its seal does not fit" in asks(folder, "--study", "twin")


@pytest.mark.parametrize(
    ("name", "to_paste"),
    [
        ("my model.py", "'{}/my model.py'"),
        ("x\n\x1b[2J.py", "'{}/x \\x1b[2J.py'"),
        ("$(touch ran).py", "'{}/$(touch ran).py'"),
        ("'; touch ran; '.py", "PATH"),
        ("password='; touch ran #.py", "PATH"),
    ],
)
def test_a_hostile_name_is_only_shown(folder: Path, name: str, to_paste: str) -> None:
    """In one line, with control characters escaped, and never as what a shell runs when it is pasted."""
    shutil.copy("model.py", name)
    ordinary().set_user_attr("objective", f"{folder}/{name}:objective")

    said = asks(folder)
    assert "\x1b" not in said
    assert f"name it: bstune search {to_paste.format(folder)}; or add --yes" in said


@pytest.mark.parametrize(
    "target", [[1], {"a": 1}, True, "\x1b[2J.py:objective", "no such module", "/dev/zero:objective", "\0.py:objective"]
)
def test_what_is_no_reference_is_one_message(folder: Path, target: Any) -> None:
    """Also for who says --yes."""
    ordinary().set_user_attr("objective", target)

    for arguments in (["search"], ["search", "--yes"]):
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: The study model cannot go on with what it stores.")
        assert "\x1b" not in result.stderr


# --- whose it is --------------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize(
    ("name", "said"), [("bstune.db", "the database {}/bstune.db belongs to"), ("model.py", "the file belongs to")]
)
def test_what_belongs_to_another_user_is_not_run(folder: Path, name: str, said: str) -> None:
    """Database or file; the seal alone would fit."""
    os.chown(name, NOBODY, NOBODY)

    found = asks(folder)
    assert said.format(folder) in found
    assert "seal" not in found


def test_for_another_user_nothing_of_it_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Database, key and file, each with its reason."""
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 12345)
    said = asks(folder)

    assert "bstune.db belongs to another user" in said
    assert "its seal cannot be checked" in said
    assert ("the file belongs to another user" in said) == (us != 0)  # What root has installed is anybody's to run.


@as_root
def test_another_account_is_asked(folder: Path) -> None:
    """A process of that account looks at a study of root's that it may read."""
    # What is imported late is imported here, since the account may not be able to read this Python.
    code = """
import os
from click.testing import CliRunner
from bstune.cli import main
CliRunner().invoke(main, ["search"])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
main(["search"])
"""
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        shared.chmod(0o755)
        home = shared / "home"
        home.mkdir()
        os.chown(home, NOBODY, NOBODY)
        ordinary().set_user_attr("objective", f"{shared}/model.py:objective")
        for file in ("model.py", "bstune.db"):
            shutil.copy(file, shared)
        before = contents(shared)
        environment = {name: value for name, value in os.environ.items() if name != "XDG_STATE_HOME"} | {
            "HOME": str(home)
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=environment,
            cwd=shared,
        )
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert f"the database {shared}/bstune.db belongs to another user, root" in done.stderr
        assert f"its seal cannot be checked: this user has no key yet ({home}/.local/state/bstune/key)" in done.stderr
        assert contents(shared) == before


def test_a_database_that_others_may_write_is_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The world, or another group than the user's own, which may write where the umask is 002."""
    (folder / "bstune.db").chmod(0o666)
    assert "others may write to the database" in asks(folder)
    (folder / "bstune.db").chmod(0o664)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getegid", lambda: 12345)
        assert "others may write to the database" in asks(folder)
    assert invoke("search").exit_code == 0
