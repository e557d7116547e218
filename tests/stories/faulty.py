"""A model whose trials misbehave as they are told, and a search of it as a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bstune
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.studies.catalog import find_study
from bstune.tuner.studies.storage import read_storage
from bstune.tuner.testing.fake_device import known_probe

SPACE = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01, 0.1]}
MODEL = """
import ctypes, math, os, signal, subprocess, time
import bstune, torch

def misbehave(trial, does):
    if does == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
        time.sleep(1000)
    if does == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "segfault":
        ctypes.string_at(0)
    if does == "exit":
        os._exit(7)
    if does == "late oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if does == "cudnn":
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    if does == "children":
        subprocess.Popen(["sleep", os.environ["SLEEP_S"]])
        os._exit(9)

FAULTS = os.environ.get("FAULTS", "").split(",")

@bstune.objective(n_samples=320, epochs=4, evals=4)
def objective(trial):
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=trial.learning_rate)
    for samples in range(trial.global_batch_size, trial.max_samples + 1, trial.global_batch_size):
        weight.grad = torch.zeros(1)
        optimizer.step()
        if samples >= trial.next_report:
            time.sleep(float(os.environ.get("SLOWLY", "0")))
            loss = 0.1 + math.exp(-samples / 500) + 0.05 * math.log10(trial.learning_rate / 0.01) ** 2
            trial.report(val_loss=loss + 0.001 * trial.seed, samples=samples)
            if 0 <= trial.number < len(FAULTS):
                misbehave(trial, FAULTS[trial.number])
"""
SCRIPT = """
import math, os, sys, time
rate = float(sys.argv[2])
for epoch in range(1, 5):
    time.sleep(float(os.environ.get("SLOWLY", "0")))
    print(f"epoch {epoch} val_loss={0.1 + math.exp(-epoch) + 0.05 * math.log10(rate / 0.01) ** 2:.5f}", flush=True)
"""
"""A script in place of the model: its search starts in half the time, since it needs no torch."""
PROBE = known_probe(64, step_s=None, n_train_samples=320)


def search(folder: Path, **changes: Any) -> bstune.SearchResult:
    """Search the model; a probe is given, so that none is made."""
    arguments: dict[str, Any] = {
        "probe": PROBE,
        "space": SPACE,
        "budget": 4,
        "device": "cpu",
        "storage": f"sqlite:///{folder}/bstune.db",
    }
    return bstune.search(bstune.load(folder / "model.py"), **(arguments | changes))


def records(folder: Path) -> list[TrialRecord]:
    """The trials that are stored."""
    with read_storage(f"sqlite:///{folder}/bstune.db") as storage:
        study = find_study(storage, "model")
        assert study is not None
        return list(study.records)


def command(*arguments: str, script: bool = False) -> list[str]:
    """The command line of a program of its own that searches the model, or the script."""
    options = ["--device", "cpu", "--space", "batch_size=16,32", "--space", "learning_rate=0.001,0.01,0.1", *arguments]
    asked = ["model.py", *options]
    if script:
        words = [sys.executable, "train.py", "{micro_batch_size}", "{learning_rate}"]
        asked = ["--samples-per-epoch", "320", "--epochs", "4", "--study", "model", *options, "--", *words]
    return [sys.executable, "-c", "from bstune.cli import main; main()", "search", *asked]
