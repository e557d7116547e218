"""Is the demo's recommendation good?

The truth about `examples/digits.py` is measured once, and five searches are compared with it.

    python benchmarks/demo_truth.py           measures the grid
    python benchmarks/demo_truth.py --check   checks five searches

The grid has every batch size x learning rate with 3 seeds a cell; measuring it takes about 6 minutes. It stands in
`results/demo_truth_grid.csv` and says what it was measured with. An interrupted measurement goes on where it was.

The check runs 5 searches as the demo does. Then the settings that they recommend, and the best two cells of the grid
at each batch size of 8 or more, train on 5 fresh seeds. Three things are said of it, and kept in
`results/demo_truth_check.json`:

- the loss of the recommended settings, beside the best cell of the grid: at most 1.15 times it is good;
- how far apart the recommended batch sizes are: at most two octaves is good;
- by how many octaves each recommended setting reaches the target later than the soonest of all these cells: at most
  one is good. The target is the lowest mean final loss + 5 %; times are samples on the mean curve by the seconds of a
  sample at that batch size, timed in turns (see `seconds.py`).
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
from bstune.tuner.testing.tables import Table
from seconds import SLACK, Clock, Truth
from timing import seconds_per_sample

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "digits.py"
GRID = HERE / "results" / "demo_truth_grid.csv"
CHECK = HERE / "results" / "demo_truth_check.json"

BATCH_SIZES = [64, 32, 16, 8, 4]  # Those that bstune searches by default at this size of data; the quick ones first.
LEARNING_RATES = [2.0**octave for octave in range(-9, 0)]
GRID_SEEDS = [0, 1, 2]
SEARCH_SEEDS = [0, 1, 2, 3, 4]
FRESH_SEEDS = [1001, 1002, 1003, 1004, 1005]  # Neither the grid nor any search has used them.
GUESSING = math.log(10)
"""Loss of ten equal guesses; where a learning rate ends above it, larger ones are not measured."""
MOST = 1.15
MOST_APART = 2.0
"""Octaves between the recommended batch sizes, at most."""
MOST_BEHIND = 1.0
"""Octaves of time behind the soonest cell, at most."""
LEAST_BATCH = 8
"""Cells of smaller batches take five times as long and are not looked at as the soonest."""
LOOKED_AT = 2
"""Cells of the grid at each batch size that may be the soonest: those that end lowest."""
COLUMNS = ["global_batch_size", "learning_rate", "seed", "val_loss", "best_val_loss", "seconds"]

Cell = tuple[int, float]
Curve = list[tuple[int, float]]


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


def full_run(objective: Any, micro_batch_size: int, accumulation_steps: int, learning_rate: float, seed: int) -> Curve:
    """Train one full run; return the validation loss by samples, infinite at the end where it diverged."""
    batch_size = micro_batch_size * accumulation_steps
    full_samples = objective.epochs * len(objective.train_data)
    curve: Curve = []

    def send(report: TrialReport) -> Verdict:
        curve.append((report.samples, report.val_loss))
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
        curve.append((full_samples, math.inf))
    return curve


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
                losses = [loss for _, loss in full_run(objective, batch_size, 1, learning_rate, seed)]
                row = [
                    batch_size,
                    learning_rate,
                    seed,
                    f"{losses[-1]:.6g}",
                    f"{min(losses):.6g}",
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
    searches = [one_search(seed) for seed in SEARCH_SEEDS]
    by_batch = {batch: sorted((means[cell], cell) for cell in means if cell[0] == batch) for batch in BATCH_SIZES}
    cells = {cell for batch in BATCH_SIZES if batch >= LEAST_BATCH for _, cell in by_batch[batch][:LOOKED_AT]}
    cells |= {best, *(cell_of(search) for search in searches)}
    curves = {cell: [full_run(objective, cell[0], 1, cell[1], seed) for seed in FRESH_SEEDS] for cell in sorted(cells)}
    times = seconds_per_sample(objective, sorted({batch for batch, _ in cells}))
    clock = Clock("measured", {batch: batch * each for batch, each in times.items()})
    truth = Truth(Table("digits", len(objective.train_data), objective.epochs, curves))
    said = judged(searches, truth, clock, best)
    for search in searches:
        search["fresh_val_losses"] = [curve[-1][1] for curve in curves[cell_of(search)]]
    kept = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/demo_truth.py --check",
        "versions": versions(),
        **said,
        "us_per_sample": {batch: 1e6 * each for batch, each in times.items()},
        "cells": [cell_row(cell, truth, clock) for cell in sorted(cells)],
        "searches": searches,
    }
    CHECK.write_text(json.dumps(kept, indent=2) + "\n")
    print(json.dumps(said, indent=2))
    return 0 if said["good"] else 1


def cell_of(search: dict[str, Any]) -> Cell:
    return search["global_batch_size"], search["learning_rate"]


def cell_row(cell: Cell, truth: Truth, clock: Clock) -> dict[str, Any]:
    """Return what is kept of a cell: how it ends, and when it reaches the target."""
    seconds = truth.seconds(cell, clock)
    return {
        "global_batch_size": cell[0],
        "learning_rate": cell[1],
        "mean_val_loss": truth.final[cell],
        "seconds_to_target": seconds if math.isfinite(seconds) else None,
        "octaves_behind": truth.octaves(cell, clock),
    }


def judged(searches: list[dict[str, Any]], truth: Truth, clock: Clock, best: Cell) -> dict[str, Any]:
    """Return what is said of all searches; each is told its own ratio and octaves."""
    for search in searches:
        search["ratio"] = truth.final[cell_of(search)] / truth.final[best]
        search["octaves_behind"] = truth.octaves(cell_of(search), clock)
    batches = [search["global_batch_size"] for search in searches]
    ratio = statistics.mean(search["ratio"] for search in searches)
    apart = math.log2(max(batches) / min(batches))
    behind = max(search["octaves_behind"] for search in searches)
    soonest = truth.soonest(clock)
    return {
        "mean_ratio": ratio,
        "most_ratio": MOST,
        "octaves_apart": apart,
        "most_apart": MOST_APART,
        "octaves_behind": behind,
        "most_behind": MOST_BEHIND,
        "good": ratio <= MOST and apart <= MOST_APART and behind <= MOST_BEHIND,
        "target": SLACK * truth.best,
        "best_cell_of_the_grid": {"global_batch_size": best[0], "learning_rate": best[1]},
        "soonest_cell": cell_row(soonest, truth, clock),
    }


def one_search(seed: int) -> dict[str, Any]:
    """Search as the demo does."""
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        result = bstune.search(bstune.load(str(EXAMPLE)), seed=seed, storage=f"sqlite:///{folder}/truth.db")
        seconds = time.perf_counter() - start_s
    told = result.recommendation
    print(
        f"search {seed}: batch size {told.global_batch_size}, learning rate {told.learning_rate:.4g}, "
        f"after {seconds:.0f} s and {len(result.records)} trials",
        flush=True,
    )
    return {
        "seed": seed,
        "global_batch_size": told.global_batch_size,
        "learning_rate": told.learning_rate,
        "told_val_loss": told.val_loss.to_dict(),
        "verified": told.verified,
        "reference_runs": result.spent.reference_runs,
        "trials": len(result.records),
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
