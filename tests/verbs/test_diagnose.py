"""`bstune diagnose` from end to end: real worker processes, a real storage, every kind of objective."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import bstune
import pytest
import torch
from bstune.cli import main
from bstune.tuner.diagnose import costs
from bstune.tuner.diagnosis.claims import CLAIMS, NAMES
from bstune.tuner.diagnosis.kept import kept_findings
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import read_storage
from click.testing import CliRunner

MODEL = """
import bstune, torch
from torch import nn
from torch.utils.data import TensorDataset

x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()
objective = bstune.Supervised(
    model=lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
    train_data=TensorDataset(x[:400], y[:400]),
    val_data=TensorDataset(x[400:], y[400:]),
    optimizer=lambda p, lr: torch.optim.SGD(p, lr),
    epochs=4,
)
fixed = bstune.Supervised(
    model=lambda: nn.Linear(4, 2),
    train_data=TensorDataset(x[:400], y[:400]),
    val_data=TensorDataset(x[400:], y[400:]),
    optimizer=lambda p, lr: torch.optim.SGD(p, 0.1),
    epochs=4,
)


@bstune.objective(n_samples=400, epochs=4, name="loop")
def loop(trial):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.learning_rate)
    samples = 0
    while samples < trial.max_samples:
        at = torch.randint(400, (trial.micro_batch_size,))
        nn.functional.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
        optimizer.zero_grad()
        samples += trial.micro_batch_size
        if samples >= trial.next_report:
            trial.report(val_loss=1.0 / samples, samples=samples)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and a loop."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BSTUNE_STORAGE", raising=False)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def test_a_model_is_probed_looked_at_and_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One finding for each claim; what was found is kept in the study, and a second call measures nothing of it."""
    # Runs cost their share of samples, whatever else the machine does.
    monkeypatch.setattr("bstune.tuner.diagnosis.measured.reference_run_s", lambda known: None)
    # The probe chooses one thread of four; the second call does not probe.
    monkeypatch.setattr("bstune.tuner.workers.fork_server.usable_cores", lambda: 4)
    monkeypatch.setattr("bstune.tuner.probing.timing.AS_FAST", 1e9)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    drawn = torch.get_rng_state()
    result = bstune.diagnose(bstune.load("model.py"), budget=0.5)
    assert torch.equal(torch.get_rng_state(), drawn)

    assert tuple(finding.name for finding in result.findings) == NAMES
    assert result["bias-before-norm"].verdict == "holds"
    assert result["noisy-loss"].figure is not None
    assert result["noisy-loss"].cost_s > 0
    assert result["grow-the-batch"].verdict == "cannot tell"
    assert "of the budget is left" in result["grow-the-batch"].found
    assert 0 < result.reference_runs <= 0.5
    assert bstune.Diagnosis.from_json(result.to_json()) == result
    assert "grow-the-batch" in result.left_out
    assert "noisy-loss" not in result.left_out
    pasted = f'bstune diagnose MODEL --only "{", ".join(result.left_out)}" --budget '
    assert pasted in " ".join(str(result).split())
    assert "(only=[&#x27;" in result._repr_html_()
    with read_storage(None) as opened:
        study = find_study(opened, "model")
        assert study is not None
        assert kept_findings(study) == result.findings
        assert study.probe is not None
        assert study.probe.micro_batch_size == 128  # A search would use 16 at most, and its step times need 32.
        assert study.attributes["probe_key"]["max_batch"] == 128  # So it is none of all 400 samples.

    again = bstune.diagnose(bstune.load("model.py"), budget=0.0)
    assert again.reference_runs == 0
    assert "noisy-loss" in again.reused
    assert "grow-the-batch" not in again.reused
    assert again["noisy-loss"] == dataclasses.replace(result["noisy-loss"], cost_s=0.0)
    assert all(name in str(again) for name in ("an earlier call: ", "--fresh"))
    other = bstune.diagnose(bstune.load("model.py"), only=["noisy-loss"], budget=0.0, seed=1)
    fresh = bstune.diagnose(bstune.load("model.py"), only=["norm-on-output"], fresh=True)
    assert (other.reused, fresh.reused) == ((), ())
    assert fresh["norm-on-output"].cost_s > 0


def test_trainings_that_a_budget_allows(folder: Path) -> None:
    """Each has a verdict with what it rests on; after an interruption what was finished is not measured again."""
    names = ("warm-up", "grow-the-batch", "full-batch", "powers-of-two")
    notes: list[str] = []

    def interrupt(text: str) -> None:
        notes.append(text)
        if sum("reference runs" in note for note in notes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bstune.diagnose(bstune.load("model.py"), only=names, budget=100, on_note=interrupt)
    result = bstune.diagnose(bstune.load("model.py"), only=names, budget=100)

    assert len(result.reused) == 1
    for name in names:
        finding = result[name]
        assert finding.figure is not None, finding.found
        assert finding.interval is not None
        assert finding.data
    assert len(result.findings) == len(names)


def test_a_loop_and_a_command_are_answered_as_far_as_they_can_be_seen(folder: Path) -> None:
    """What needs the model is not applicable, with the reason."""
    command = bstune.Command("python train.py --lr {learning_rate} --batch {micro_batch_size}", samples_per_epoch=400)
    for objective in (bstune.load("model.py:loop"), command):
        result = bstune.diagnose(objective)

        for claim in CLAIMS:
            if claim.measurement is not None and not claim.recorded and claim.needs != ("probe",):
                assert result[claim.name].verdict == "not applicable"
                assert "bstune.Supervised" in result[claim.name].found
        assert result["updates-per-epoch"].verdict == "holds"
        assert result["twice-is-half"].verdict == "cannot tell"
        assert "bstune search" in result["twice-is-half"].advice  # Another diagnosis would not tell.
        assert result.reference_runs == 0
        priced = costs(objective)
        assert {spent for _, _, spent in priced.rows} == {0.0}
        assert (priced.seconds, priced.reference_runs, priced.left_out) == (0.0, 0.0, ())


def test_the_search_that_was_made_last_is_read(folder: Path) -> None:
    """Its study is named, and lines to paste have the name of the file."""
    asked = ["search", "model.py:loop", "--n-trials", "2", "--space", "batch_size=16", "--space", "learning_rate=0.1"]
    asked += ["--isolation", "none"]
    for options in ([], ["--fresh"]):
        searched = CliRunner().invoke(main, [*asked, *options])
        assert searched.exit_code == 0, searched.stderr

    shown = CliRunner().invoke(main, ["diagnose", "model.py:loop", "--only", "coupling"])
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.startswith("Study loop-2: ")
    assert "bstune search model.py:loop " in " ".join(shown.stdout.split())
    assert "MODEL" not in shown.stdout
    first = CliRunner().invoke(main, ["diagnose", "model.py:loop", "--only", "coupling", "--study", "loop"])
    assert first.stdout.startswith("Study loop: ")


def test_the_command_line(folder: Path) -> None:
    """A list with costs, text, one JSON document, and an error that names what there is."""
    run = CliRunner().invoke

    listed = run(main, ["diagnose", "--list"])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in NAMES)
    assert "0 s" in listed.stdout
    assert "unknown" in listed.stdout
    assert not (folder / "bstune.db").exists()
    shown = run(main, ["diagnose", "model.py", "--only", "last-batch,\nnoisy-loss", "--budget", "1", "--json"])
    assert shown.exit_code == 0, shown.stderr
    assert [each["name"] for each in json.loads(shown.stdout)["findings"]] == ["noisy-loss", "last-batch"]
    priced = run(main, ["diagnose", "--list", "model.py", "--only", "noisy-loss,coupling"])
    assert priced.exit_code == 0, priced.stderr
    assert "unknown" not in priced.stdout
    assert "Nothing would be measured" in priced.stdout
    dear = run(main, ["diagnose", "--list", "model.py", "--only", "noisy-loss", "--fresh", "--budget", "0"])
    assert dear.exit_code == 0, dear.stderr
    assert "Beyond a budget of 0: noisy-loss" in " ".join(dear.stdout.split())
    wrong = run(main, ["diagnose", "model.py", "--only", "nonsense"])
    assert wrong.exit_code == 2
    assert "coupling" in wrong.stderr


def test_an_optimizer_whose_rate_is_fixed_is_diagnosed(folder: Path) -> None:
    """A search of it is refused, since there are no rates to search; what a probe tells needs none."""
    result = bstune.diagnose(bstune.load("model.py:fixed"), only=["flat-step-time", "which-memory"])

    assert result["flat-step-time"].figure is not None
    assert result["which-memory"].figure is not None
