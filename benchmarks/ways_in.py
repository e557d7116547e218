"""One model and data set by every way in: the losses of one setting, what fits, and what else the process holds.

python benchmarks/ways_in.py          # a few minutes; writes benchmarks/results/ways_in.md
Digits, one hidden layer, SGD. Losses are of four epochs at batch 32 with three seeds. What fits is probed at a limit
that is the same for all, with the hidden layer 65,536 wide, so that samples take memory. A study of Optuna's is not
probed: its size follows from its peaks at two sizes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import bstune
from bstune.tuner.core.trials import MeasureSpec
from bstune.tuner.device.meter import peak_rss_bytes
from bstune.tuner.probe import STABLE_MALLOC
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host

RESULT = Path(__file__).resolve().parent / "results" / "ways_in.md"
LIMIT_MIB, HEADROOM, HIDDEN = 600, 0.05, 1 << 16
MIB = 1 << 20
SMALL, LARGE, STEPS = 2, 384, 3
STUDY = "Optuna study"
Row = dict[str, Any]


def peak_mib(objective: Any, size: int) -> float:
    """Return the peak of three steps, one of two micro-batches, and of validation, as a probe runs them."""
    with Host(objective, device="cpu", threads=1, environment=STABLE_MALLOC) as host:
        spec = MeasureSpec(size, size, accumulation_steps=2, n_steps=STEPS, seed=0)
        return float(host.run(messages.Measure(spec, traced=False)).reading.peak_bytes) / MIB


def memory_of(objective: Any) -> Row:
    """Return what fits, as a probe finds it, its peak, and that of next to no samples."""
    found = bstune.probe(
        objective,
        device="cpu",
        memory=f"{LIMIT_MIB}MiB",
        headroom=HEADROOM,
        malloc="stable",
        threads=1,
        storage="sqlite:///:memory:",
    )
    size, peak = found.micro_batch_size, found.peak_bytes / MIB
    small = peak_mib(objective, SMALL)
    return {"size": size, "peak": peak, "small": small, "slope": (peak - small) / (size - SMALL)}


def study_peak(problem: ModuleType, size: int) -> float:
    """Return the peak of this process, in which a study trains as the script does."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        batch = trial.suggest_categorical("batch_size", [size])
        trained = problem.steps(batch, 2, trial.suggest_float("lr", 1e-6, 1e-6), 0)
        for _ in range(STEPS):
            _, model = next(trained)
        return float(problem.validation_loss(model, size))

    study = optuna.create_study(
        sampler=bstune.Sampler(batch="batch_size", lr="lr", steps="samples"),
        pruner=bstune.Pruner(batch="batch_size", steps="samples"),
    )
    study.optimize(objective, n_trials=1)
    return peak_rss_bytes() / MIB


def memory_of_study() -> Row:
    """Return the peaks at two sizes, each of a fresh process, and what follows for the largest."""
    small, large = (
        float(
            subprocess.run(
                [sys.executable, __file__, "study", str(size)],
                env={**os.environ, **STABLE_MALLOC, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()[-1]
        )
        for size in (SMALL, LARGE)
    )
    budget = LIMIT_MIB * (1 - HEADROOM)
    slope = (large - small) / (LARGE - SMALL)
    return {"size": int(SMALL + (budget - small) / slope), "peak": budget, "small": small, "slope": slope}


def measured() -> dict[str, Row]:
    """Return losses and memory of each way."""
    from bstune.tests.stories import ways  # Not for the process of a study, which has no need of it.

    all_ways = {
        "Supervised": ways.supervised,
        "own loop": ways.own_loop,
        "script": ways.script,
        "Lightning": ways.in_lightning,
        "Trainer": ways.in_trainer,
    }
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder, ways.the_problem(Path(folder)) as problem:
        for name, way in all_ways.items():
            rows[name] = {"losses": ways.losses(way(problem), problem.N)}
        rows[STUDY] = {"losses": ways.in_optuna(problem)}
        os.environ["HIDDEN"] = str(HIDDEN)
        for name, way in all_ways.items():
            rows[name] |= memory_of(way(problem))
            print(name, rows[name], flush=True)
        rows[STUDY] |= memory_of_study()
        print(STUDY, rows[STUDY], flush=True)
    return rows


def text_of(rows: dict[str, Row]) -> str:
    """Return the result as a page."""
    usual = rows["Supervised"]
    lines = []
    for name, row in rows.items():
        more = row["small"] - usual["small"]
        alike = row["size"] + more / row["slope"]
        cells = [
            ", ".join(f"{loss:.3f}" for loss in row["losses"]),
            f"{statistics.mean(row['losses']):.3f}",
            f"{row['size']}{' (not probed)' if name == STUDY else ''}",
            f"{row['small']:.0f}",
            f"{more:+.0f}",
            f"{row['slope']:.3f}",
            f"{alike:.0f} ({alike / usual['size'] - 1:+.1%})",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    spread = max(max(row["losses"]) - min(row["losses"]) for row in rows.values())
    means = [statistics.mean(row["losses"]) for row in rows.values()]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "transformers", "optuna"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULT.parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    return f"""# One model and data set by every way in

{datetime.now(timezone.utc):%Y-%m-%d}, bstune {bstune.__version__} ({commit}), {packages}, {os.cpu_count()} cores, CPU.
Command: `python benchmarks/ways_in.py`. None of these figures depends on how busy the machine is.

Losses: digits, one hidden layer of 64, SGD, batch 32, four epochs, seeds 0, 1 and 2. The means lie
{max(means) - min(means):.3f} apart; within one way the seeds do by up to {spread:.3f}.

What fits: the hidden layer is {HIDDEN:,} wide, the limit {LIMIT_MIB} MiB, headroom {HEADROOM:.0%}, one thread, malloc
with a fixed threshold. *MiB with a batch of 2* is the peak of the same steps with next to no samples: the process with
its libraries, weights, gradients and optimizer. What it is more than for `Supervised` is memory that batches cannot
have: the last column has the largest micro-batch with that given back.

| way in | losses | mean | largest micro-batch | MiB with a batch of 2 | more | MiB a sample | largest, so corrected |
| --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if sys.argv[1:2] == ["study"]:
        from bstune.tests.stories import one_problem

        print(study_peak(one_problem, int(sys.argv[2])))
    else:
        found = measured()
        RESULT.write_text(text_of(found))
        print(json.dumps(found))
