"""A study that stores its model, and `bstune search` without MODEL on it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import optuna
import pytest
from bstune.cli import main
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
