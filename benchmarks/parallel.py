"""What parallel search costs: the search on recorded tables with 1 to 64 slots, on a simulated clock.

Prints the figures and keeps them.

    python benchmarks/parallel.py            # 1, 2, 4, 8, 16, 64 slots, 10 seeds; about half an hour on 2 cores.
    python benchmarks/parallel.py --quick    # 1, 4 and 16 slots, 3 seeds.

Every slot trains at the same speed, so a full run takes one unit of time whatever its batch, and deciding takes none.
Regret is how much worse the recommended cell is than the best cell of the table, by the mean over the recorded seeds.
The speed-up is the time of one slot over that of N; at a fixed budget it ends where the budget holds no more full runs
than there are slots, since confirmation comes after the search: at least two full runs, one after the other. A repeat
is a search trial whose cell was running already.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tables
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trials import TrialSpec
from bstune.tuner.engines.base import Event, Finished, Reported
from bstune.tuner.searching.loop import Drive
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.studies.catalog import make_study
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.testing.replay import TablePool
from bstune.tuner.testing.tables import Table

SLOTS = (1, 2, 4, 8, 16, 64)


class ClockedPool(TablePool):
    """Runs trials on a table, each report at the time at which its training would make it."""

    def __init__(self, table: Table, slots: int) -> None:
        """Start at time zero."""
        super().__init__(table, slots)
        self.now = 0.0
        """Samples that one slot would have trained by now."""
        self.repeats = 0
        self._begun: dict[int, float] = {}
        self._specs: dict[int, TrialSpec] = {}
        self._told: dict[int, int] = {}

    def submit(self, spec: TrialSpec) -> None:
        """Start a run now."""
        cell = (spec.global_batch_size, spec.learning_rate, spec.seed)
        running = [self._specs[number] for number in self._running]
        self.repeats += any((other.global_batch_size, other.learning_rate, other.seed) == cell for other in running)
        self._begun[spec.number], self._specs[spec.number], self._told[spec.number] = self.now, spec, spec.start_samples
        super().submit(spec)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Yield what happens next, whenever that is: a stopped run ends at once."""

        def due(number: int) -> float:
            run = self._running[number]
            samples = self._told[number] if run.stopped or not run.reports else run.reports[0].samples
            return self._begun[number] + samples - self._specs[number].start_samples

        number = min(self._running, key=lambda number: (due(number), number))
        self.now = max(self.now, due(number))
        run = self._running[number]
        if run.stopped or not run.reports:
            del self._running[number]
            yield Finished(number, min(run.samples, run.spec.end_samples), 0.0, checkpoint=run.spec.checkpoint_to)
            return
        report = run.reports.popleft()
        run.waits, run.samples = True, report.samples
        self._told[number] = report.samples
        yield Reported(report)


def run(table: Table, slots: int, budget: float, seed: int) -> dict[str, Any]:
    """Search a table once, through the real drive and study."""
    facts = table.facts()
    strategy = Strategy(
        Plan(goal="loss", budget=budget, tolerance=0.0, space=table.space, seed=seed, jobs=slots), facts, None
    )
    pool = ClockedPool(table, slots)
    with open_storage("sqlite:///:memory:") as storage:
        study = make_study(storage, "parallel")
        Drive(study, strategy, None, tell=lambda *_: None).run(pool)
        best = strategy.recommend()
        cells = [(r.global_batch_size, r.learning_rate) for r in study.records if r.stage != "confirm"]
    return {
        "regret": table.regret(best.global_batch_size, best.learning_rate),
        "time": pool.now / facts.full_run_samples,
        "spent": strategy.spent().full_runs,
        "trials": len(cells),
        "cells": len(set(cells)),
        "repeats": pool.repeats,
        "verified": best.verified,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--budget", type=float, default=12.0)
    arguments = parser.parse_args()
    slots = (1, 4, 16) if arguments.quick else SLOTS
    n_seeds = arguments.seeds or (3 if arguments.quick else 10)
    chosen = [*tables.digits(), *tables.mnist()]
    started_s = time.perf_counter()
    rows = []
    for n in slots:
        runs = [run(table, n, arguments.budget, seed) for table in chosen for seed in range(n_seeds)]
        rows.append({"slots": n, "runs": len(runs)} | summary(runs))
        print(f"{n} slots done after {time.perf_counter() - started_s:.0f} s", flush=True)
    text = report(rows, [table.name for table in chosen], arguments.budget, n_seeds)
    print(text)
    if not arguments.quick:
        results = Path(__file__).resolve().parent / "results"
        (results / "parallel.md").write_text(text)
        (results / "parallel.json").write_text(json.dumps({"budget": arguments.budget, "rows": rows}, indent=1))


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    def quantile(name: str, share: float) -> float:
        return float(sorted(run[name] for run in runs)[min(len(runs) - 1, math.floor(share * len(runs)))])

    return {
        "regret_median": quantile("regret", 0.5),
        "regret_80": quantile("regret", 0.8),
        "time": statistics.median(run["time"] for run in runs),
        "spent": statistics.median(run["spent"] for run in runs),
        "trials": statistics.mean(run["trials"] for run in runs),
        "cells": statistics.mean(run["cells"] for run in runs),
        "repeats": statistics.mean(run["repeats"] for run in runs),
        "verified": statistics.mean(run["verified"] for run in runs),
    }


def report(rows: list[dict[str, Any]], names: list[str], budget: float, n_seeds: int) -> str:
    lines = [
        "# Parallel search on recorded tables",
        "",
        f"Budget {budget:g} full runs; {len(names)} tables ({', '.join(names)}), {n_seeds} seeds each. Time is in "
        "full runs of one slot.",
        "Made by `python benchmarks/parallel.py`.",
        "",
        "| slots | regret, median | 80th percentile | time | speed-up | spent | search trials | different cells | "
        "repeats | verified |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        speed_up = rows[0]["time"] / row["time"]
        lines.append(
            f"| {row['slots']} | {row['regret_median']:.1%} | {row['regret_80']:.1%} | {row['time']:.2f} | "
            f"{speed_up:.1f} | {row['spent']:.1f} | {row['trials']:.1f} | {row['cells']:.1f} | {row['repeats']:.2f} | "
            f"{row['verified']:.0%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
