"""What a trial costs beyond its training: a bare loop, the local engine and Ray, side by side in one run.

    python benchmarks/overhead.py [--seconds 30] [--trials 3] [--no-ray] [--out benchmarks/results]

The same loop trains for the same samples with the same reports: called by itself in one process, and as trials of a search with one
learning rate after the other, nothing stopped early. Bare loops run before and after each search, so that a machine that slows down
is seen. A search's seconds are all of its wall time but the probe's, divided by its trials: its own start and end are in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import bstune

LOOP = """
import os, time
import bstune, torch
from torch import nn

N = int(os.environ["BSTUNE_OVERHEAD_SAMPLES"])

@bstune.objective(n_samples=N, epochs=1, evals=8)
def loop(trial):
    torch.manual_seed(trial.seed)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.learning_rate)
    inputs, labels = torch.randn(4096, 256), torch.randint(10, (4096,))
    samples, n = 0, trial.global_batch_size
    while samples < trial.max_samples:
        at = samples % 2048
        loss = nn.functional.cross_entropy(model(inputs[at:at + n]), labels[at:at + n])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        samples += n
        if samples >= trial.next_report:
            with torch.no_grad():
                trial.report(val_loss=nn.functional.cross_entropy(model(inputs), labels).item(), samples=samples)
"""
BARE = """
import sys, time
from types import SimpleNamespace
from loop import N, loop

class Trial(SimpleNamespace):
    def report(self, val_loss, samples):
        self.next_report += N // 8

for _ in range(int(sys.argv[1])):
    started = time.perf_counter()
    loop.function(Trial(seed=0, learning_rate=0.01, global_batch_size=64, max_samples=N, next_report=N // 8))
    print(time.perf_counter() - started)
"""
RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]


def bare(folder: Path, n: int) -> list[float]:
    """Return the seconds of loops that nobody looks after."""
    command = [sys.executable, "bare.py", str(n)]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return [float(line) for line in done.stdout.split()]


def searched(folder: Path, n: int, engine: str) -> float:
    """Return the seconds of one trial of a search, its start and end in them."""
    objective = bstune.load(f"{folder / 'loop.py'}:loop")
    storage = f"sqlite:///{folder / engine}.db"
    probe = bstune.probe(objective, device="cpu", max_batch=64, storage=storage)
    started = time.perf_counter()
    result = bstune.search(
        objective,
        engine=engine,
        probe=probe,
        device="cpu",
        space={"batch_size": [64], "learning_rate": RATES},
        budget=n,
        n_trials=n,
        confirm=0,
        pruner="none",
        storage=storage,
        study=engine,
    )
    seconds = time.perf_counter() - started
    whole = [record for record in result.records if record.state == "complete"]
    assert len(whole) == n, f"{len(whole)} of {n} trials were whole runs"
    return seconds / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a bare loop, about")
    parser.add_argument("--trials", type=int, default=3, help="of each search, and bare loops beside it")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# Overhead of a trial",
        "",
        f"{date.today()}, bstune {bstune.__version__}. Command: `python benchmarks/overhead.py {' '.join(sys.argv[1:])}`.".replace(
            " `.", "`."
        ),
        "",
        "| engine | bare loop, s | a trial, s | beyond the loop, s | share |",
        "| --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "loop.py").write_text(LOOP)
        (folder / "bare.py").write_text(BARE)
        os.environ["BSTUNE_OVERHEAD_SAMPLES"] = str(64 * 4096)
        each = bare(folder, 1)[0] / 4096
        os.environ["BSTUNE_OVERHEAD_SAMPLES"] = str(64 * 8 * max(1, round(arguments.seconds / each / 8)))
        for engine in ("optuna",) if arguments.no_ray else ("optuna", "ray"):
            before = bare(folder, arguments.trials)
            trial_s = searched(folder, arguments.trials, engine)
            bare_s = statistics.fmean([*before, *bare(folder, arguments.trials)])
            more_s = trial_s - bare_s
            lines.append(f"| {engine} | {bare_s:.2f} | {trial_s:.2f} | {more_s:+.2f} | {more_s / bare_s:+.1%} |")
            print(lines[-1], flush=True)
    if arguments.out is not None:
        (arguments.out / "overhead.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
