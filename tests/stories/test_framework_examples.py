"""The examples with frameworks, each in a short form: from nothing to a model that was trained with the answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


def run_example(path: Path, folder: Path, **changed: str) -> str:
    """Run a copy of an example, with some of its words changed, and return what it prints."""
    text = path.read_text()
    for before, after in changed.items():
        assert before in text
        text = text.replace(before, after)
    script = folder / path.name
    script.write_text(text)
    result = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_lightning_module(root: Path, tmp_path: Path) -> None:
    """It learns with what `apply` has set, and leaves nothing but the study."""
    pytest.importorskip("lightning", reason="needs the extra: pip install 'bstune[lightning]'")

    said = run_example(
        root / "examples" / "lightning_mnist.py",
        tmp_path,
        **{"budget=4": "budget=1, n_trials=3", "max_epochs=20": "max_epochs=3"},
    )

    assert float(re.findall(r"validation accuracy ([\d.]+)%", said)[0]) > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bstune.db", "lightning_mnist.py"]


def needs_transformers() -> None:
    """Skip where they are missing."""
    for package in ("accelerate", "transformers"):
        pytest.importorskip(package, reason="needs the extra: pip install 'bstune[transformers]'")


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_of_transformers(root: Path, tmp_path: Path) -> None:
    """It learns with what `to_training_arguments` says; guessing among four has a loss of 1.39."""
    needs_transformers()

    said = run_example(
        root / "examples" / "hf_text.py", tmp_path, **{"budget=4": "budget=1, n_trials=3", "EPOCHS = 10": "EPOCHS = 5"}
    )

    assert float(re.findall(r"validation loss ([\d.]+)", said)[0]) < 1.3


@pytest.mark.filterwarnings("ignore")
def test_the_own_search_of_transformers(root: Path, tmp_path: Path) -> None:
    """With bstune's sampler and pruner: the first rates are those of its race, a factor 4 apart."""
    needs_transformers()
    (tmp_path / "hf_text.py").write_text((root / "examples" / "hf_text.py").read_text())

    said = run_example(root / "examples" / "hf_hyperparameter_search.py", tmp_path, **{"else 15": "else 2"})

    (loss, rate) = re.findall(r"validation loss ([\d.]+) with .*'learning_rate': ([\d.]+)", said)[0]
    assert float(loss) < 1.3
    assert float(rate) in (0.001, 0.004)
