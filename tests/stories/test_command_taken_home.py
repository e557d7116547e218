"""A script before and after its search: probed with dimensions of its own, and run with what was found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bstune
import pytest
from bstune.cli import main
from click.testing import CliRunner

SCRIPT = r"""
import argparse, json, sys

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int)
parser.add_argument("--lr", type=float)
parser.add_argument("--epochs", type=int)
parser.add_argument("--momentum", type=float, default=None)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--device")
parser.add_argument("--code", type=int, default=0)
args = parser.parse_args()
print(json.dumps(vars(args)))
for epoch in range(1, args.epochs + 1):
    print(f"epoch {epoch} val_loss={1 / epoch + args.lr:.3f}", flush=True)
sys.exit(args.code)
"""
WORDS = [
    sys.executable,
    "train.py",
    *("--batch-size", "{micro_batch_size}", "--lr", "{learning_rate}", "--epochs", "{max_epochs}"),
    *("--momentum", "{momentum}", "--seed", "{seed}", "--device", "{device}"),
]
SPACE = ["--space", "batch_size=32", "--space", "learning_rate=0.125", "--space", "momentum=0.5,0.75"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run bstune as a program of its own: it may become another one."""
    return subprocess.run([sys.executable, "-m", "bstune", *words], capture_output=True, text=True, check=False)


def test_a_probe_knows_the_dimensions_of_a_search(folder: Path) -> None:
    """They have the middle of their values; without them the script would be given braces. The search takes it over."""
    asked = ["probe", "--samples-per-epoch", "64", "--max-batch", "4"]
    probed = CliRunner().invoke(main, [*asked, *SPACE, "--json", "--", *WORDS])
    assert probed.exit_code == 0, probed.stderr
    assert json.loads(probed.stdout)["micro_batch_size"] == 4

    unknown = CliRunner().invoke(main, [*asked, "--space", "width=8", "--", *WORDS])
    assert unknown.exit_code == 2
    assert "no place for width" in unknown.stderr


def test_a_command_is_run_as_its_study_recommends(folder: Path) -> None:
    """All places filled, with words added as one likes; what it prints and its exit code are its own."""
    options = ["--samples-per-epoch", "64", "--epochs", "2", "--n-trials", "2", *SPACE, "--seed", "5"]
    found = CliRunner().invoke(main, ["search", "--json", *options, "--", *WORDS])
    assert found.exit_code == 0, found.stderr
    best = bstune.SearchResult.from_dict(json.loads(found.stdout)).recommendation

    trained = run("train", "--seed", "7", "--", *WORDS, "--code", "3")
    assert trained.returncode == 3, trained.stderr
    first, *losses = trained.stdout.splitlines()
    assert json.loads(first) == {
        **{"batch_size": 32, "lr": 0.125, "epochs": 2, "momentum": best.params["momentum"]},
        **{"seed": 7, "device": "cpu", "code": 3},
    }
    assert len(losses) == 2
    assert "Study train: " in trained.stderr
    assert "has changed since it was searched" in trained.stderr  # By the word that was added.

    assert "changed" not in run("train", "--", *WORDS).stderr
    without = CliRunner().invoke(main, ["train", "--", *WORDS[:8]])
    assert without.exit_code == 2
    assert "no place for momentum" in without.stderr
    assert CliRunner().invoke(main, ["train", "--json", "--", *WORDS]).exit_code == 2
    other = CliRunner().invoke(main, ["train", "--study", "other", "--", *WORDS])
    assert "Search first: bstune search ... -- COMMAND..." in other.stderr
