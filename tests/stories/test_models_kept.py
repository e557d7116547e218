"""What a search and `bstune train` leave to take home: a trained model, in a file that is bstune's own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import bstune
import pytest
import torch
from bstune.cli import main
from bstune.tuner.core.errors import BstuneError
from bstune.tuner.core.trials import TrialSpec
from bstune.tuner.studies.model_files import ModelKeeper, check_model_path, read_header, write_model
from click.testing import CliRunner

MODEL = """
import bstune, torch
from torch import nn

x = torch.randn(96, 4)
data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))


def net():
    return nn.Linear(4, 1)


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr)


objective = bstune.Supervised(net, data, data, optimizer=sgd, epochs=4)
"""
ASKED: dict[str, Any] = {
    "isolation": "none",
    "budget": 4,
    "space": {"batch_size": [16, 32], "learning_rate": [0.1, 0.2]},
    "storage": "sqlite:///studies.db",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def spec(path: Path | None = None, study: str = "digits", **changes: Any) -> TrialSpec:
    """A run that is asked for its model."""
    return TrialSpec(
        **{
            "number": 7,
            "stage": "confirm",
            "global_batch_size": 32,
            "micro_batch_size": 16,
            "accumulation_steps": 2,
            "learning_rate": 0.1,
            "seed": 3,
            "end_samples": 64,
            "points": (64,),
            "params": {"depth": 2},
            "model_to": str(path),
            "model_of": study,
            **changes,
        }
    )


def saved(keeper: ModelKeeper, number: int, val_loss: float, weight: float) -> None:
    """A run that leaves its model and is taken."""
    asked = keeper.begin(spec(number=number))
    write_model(asked, {"weight": torch.tensor([weight])}, samples=64, val_loss=val_loss)
    keeper.take(number)


def test_the_file_says_what_it_is_and_loads_without_running_code(tmp_path: Path) -> None:
    """The state_dict, and beside it what it was trained with; its header is read without torch."""
    path = tmp_path / "model.pt"
    write_model(spec(path), torch.nn.Linear(2, 1), samples=64, val_loss=0.25)

    kept = torch.load(path, weights_only=True)
    torch.nn.Linear(2, 1).load_state_dict(kept["model"])
    assert (kept["study"], kept["seed"], kept["samples"], kept["val_loss"]) == ("digits", 3, 64, 0.25)
    assert kept["setting"]["learning_rate"] == 0.1
    assert kept["setting"]["params"] == {"depth": 2}
    header = read_header(path)
    assert header is not None
    assert (header.study, header.val_loss, header.batch_size) == ("digits", 0.25, 32)


def test_the_lowest_loss_is_kept_also_in_a_later_call(tmp_path: Path) -> None:
    """And nothing lies beside it."""
    path = tmp_path / "best.pt"
    first = ModelKeeper(path, "digits")
    for number, loss in ((1, 0.3), (2, 0.2), (3, 0.4)):
        saved(first, number, loss, float(number))
    saved(ModelKeeper(path, "digits"), 4, 0.25, 4.0)

    assert torch.load(path, weights_only=True)["model"]["weight"].item() == 2.0
    assert os.listdir(tmp_path) == ["best.pt"]


def test_what_bstune_did_not_write_is_left_alone(tmp_path: Path) -> None:
    """Whatever it is: a text, a model of somebody else's, of another study, an empty file, a link, a folder."""
    theirs, other = tmp_path / "theirs.pt", tmp_path / "other.pt"
    torch.save({"model": torch.nn.Linear(2, 1).state_dict()}, theirs)
    write_model(spec(other, "another"), torch.nn.Linear(2, 1), samples=64, val_loss=0.25)
    (tmp_path / "text.pt").write_text("mine")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere.pt")
    (tmp_path / "folder.pt").mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    for name in ("theirs.pt", "text.pt", "empty.pt", "link.pt", "folder.pt"):
        with pytest.raises(BstuneError, match="was not written by bstune"):
            check_model_path(tmp_path / name)
    with pytest.raises(BstuneError, match="holds a model of the study 'another'"):
        ModelKeeper(other, "digits")
    with pytest.raises(BstuneError, match="there is no folder"):
        check_model_path(tmp_path / "none" / "best.pt")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_file_that_comes_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Between the beginning of a search and the end of a run."""
    path = tmp_path / "best.pt"
    keeper = ModelKeeper(path, "digits")
    write_model(keeper.begin(spec(number=1)), {"weight": torch.ones(1)}, samples=64, val_loss=0.1)
    path.write_text("mine")
    with pytest.raises(BstuneError, match="was not written by bstune"):
        keeper.take(1)
    keeper.close()
    assert os.listdir(tmp_path) == ["best.pt"]
    assert path.read_text() == "mine"


def test_what_a_killed_search_has_left_is_removed(tmp_path: Path) -> None:
    """By its name, which only bstune gives; nothing else is touched."""
    (tmp_path / ".best.pt.bstune-12.new.part").write_bytes(b"half a model")
    (tmp_path / ".best.pt.bstune-x.new").write_bytes(b"mine")
    ModelKeeper(tmp_path / "best.pt", "digits")
    assert os.listdir(tmp_path) == [".best.pt.bstune-x.new"]


@bstune.objective(n_samples=2000, name="loop")
def saving(trial: bstune.Trial) -> None:
    """A loop whose loss is its learning rate, and whose model says which setting it is of."""
    trial.report(trial.learning_rate, samples=trial.max_samples)
    trial.save({"weight": torch.tensor([trial.learning_rate, trial.global_batch_size])})


@bstune.objective(n_samples=2000, name="loop")
def silent(trial: bstune.Trial) -> None:
    """The same without a model."""
    trial.report(trial.learning_rate, samples=trial.max_samples)


def test_a_loop_of_your_own_hands_over_its_model(folder: Path) -> None:
    """Only full runs are asked for it; the recommended setting's is the one that is kept."""
    result = bstune.search(saving, **ASKED, save_model="best.pt")

    assert result.model_path == str(folder / "best.pt")
    assert torch.load("best.pt", weights_only=True)["model"]["weight"][0].item() == pytest.approx(0.1)
    assert sorted(os.listdir(folder)) == ["best.pt", "model.py", "studies.db"]
    again = bstune.search(saving, **ASKED, save_model="best.pt")
    assert again.model_path == result.model_path


def test_a_loop_without_a_model_is_told_what_to_call(folder: Path) -> None:
    """The search goes on: only the model is missing."""
    said: list[str] = []
    result = bstune.search(silent, **ASKED, save_model="best.pt", callbacks=[lambda p: said.append(p.message)])

    assert result.model_path is None
    assert any("trial.save(model)" in message for message in said)
    assert any("No model was saved" in message for message in said)


def test_a_search_refuses_at_once_and_in_a_dry_run(folder: Path) -> None:
    """Before anything is probed."""
    (folder / "notes.txt").write_text("mine")
    for options in ((), ("--dry-run",)):
        done = CliRunner().invoke(main, ["search", "model.py", "--save-model", "notes.txt", *options])
        assert done.exit_code == 1
        assert "notes.txt exists and was not written by bstune" in done.output
        assert "probe" not in done.output
    assert (folder / "notes.txt").read_text() == "mine"


def test_search_saves_and_train_trains_on(folder: Path) -> None:
    """The confirmed model; then one more by its recommendation, with the same figures for the same seed."""
    run = CliRunner().invoke
    space = ("--space", "batch_size=16", "--space", "learning_rate=0.1,0.2")
    done = run(main, ["search", "model.py", "--budget", "3", *space, "--save-model", "best.pt", "--json"])
    assert done.exit_code == 0, done.output
    best = torch.load("best.pt", weights_only=True)
    result = bstune.SearchResult.from_dict(json.loads(done.stdout))
    assert result.model_path == str(folder / "best.pt")

    done = run(main, ["train", "model.py", "-o", "again.pt", "--seed", str(best["seed"]), "--json"])
    assert done.exit_code == 0, done.output
    trained = bstune.TrainResult.from_dict(json.loads(done.stdout))
    again = torch.load("again.pt", weights_only=True)
    assert trained.setting.learning_rate == best["setting"]["learning_rate"]
    assert trained.samples == 4 * 96
    assert trained.val_loss == again["val_loss"] == pytest.approx(best["val_loss"])
    assert torch.equal(again["model"]["weight"], best["model"]["weight"])

    refused = run(main, ["train", "model.py", "-o", "model.py"])
    assert refused.exit_code == 1
    assert "was not written by bstune" in refused.output
    assert (folder / "model.py").read_text() == MODEL


def test_train_needs_a_study(folder: Path) -> None:
    """It says what to do first."""
    with pytest.raises(bstune.StudyError):
        bstune.train("model.py")


LOOP = """
import bstune


@bstune.objective(n_samples=2000)
def objective(trial):
    trial.report(trial.learning_rate, samples=trial.max_samples)
"""


def test_train_takes_no_answer_of_another_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of another file is refused also by name; in a folder that was copied, the line to go on is said."""
    here = folder / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "loop.py").write_text(LOOP)
    (here / "other.py").write_text(LOOP + "    trial.save({})\n")
    bstune.search(bstune.load("loop.py"), **{**ASKED, "budget": 1, "n_trials": 1})
    with pytest.raises(bstune.StudyError, match=r"'loop' is of loop\.py, and other\.py is another objective"):
        bstune.train(bstune.load("other.py"), study="loop", storage=ASKED["storage"])
    assert not (here / "model.pt").exists()

    there = shutil.copytree(here, folder / "there")
    monkeypatch.chdir(there)
    (there / "loop.py").write_text(LOOP + "    trial.save({'weight': 1.0})\n")
    with pytest.raises(bstune.StudyError, match=rf"is of {here}/loop\.py\. .* bstune train loop\.py --study loop\. "):
        bstune.train(bstune.load("loop.py"), storage=ASKED["storage"])
    trained = bstune.train(bstune.load("loop.py"), study="loop", storage=ASKED["storage"])
    assert "changed" in trained.warnings[0]


def test_train_takes_the_study_that_was_searched_last(folder: Path) -> None:
    """Also where `fresh` has made a second one; the first is named to have its answer."""
    (folder / "loop.py").write_text(LOOP + "    trial.save({'weight': 1.0})\n")
    loop = bstune.load("loop.py")
    bstune.search(loop, **ASKED)
    bstune.search(loop, **{**ASKED, "space": {"batch_size": [64], "learning_rate": [0.4, 0.8]}}, fresh=True)
    trained = bstune.train(loop, storage=ASKED["storage"])
    assert (trained.study, trained.setting.learning_rate) == ("loop-2", 0.4)
    first = bstune.train(loop, study="loop", storage=ASKED["storage"], output="first.pt")
    assert first.setting.learning_rate < 0.4


def test_train_names_the_studies_that_there_are(folder: Path) -> None:
    """What was searched from Python has the name of the script; the same code in a file is not said to have changed."""
    (folder / "other.py").write_text(LOOP + "    trial.save({'weight': 1.0})\n")
    bstune.search(saving, **ASKED)
    other = bstune.load("other.py")
    with pytest.raises(bstune.StudyError, match=r"searched under another name \(loop\), give that with --study"):
        bstune.train(other, storage=ASKED["storage"])
    trained = bstune.train(other, study="loop", storage=ASKED["storage"])
    assert not any("changed" in warning for warning in trained.warnings)
