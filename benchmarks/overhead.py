"""What a trial costs beyond its training: a bare loop, the local engine and Ray, side by side in one run.

    python benchmarks/overhead.py [--seconds 30] [--trials 4] [--no-ray] [--out benchmarks/results]

The same loop trains for the same samples with the same reports, twice at a time: by itself in a process of its own, and
as the trials of a search, nothing stopped early. The loops note when they begin and end, by the clock of the machine.
So what else the machine does slows both, and the seconds between the loops of a search are known whatever that is. The
start and end of a search are told apart: they do not grow with its trials. It needs two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)  # Where weights vanish or grow, arithmetic takes longer.
    inputs, labels = torch.randn(4096, 256), torch.randint(10, (4096,))
    samples, n = 0, trial.global_batch_size
    note()
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
    note()

def note():
    with open(os.environ["BSTUNE_OVERHEAD_CLOCK"], "a") as clock:
        clock.write(f"{time.monotonic()}\\n")
"""
BARE = """
import sys
from types import SimpleNamespace
from loop import N, loop

class Trial(SimpleNamespace):
    def report(self, val_loss, samples):
        self.next_report += N // 8

for _ in range(int(sys.argv[1])):
    loop.function(Trial(seed=0, learning_rate=0.01, global_batch_size=64, max_samples=N, next_report=N // 8))
"""
RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]


def noted(clock: Path) -> list[tuple[float, float]]:
    """Return when each loop since the last call began and ended."""
    times = [float(line) for line in clock.read_text().split()]
    clock.unlink()
    return list(zip(times[::2], times[1::2], strict=False))  # The last one may have been cut off.


@contextlib.contextmanager
def bare_beside(folder: Path) -> Iterator[Path]:
    """Have loops run that nobody looks after, one after the other; yield the clock that they note."""
    clock = folder / "bare-clock"
    beside = subprocess.Popen(
        [sys.executable, "bare.py", "1000"], cwd=folder, env={**os.environ, "BSTUNE_OVERHEAD_CLOCK": str(clock)}
    )
    try:
        yield clock
    finally:
        beside.kill()
        beside.wait()


def bare(folder: Path) -> float:
    """Return the seconds of one loop by itself."""
    subprocess.run([sys.executable, "bare.py", "1"], cwd=folder, check=True)
    ((begin, end),) = noted(folder / "clock")
    return end - begin


def side_by_side(folder: Path, n: int, engine: str) -> tuple[float, float, float, float]:
    """Return the seconds of a bare loop, of one in a search, between two of a search, and before and after all."""
    objective = bstune.load(f"{folder / 'loop.py'}:loop")
    storage = f"sqlite:///{folder / engine}.db"
    probe = bstune.probe(objective, device="cpu", max_batch=64, storage=storage)
    (folder / "clock").unlink()
    with bare_beside(folder) as clock:
        started = time.monotonic()
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
        seconds = time.monotonic() - started
    loops = noted(folder / "clock")
    assert len([record for record in result.records if record.state == "complete"]) == len(loops) == n
    beside = [end - begin for begin, end in noted(clock) if loops[0][0] <= (begin + end) / 2 <= loops[-1][1]]
    between = [begin - end for (_, end), (begin, _) in itertools.pairwise(loops)]
    whole = loops[-1][1] - loops[0][0]
    return (
        statistics.fmean(beside),
        statistics.fmean(end - begin for begin, end in loops),
        statistics.fmean(between),
        seconds - whole,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a bare loop, about")
    parser.add_argument("--trials", type=int, default=4, help="of each search")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    command = " ".join(["python benchmarks/overhead.py", *sys.argv[1:]])
    lines = [
        "# Overhead of a trial",
        "",
        f"{date.today()}, bstune {bstune.__version__}. Command: `{command}`.",
        "",
        "| engine | bare loop, s | the loop in a trial, s | from loop to loop, s | beyond the bare loop | start and "
        "end of a search, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "loop.py").write_text(LOOP)
        (folder / "bare.py").write_text(BARE)
        os.environ["BSTUNE_OVERHEAD_CLOCK"] = str(folder / "clock")
        os.environ["BSTUNE_OVERHEAD_SAMPLES"] = str(64 * 4096)
        each = bare(folder) / 4096
        os.environ["BSTUNE_OVERHEAD_SAMPLES"] = str(64 * 8 * max(1, round(arguments.seconds / each / 8)))
        for engine in ("optuna",) if arguments.no_ray else ("optuna", "ray"):
            bare_s, loop_s, between_s, start_s = side_by_side(folder, arguments.trials, engine)
            share = (loop_s + between_s) / bare_s - 1
            lines.append(f"| {engine} | {bare_s:.2f} | {loop_s:.2f} | {between_s:.2f} | {share:+.1%} | {start_s:.1f} |")
            print(lines[-1], flush=True)
    if arguments.out is not None:
        (arguments.out / "overhead.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
