"""What is wrong is said before anything is trained, and one objective never takes over the study of another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bstune
import pytest
from bstune.cli import main
from bstune.tuner.studies.storage import read_storage
from click.testing import CliRunner, Result

MODEL = """
import bstune, torch
from torch import nn

x = torch.randn(96, 4)
data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))


def net():
    return nn.Linear(4, 1)


def sgd(parameters, lr, momentum=0.0):
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum)


objective = bstune.Supervised(net, data, data, optimizer=sgd, epochs=4)
"""


LOOP = """
import bstune


@bstune.objective(n_samples=2000)
def objective(trial):
    trial.report({loss} + trial.learning_rate, samples=trial.max_samples)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def run(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [*arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--space", "lr=0.1"), "did you mean 'learning_rate'?"),
        (("--goal", "tim"), "Did you mean time?"),
        (("--engine", "Ray"), "Did you mean ray?"),
        (("--sampler", "rnadom"), "Did you mean random?"),
    ],
)
def test_a_near_miss_is_named(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    """Beside all that would have been right."""
    done = run("search", "model.py", *arguments)

    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize(
    ("space", "said", "options"),
    [
        ("momentun=0.5", "neither model() nor optimizer(params, lr)", ("--dry-run",)),
        ("momentum=0.5,-2.0", "Invalid momentum value", ("--dry-run",)),
        ("momentum=0.5,-2.0", "Invalid momentum value", ()),
    ],
)
def test_a_dry_run_and_a_run_refuse_extra_dimensions_alike(
    folder: Path, space: str, said: str, options: tuple[str, ...]
) -> None:
    """Before the probe, not in the first trial that draws the bad value."""
    done = run("search", "model.py", "--space", space, *options)

    assert done.exit_code == 1
    assert said in done.output
    assert "probe  micro-batch" not in done.output
    assert "forecast" not in done.output.lower()


def report(trial: bstune.Trial) -> None:
    """A loop whose loss is a formula."""
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        trial.report(1 / samples + trial.learning_rate, samples=samples)


def other(trial: bstune.Trial) -> None:
    """The same under another name."""
    report(trial)
    assert trial


ASKED: dict[str, Any] = {
    "isolation": "none",
    "budget": 3,
    "space": {"batch_size": [16, 32], "learning_rate": [0.1, 0.2]},
    "storage": "sqlite:///studies.db",
}


def test_a_dry_run_says_that_nothing_would_be_run(folder: Path) -> None:
    """As the search would at its end."""
    (folder / "loop.py").write_text(LOOP.format(loss=1.0))
    for dry in ((), ("--dry-run",)):
        done = run("search", "loop.py", "--isolation", "none", "--n-trials", "1", *dry)
        assert done.exit_code == 1
        assert "n_trials=1 leaves none" in done.output


def test_fresh_makes_a_study_beside_the_old_one(folder: Path) -> None:
    """From Python as from the command line."""
    loop = bstune.objective(n_samples=1000, name="formula")(report)
    names = [bstune.search(loop, **ASKED, fresh=fresh).study for fresh in (False, False, True)]

    assert names == ["formula", "formula", "formula-2"]


def test_objectives_of_one_notebook_have_studies_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable that holds them, as in a file; one without a variable never takes over another's study."""
    script = sys.modules["__main__"]
    first, second = (bstune.objective(n_samples=1000)(function) for function in (report, other))
    monkeypatch.setattr(script, "__file__", "/my/notes.py", raising=False)
    monkeypatch.setattr(script, "objective", first, raising=False)
    assert bstune.search(first, **ASKED).study == "notes"
    monkeypatch.setattr(script, "wide", second, raising=False)
    assert bstune.search(second, **ASKED).study == "notes-wide"
    monkeypatch.delattr(script, "wide")
    assert bstune.search(second, **ASKED).study == "notes-2"
    monkeypatch.setattr(script, "objective", second)
    assert bstune.search(second, **ASKED).study == "notes-2"
    assert bstune.search(first, **ASKED).study == "notes"


def test_files_of_one_name_have_studies_of_their_own(folder: Path) -> None:
    """Run from one folder. A file that was moved is still the same objective."""
    for place, loss in (("one", 1.0), ("two", 2.0)):
        (folder / place).mkdir()
        (folder / place / "loop.py").write_text(LOOP.format(loss=loss))
    for _ in range(2):
        for place, name in (("one", "loop"), ("two", "loop-2")):
            assert bstune.search(bstune.load(f"{place}/loop.py"), **ASKED).study == name
    (folder / "one").rename(folder / "three")
    assert bstune.search(bstune.load("three/loop.py"), **ASKED).study == "loop"
    with read_storage(ASKED["storage"]) as storage:
        assert sorted(storage.names()) == ["loop", "loop-2"]
