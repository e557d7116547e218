"""`bstune search` without MODEL runs what the newest study stores.

So it runs only what this user has chosen, here, and as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bstune
import optuna
import pytest
from bstune.cli import main
from bstune.objectives import seal
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.storage import open_storage, read_storage
from bstune.tuner.testing.fake_device import known_probe
from click.testing import CliRunner, Result

MODEL = """
import pathlib
import bstune, torch

with open(pathlib.Path(__file__).with_name("ran"), "a") as file:
    file.write(__file__)

@bstune.objective(n_samples=320, epochs=4, evals=4)
def objective(trial):
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        trial.report(val_loss=1 + 100 / samples + (trial.learning_rate - 0.01) ** 2, samples=samples)
"""
OPTIONS = ("--space", "batch_size=16", "--space", "learning_rate=0.001,0.01", "--budget", "2", "--probe", "probe.json")
PROBE = known_probe(64, step_s=None, n_train_samples=320)
ASKED: dict[str, Any] = {"isolation": "process", "engine": "optuna"}
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file to another user")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a finished search of model.py, by name: a seal names the path, so all tests go on in this folder."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        (folder / "model.py").write_text(MODEL)
        space: dict[str, Any] = {"batch_size": 16, "learning_rate": [0.001, 0.01]}
        bstune.search(
            bstune.load(folder / "model.py"),
            probe=PROBE,
            space=space,
            budget=2,
            device="cpu",
            storage=f"sqlite:///{folder}/bstune.db",
        )
    names = ("model.py", "bstune.db", "state/bstune/key")
    return {"": str(folder).encode(), **{name: (folder / name).read_bytes() for name in names}}


@pytest.fixture
def folder(made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the study, its model and the key as they were after the search."""
    folder = Path(made[""].decode())
    shutil.rmtree(folder)
    (folder / "state" / "bstune").mkdir(0o700, parents=True)
    for name, content in made.items():
        if name:
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600 if name.endswith("key") else 0o644)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)
    return folder


def invoke(*arguments: str) -> Result:
    """Run a command in this process; the objective runs in processes of its own."""
    return CliRunner().invoke(main, arguments)


def ordinary(name: str = "model") -> optuna.Study:
    """The study as any program with Optuna opens it."""
    return optuna.load_study(study_name=name, storage="sqlite:///bstune.db")


def contents(folder: Path) -> dict[str, Any]:
    """What lies in a folder: kind, mode and owner of each thing, and the bytes of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        at = path.lstat()
        found[str(path.relative_to(folder))] = (
            at.st_mode,
            at.st_uid,
            path.read_bytes() if stat.S_ISREG(at.st_mode) else None,
        )
    return found


def asks(folder: Path, *arguments: str) -> str:
    """Return what is said by a search that runs nothing and writes nothing."""
    before = contents(folder)
    result = invoke("search", *arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Nothing was run." in result.stderr
    assert "name it: bstune search " in result.stderr
    assert "add --yes" in result.stderr
    assert not list(folder.rglob("ran"))
    assert contents(folder) == before
    return result.stderr


# --- what goes on -------------------------------------------------------------------------------------------------


def test_a_study_of_ones_own_goes_on(folder: Path) -> None:
    """It says on stderr what it runs, and runs it."""
    result = invoke("search")

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("verified: true")
    assert result.stderr.startswith(f"Going on with study model: runs {folder}/model.py\n")
    assert (folder / "ran").read_text().startswith(f"{folder}/model.py")


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


@pytest.mark.parametrize("option", ["--dry-run", "--fresh", "--json"])
def test_options_change_nothing_of_it(folder: Path, option: str) -> None:
    """A dry run executes the file too."""
    ordinary().set_user_attr("objective", f"{folder}/other.py:objective")
    shutil.copy("model.py", "other.py")

    asks(folder, option)


def test_a_study_says_how_to_search_but_not_where_it_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for who says --yes."""
    seen = watch(monkeypatch)
    ordinary().set_user_attr(
        "asked", {"storage": f"sqlite:///{folder}/other.db", "study": "other", "trial_timeout": 7.0}
    )

    assert "seen" in invoke("search", "--yes").stderr
    assert (seen[0].storage, seen[0].study, seen[0].trial_timeout) == (None, "model", 7.0)


@pytest.mark.parametrize(
    ("options", "budget", "budget_s"),
    [((), 12.0, 90.0), (("--budget", "5"), 5.0, None), (("--budget", "2h"), 12.0, 7200.0)],
)
def test_a_budget_in_seconds_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], budget: float, budget_s: float | None
) -> None:
    """Without options as it was stored; it may become another one, of either kind."""
    seen = watch(monkeypatch)
    ordinary().set_user_attr("plan", {**ordinary().user_attrs["plan"], "budget": 12.0, "budget_s": 90.0})

    assert "seen" in invoke("search", *options).stderr
    assert (seen[0].plan.budget, seen[0].plan.budget_s) == (budget, budget_s)


@pytest.mark.parametrize(
    ("options", "goal", "target"),
    [
        ((), "time", 0.5),
        (("--goal", "loss"), "loss", None),
        (("--goal", "time"), "time", 0.5),
        (("--target", "0.25"), "time", 0.25),
    ],
)
def test_another_goal_gives_up_the_stored_target(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], goal: str, target: float | None
) -> None:
    """It belongs to the goal that was stored with it."""
    seen = watch(monkeypatch)
    ordinary().set_user_attr("plan", {**ordinary().user_attrs["plan"], "goal": "time", "target": 0.5})

    assert "seen" in invoke("search", *options).stderr
    assert (seen[0].plan.goal, seen[0].plan.target) == (goal, target)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let a search end where it would begin, and return the list that takes its arguments."""
    seen: list[Any] = []

    def run_search(objective: Any, arguments: Any, *, fresh: bool) -> None:
        seen.append(arguments)
        raise bstune.BstuneError(f"seen {objective.path}")

    monkeypatch.setattr("bstune.tuner.search.run_search", run_search)
    return seen


# --- what has changed ---------------------------------------------------------------------------------------------


def test_a_file_that_was_changed_is_not_run(folder: Path) -> None:
    """And the way out does not promise that its trials count."""
    with open("model.py", "a") as file:
        file.write("# mended\n")

    said = asks(folder)
    assert "the file was changed since" in said
    assert "--fresh" in said
    assert "seal" not in said


def test_another_comment_is_no_other_code(folder: Path) -> None:
    """Whoever names the file goes on, and has then named the file as it is now; what the code does may not change."""
    trials = ordinary().trials
    text = (folder / "model.py").read_text()
    (folder / "model.py").write_text('"""A model."""\n' + text.replace("bstune, torch", "bstune,  torch  # both"))
    asks(folder)

    (folder / "probe.json").write_text(PROBE.to_json())
    again = invoke("search", "model.py", *OPTIONS)
    assert (again.exit_code, ordinary().trials) == (0, trials), again.output
    assert invoke("search").exit_code == 0

    (folder / "model.py").write_text(text.replace("0.01)", "0.02)"))
    again = invoke("search", "model.py", *OPTIONS)
    assert (again.exit_code, ordinary().trials) == (1, trials)
    assert "source of the objective: was" in again.stderr


def test_a_file_that_is_gone_is_said_once(folder: Path) -> None:
    """To say --yes would not help, so it is not offered."""
    (folder / "model.py").unlink()

    result = invoke("search")
    assert result.exit_code == 1
    assert f"{folder}/model.py: no such file" in result.stderr
    assert "--yes" not in result.stderr


def test_a_link_in_its_place_is_not_run(folder: Path) -> None:
    """What it leads to has the same content, but other neighbours."""
    (folder / "other").mkdir()
    shutil.move("model.py", "other/model.py")
    (folder / "model.py").symlink_to("other/model.py")

    assert "it is a link" in asks(folder)


def test_a_database_that_was_copied_or_renamed_is_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database from elsewhere may have been put in its place, too."""
    (folder / "copy").mkdir()
    shutil.copy("bstune.db", "copy")
    os.rename("bstune.db", "renamed.db")
    assert "its seal does not fit" in asks(folder, "--storage", "sqlite:///renamed.db")
    monkeypatch.chdir("copy")
    assert "its seal does not fit" in asks(folder)


def test_a_database_is_known_by_any_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link leads to the same file."""
    watch(monkeypatch)
    (folder / "link.db").symlink_to("bstune.db")

    assert f"seen {folder}/model.py" in invoke("search", "--storage", f"sqlite:///{folder}/link.db").stderr


@pytest.mark.parametrize("old", [None, 5])
def test_a_study_without_a_seal_is_asked_about(folder: Path, old: Any) -> None:
    """As an older bstune has made it."""
    ordinary().set_user_attr("objective_seal", old)

    assert "it has no seal of this user: an older bstune made it" in asks(folder)


def test_a_journal_is_sealed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, like a database."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    reference = bstune.load(model)
    target = f"{model}:objective"
    url = f"journal:///{tmp_path}/runs.journal"
    with open_storage(url) as storage:
        study = make_study(storage, "digits")
        code = seal.make_seal(study, objective=target, source=reference.source_hash, asked=ASKED)
        study.set(objective=target, fingerprint={"source": reference.source_hash}, asked=ASKED, objective_seal=code)
    (tmp_path / "runs.journal").chmod(0o600)
    watch(monkeypatch)
    assert f"seen {model}" in invoke("search", "--storage", url).stderr

    os.rename(tmp_path / "runs.journal", tmp_path / "other.journal")
    assert "its seal does not fit" in asks(tmp_path, "--storage", f"journal:///{tmp_path}/other.journal")


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


# --- the key ------------------------------------------------------------------------------------------------------


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


# --- the two ways out ---------------------------------------------------------------------------------------------


def test_yes_runs_what_is_stored_and_seals_it(folder: Path) -> None:
    """After saying what; from then on it goes on by itself."""
    (folder / "other").mkdir()
    shutil.copy("model.py", "other/model.py")
    ordinary().set_user_attr("objective", f"{folder}/other/model.py:objective")
    asks(folder)

    result = invoke("search", "--yes")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(f"Going on with study model: runs {folder}/other/model.py\n")
    assert (folder / "other" / "ran").exists()
    assert not (folder / "ran").exists()
    again = invoke("search", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["study"] == "model"


def test_to_name_the_file_seals_it(folder: Path) -> None:
    """An old study, once its model is named, goes on without it."""
    ordinary().set_user_attr("objective_seal", None)
    asks(folder)

    (folder / "probe.json").write_text(PROBE.to_json())
    named = invoke("search", "model.py", *OPTIONS, "--yes")
    assert named.exit_code == 0, named.output
    assert "Going on with" not in named.stderr
    with read_storage(None) as storage:
        study = find_study(storage, "model")
        assert study is not None
        assert isinstance(study.attributes["objective_seal"], str)
        seal.require_trusted(study, seal.stored_reference(study))
