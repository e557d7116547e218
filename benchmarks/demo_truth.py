"""Is the demo's recommendation good?

The truth about `examples/digits.py` is measured once, and five searches are compared with it.

    python benchmarks/demo_truth.py           measures the grid
    python benchmarks/demo_truth.py --check   checks five searches

The grid has every batch size x learning rate with 3 seeds a cell; measuring it takes about 12 minutes. The check runs 5
searches, and then each recommended setting and the grid's best cell on 5 fresh seeds.

The grid stands in `results/demo_truth_grid.csv` and says what it was measured with. An interrupted measurement goes on
where it was. The check prints the mean ratio of the two losses, which should be at most 1.15, and writes
`results/demo_truth_check.json`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import json
import math
import platform
import runpy
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import bstune
import torch
from bstune.objectives.base import Trial
from bstune.tuner.core.trials import TrialReport, TrialSpec, Verdict

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "digits.py"
GRID = HERE / "results" / "demo_truth_grid.csv"
CHECK = HERE / "results" / "demo_truth_check.json"

BATCH_SIZES = [
    128,
    64,
    32,
    16,
    8,
    4,
]  # The sizes that bstune searches by default at this size of data; the quick ones first.
LEARNING_RATES = [2.0**octave for octave in range(-9, 0)]
GRID_SEEDS = [0, 1, 2]
SEARCH_SEEDS = [0, 1, 2, 3, 4]
FRESH_SEEDS = [1001, 1002, 1003, 1004, 1005]  # Neither the grid nor any search has used them.
GUESSING = math.log(10)
"""Loss of ten equal guesses; where a learning rate ends above it, larger ones are not measured."""
MOST = 1.15
COLUMNS = ["global_batch_size", "learning_rate", "seed", "val_loss", "best_val_loss", "seconds"]

Cell = tuple[int, float]


def versions() -> dict[str, str]:
    names = ("bstune", "torch", "numpy", "optuna", "scikit-learn")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def example_hash() -> str:
    return hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()[:12]


def load_example() -> Any:
    """Return the example's objective, ready to train in this process."""
    objective = runpy.run_path(str(EXAMPLE))["objective"]
    objective.prepare()
    return objective


def full_run(
    objective: Any, micro_batch_size: int, accumulation_steps: int, learning_rate: float, seed: int
) -> tuple[float, float]:
    """Train one full run; return the last and the best validation loss, infinite where it diverged."""
    batch_size = micro_batch_size * accumulation_steps
    full_samples = objective.epochs * len(objective.train_data)
    losses: list[float] = []

    def send(report: TrialReport) -> Verdict:
        losses.append(report.val_loss)
        return "go" if math.isfinite(report.val_loss) else "stop"

    spec = TrialSpec(
        number=0,
        stage="truth",
        global_batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation_steps,
        learning_rate=learning_rate,
        seed=seed,
        end_samples=full_samples // batch_size * batch_size,
        points=tuple(math.ceil(full_samples * point / objective.evals) for point in range(1, objective.evals + 1)),
        eval_batch_size=len(objective.val_data),
    )
    try:
        objective.train(Trial(spec, device="cpu", send=send, clock=time.perf_counter), spec)
    except bstune.TrialPruned:
        return math.inf, math.inf
    return losses[-1], min(losses)


def measure() -> None:
    """Run what is missing of the grid, and write each run down when it is done."""
    objective = load_example()
    done: set[tuple[int, float, int]] = set()
    if GRID.exists() and grid_hash() == example_hash():
        done = {(int(row["global_batch_size"]), float(row["learning_rate"]), int(row["seed"])) for row in grid_rows()}
    else:
        GRID.parent.mkdir(exist_ok=True)
        said = {
            "date": time.strftime("%Y-%m-%d"),
            "command": "python benchmarks/demo_truth.py",
            "example": f"examples/digits.py {example_hash()}",
            "machine": f"{platform.machine()}, CPU, 1 thread",
        }
        head = [f"# {key}: {value}" for key, value in {**said, **versions()}.items()]
        GRID.write_text("\n".join([*head, ",".join(COLUMNS), ""]))
    for batch_size in BATCH_SIZES:
        for learning_rate in LEARNING_RATES:
            for seed in GRID_SEEDS:
                if (batch_size, learning_rate, seed) in done:
                    continue
                start_s = time.perf_counter()
                last, best = full_run(objective, batch_size, 1, learning_rate, seed)
                row = [
                    batch_size,
                    learning_rate,
                    seed,
                    f"{last:.6g}",
                    f"{best:.6g}",
                    f"{time.perf_counter() - start_s:.2f}",
                ]
                with GRID.open("a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerow(row)
            mean = grid_means()[batch_size, learning_rate]
            print(f"batch size {batch_size}, learning rate {learning_rate:.4g}: {mean:.4f}", flush=True)
            if mean > GUESSING:
                break


def grid_lines() -> tuple[list[str], list[str]]:
    """Return the lines that say how the grid was measured, and those with its rows."""
    lines = GRID.read_text().splitlines()
    return [line for line in lines if line.startswith("#")], [line for line in lines if not line.startswith("#")]


def grid_rows() -> list[dict[str, str]]:
    return list(csv.DictReader(grid_lines()[1]))


def grid_hash() -> str | None:
    return next((line.rpartition(" ")[2] for line in grid_lines()[0] if line.startswith("# example:")), None)


def grid_means() -> dict[Cell, float]:
    """Return the mean over the seeds of the last validation loss of every cell."""
    cells: dict[Cell, list[float]] = defaultdict(list)
    for row in grid_rows():
        cells[int(row["global_batch_size"]), float(row["learning_rate"])].append(float(row["val_loss"]))
    return {cell: statistics.mean(losses) for cell, losses in cells.items()}


def check() -> int:
    """Run the searches and compare; return 0 when the recommendations are good enough."""
    if grid_hash() != example_hash():
        sys.exit(
            "The grid is of another examples/digits.py: expected that of today. Measure it again: python "
            "benchmarks/demo_truth.py"
        )
    objective = load_example()
    means = grid_means()
    best = min(means, key=means.__getitem__)
    best_losses = [full_run(objective, best[0], 1, best[1], seed)[0] for seed in FRESH_SEEDS]
    print(
        f"best cell of the grid: batch size {best[0]}, learning rate {best[1]:.4g}: "
        f"{statistics.mean(best_losses):.4f} on fresh seeds"
    )
    searches = [one_search(objective, seed, statistics.mean(best_losses)) for seed in SEARCH_SEEDS]
    ratio = statistics.mean(search["ratio"] for search in searches)
    said = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/demo_truth.py --check",
        "versions": versions(),
        "mean_ratio": ratio,
        "most": MOST,
        "best_cell": {"global_batch_size": best[0], "learning_rate": best[1], "fresh_val_losses": best_losses},
        "searches": searches,
    }
    CHECK.write_text(json.dumps(said, indent=2) + "\n")
    print(f"mean loss ratio {ratio:.3f} (at most {MOST} is good)")
    return 0 if ratio <= MOST else 1


def one_search(objective: Any, seed: int, best_mean: float) -> dict[str, Any]:
    """Search as the demo does, then run its recommendation on fresh seeds."""
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        result = bstune.search(bstune.load(str(EXAMPLE)), seed=seed, storage=f"sqlite:///{folder}/truth.db")
        seconds = time.perf_counter() - start_s
    told = result.recommendation
    losses = [
        full_run(objective, told.micro_batch_size, told.accumulation_steps, told.learning_rate, fresh)[0]
        for fresh in FRESH_SEEDS
    ]
    ratio = statistics.mean(losses) / best_mean
    print(
        f"search {seed}: batch size {told.global_batch_size}, learning rate {told.learning_rate:.4g}: "
        f"{statistics.mean(losses):.4f} on fresh seeds, {ratio:.3f} of the best cell, after {seconds:.0f} s",
        flush=True,
    )
    return {
        "seed": seed,
        "global_batch_size": told.global_batch_size,
        "learning_rate": told.learning_rate,
        "fresh_val_losses": losses,
        "ratio": ratio,
        "told_val_loss": told.val_loss.to_dict(),
        "verified": told.verified,
        "full_runs": result.spent.full_runs,
        "seconds": seconds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="run 5 searches and compare, instead of measuring the grid"
    )
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    if wanted.check:
        sys.exit(check())
    measure()
