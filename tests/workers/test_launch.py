"""Only the file that the user named runs.

What else lies in the current folder, or beside the model, does not replace a module of Python's or ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.workers import launch

pytestmark = pytest.mark.cold_start

PROGRAM = Path(sys.executable).parent / "bstune"
TRAPS = [
    *(
        "base64",
        "ctypes",
        "encodings",
        "json",
        "multiprocessing",
        "random",
        "runpy",
        "select",
        "selectors",
        "shutil",
        "signal",
        "site",
        "socket",
    ),
    *("sqlite3", "ssl", "struct", "subprocess", "tempfile", "threading", "typing", "urllib", "uuid"),  # Of Python.
    *("click", "cloudpickle", "numpy", "optuna", "pandas", "psutil", "pynvml", "torch"),  # Of others.
    *("sitecustomize", "usercustomize"),  # Python runs these at its start.
]
MODEL = """
import bstune
from neighbour import loss  # A module that lies beside this file.

@bstune.objective(n_samples=320, epochs=1, evals=2)
def objective(trial):
    import torch  # Not in the process of the search, where it would take seconds.

    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=trial.learning_rate)
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        weight.grad = torch.zeros(1)
        optimizer.step()
        if samples >= trial.next_report:
            trial.report(val_loss=loss(trial.learning_rate), samples=samples)
"""
NEIGHBOUR = "def loss(rate):\n    return abs(rate - 0.01)\n"
OPTIONS = [
    "--device",
    "cpu",
    "--budget",
    "2",
    "--space",
    "batch_size=16",
    "--space",
    "learning_rate=0.01,0.1",
    "--jobs",
    "2",
    "--probe",
    "probe.json",  # Trials start as a probe's processes do.
]


def lay_traps(folder: Path) -> Path:
    """Write modules that say when they are run, with names of Python's, of installed packages', and of bstune's."""
    folder.mkdir(exist_ok=True)
    for name in TRAPS:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / f'executed-{name}')!r}, 'w').close()\nraise ImportError('a trap')\n"
        )
    package = folder / "bstune"
    package.mkdir()
    (package / "__init__.py").write_text(
        f"open({str(folder / 'executed-bstune')!r}, 'w').close()\nraise ImportError('a trap')\n"
    )
    (folder / "bstune.py").write_text((package / "__init__.py").read_text())
    return folder


def executed(folder: Path) -> list[str]:
    """Return the traps that were run."""
    return sorted(path.name for path in folder.glob("executed-*"))


def run(command: list[Any], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with variables changed."""
    environment = {**os.environ, "BSTUNE_STORAGE": "sqlite:///:memory:", **variables}
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=120
    )


def named_folders() -> list[str]:
    """Return the entries of PYTHONPATH, without empty ones, which mean the current folder."""
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a neighbour, in a folder of its own."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.py").write_text(MODEL)
    (tmp_path / "model" / "neighbour.py").write_text(NEIGHBOUR)
    (tmp_path / "model" / "probe.json").write_text(known_probe(64, step_s=None, n_train_samples=320).to_json())
    return tmp_path / "model" / "model.py"


@pytest.mark.skipif(not PROGRAM.exists(), reason="the program bstune is not installed")
def test_nothing_of_the_current_folder_runs(model: Path) -> None:
    """Also where the model lies in it; the model's neighbours can be imported."""
    lay_traps(model.parent)

    # The program `bstune` is itself started by Python, which would take the empty entry for the current folder.
    done = run([PROGRAM, "search", model.name, *OPTIONS], model.parent, PYTHONPATH=os.pathsep.join(named_folders()))

    assert done.returncode == 0, done.stderr
    assert "checked by" in done.stdout
    assert executed(model.parent) == []


FROM_SCRIPT = """
import os, sys
import bstune
import helper  # Beside this script.
os.environ["PYTHONPATH"] = os.pathsep + os.environ.get("PYTHONPATH", "")
objective = bstune.objective(n_samples=320, epochs=1, evals=2)(helper.train)
result = bstune.search(
    objective,
    device="cpu",
    budget=2,
    space={"batch_size": [16], "learning_rate": [0.01, 0.1]},
    storage="sqlite:///:memory:",
)
print(result.recommendation.learning_rate)
"""
HELPER = MODEL.replace("@bstune.objective(n_samples=320, epochs=1, evals=2)\n", "").replace(
    "def objective", "def train"
)


def test_a_script_finds_what_is_beside_it_and_runs_nothing_else(tmp_path: Path) -> None:
    """`python scripts/train.py`: functions travel by their module's name; the current folder is not searched."""
    (tmp_path / "scripts").mkdir()
    for name, text in (("train.py", FROM_SCRIPT), ("helper.py", HELPER), ("neighbour.py", NEIGHBOUR)):
        (tmp_path / "scripts" / name).write_text(text)
    lay_traps(tmp_path / "here")

    done = run([sys.executable, "../scripts/train.py"], tmp_path / "here")

    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.01\n"
    assert executed(tmp_path / "here") == []


def test_a_notebook_finds_what_is_beside_it(tmp_path: Path) -> None:
    """Where there is no script, the current folder is where its modules are."""
    for name, text in (("helper.py", HELPER), ("neighbour.py", NEIGHBOUR)):
        (tmp_path / name).write_text(text)

    done = run([sys.executable, "-c", FROM_SCRIPT], tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.01\n"


@pytest.mark.skipif(not PROGRAM.exists(), reason="the program bstune is not installed")
def test_a_module_is_found_by_an_explicit_path(model: Path, tmp_path: Path) -> None:
    """`bstune search model:objective` with PYTHONPATH; without it the current folder is not looked into.

    Nothing of the current folder runs where the model lies elsewhere, either.
    """
    lay_traps(here := tmp_path / "here")

    path = os.pathsep.join(["../model", *named_folders()])
    found = run([PROGRAM, "search", "model:objective", *OPTIONS[:-1], "../model/probe.json"], here, PYTHONPATH=path)
    missing = run([PROGRAM, "search", "model:objective", *OPTIONS], model.parent)

    assert found.returncode == 0, found.stderr
    assert "checked by" in found.stdout
    assert executed(here) == []
    assert missing.returncode == 1
    assert "No module named 'model'" in missing.stderr


@pytest.mark.parametrize("version", [(3, 10), sys.version_info[:2]])
def test_a_program_of_ours_never_looks_into_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    """Python has no option for it before 3.11; and the caller's bstune runs, whatever else has that name."""
    lay_traps(tmp_path)
    monkeypatch.setattr(sys, "version_info", version)
    line = launch.command("bstune.tuner.engines.ray_guard", str(tmp_path / "nothing"))
    monkeypatch.undo()

    assert ("-P" in line) == (version >= (3, 11))
    done = subprocess.run(
        line,
        cwd=tmp_path,
        env=launch.safe_environment({**os.environ, "PYTHONPATH": ":"}),
        stdin=subprocess.DEVNULL,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert executed(tmp_path) == []


LIBRARY = os.path.dirname(os.__file__)
PROGRAM_ITSELF = {"__file__": "/bin/bstune"}
BY_MODULE = {"__file__": "/x/cli.py", "__spec__": types.SimpleNamespace(name="bstune.cli")}


@pytest.mark.parametrize(
    ("main", "variable", "path", "expected"),
    [
        (PROGRAM_ITSELF, "", ["/bin", LIBRARY, "/installed"], [LIBRARY, "/installed"]),
        (PROGRAM_ITSELF, "/named", ["/bin", "/named", LIBRARY], ["/named", LIBRARY]),
        (PROGRAM_ITSELF, ":/named", ["/bin", "HERE", "/named", LIBRARY], ["/named", LIBRARY]),
        (PROGRAM_ITSELF, ".", ["/bin", "HERE", LIBRARY], ["HERE", LIBRARY]),
        (BY_MODULE, ".", ["HERE", "HERE", LIBRARY], ["HERE", LIBRARY]),
        (BY_MODULE, "", ["HERE", LIBRARY], [LIBRARY]),
        (
            {"__file__": "/scripts/train.py"},
            "",
            ["/scripts", LIBRARY, "/installed"],
            ["/scripts", LIBRARY, "/installed"],
        ),
        ({"__file__": "/scripts/train.py"}, "", ["/scripts", "", LIBRARY], ["/scripts", LIBRARY, "HERE"]),
        ({}, "", ["", LIBRARY, "/installed"], [LIBRARY, "HERE", "/installed"]),
    ],
)
def test_where_workers_look_for_modules(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: dict[str, Any],
    variable: str,
    path: list[str],
    expected: list[str],
) -> None:
    """As the caller does, but the current folder comes after the standard library, for the command line if named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", variable)
    monkeypatch.setattr(sys, "path", [str(tmp_path) if folder == "HERE" else folder for folder in path])
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(**main))

    assert launch.path_of_caller() == tuple(str(tmp_path) if folder == "HERE" else folder for folder in expected)
