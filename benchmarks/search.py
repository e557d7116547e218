"""Replay the search on recorded tables, against the searchers that people use; print and keep the figures.

    python benchmarks/search.py            # All searchers, 30 seeds; about half an hour on 2 cores.
    python benchmarks/search.py --quick    # Two minutes.

Cost is training in full runs, everything included. Regret is how much worse the recommended cell is than the best cell of
the table, by the mean over the recorded seeds. bstune is run through its real strategy, once for each budget; it sees a
user's loop that reports when it likes, so a stopped run is never continued. "Cost to 1 %" is the cost from which on the
recommended cell is within 1 % of the range from the untrained loss to the best one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import tables
from bstune.tuner.plan import Plan
from bstune.tuner.strategy import Strategy
from bstune.tuner.table import Cell, Table, replay

BUDGETS = (4, 8, 12)
HERE = Path(__file__).resolve().parent
NEVER = math.inf
QUICK = ["bstune", "bstune, prior 16x wrong", "random", "screen + top 3", "TPE + Median", "Ray ASHA + random"]

Trace = list[tuple[float, Cell]]


def bstune_trace(table: Table, seed: int, budget: int, *, watch: bool, **plan: Any) -> tuple[Cell, Trace]:
    """Run the real strategy; return what it recommends in the end, and along the way if watched."""
    strategy = Strategy(Plan(budget=budget, tolerance=0.0, space=table.space, seed=seed, **plan), table.facts(), None)
    trace: Trace = []

    def look(now: Strategy) -> None:
        if any(run.finite for run in now.ledger):
            best = now.recommend()
            trace.append((now.spent().full_runs, (best.global_batch_size, best.learning_rate)))

    replay(strategy, table, watch=look if watch else None)
    best = strategy.recommend()
    return (best.global_batch_size, best.learning_rate), trace


def wrong_prior(table: Table) -> dict[str, Any]:
    """Return a plan whose centre is 16 times the middle of the table's rates: the user's baseline, far off."""
    rates = table.learning_rates
    middle = math.sqrt(rates[0] * rates[-1]) * 16
    return {"baseline": (min(table.batches, key=lambda b: abs(b - 64)), min(rates, key=lambda lr: abs(math.log(lr / middle))))}


BSTUNE: dict[str, Callable[[Table], dict[str, Any]]] = {
    "bstune": lambda table: {},
    "bstune, prior 16x wrong": wrong_prior,
    "bstune, no confirmation": lambda table: {"confirm": 0},
    "bstune, no pruner": lambda table: {"pruner": "none"},
    "bstune, random in place of the surrogate": lambda table: {"sampler": "random"},
    "bstune, TPE in place of the surrogate": lambda table: {"sampler": "tpe"},
}


class Scored:
    """Turns cells into regrets on one table."""

    def __init__(self, table: Table) -> None:
        """Compute the truth once."""
        self.truth = table.truth()
        self.best = min(self.truth.values())
        untrained = table.curves[max(table.batches), min(table.learning_rates)]
        self._range = max(float(np.mean([curve[0][1] for curve in untrained])) - self.best, 1e-12)

    def regret(self, cell: Cell) -> float:
        """Return the relative excess over the best cell."""
        return (self.truth[cell] - self.best) / abs(self.best)

    def cost_to_one_percent(self, trace: Trace) -> float:
        """Return the cost from which on every recommendation is within 1 % of the range."""
        since = NEVER
        for cost, cell in trace:
            inside = self.truth[cell] - self.best <= 0.01 * self._range
            since = min(since, cost) if inside else NEVER
        return since


def at(trace: Trace, cost: float) -> Cell | None:
    found = [cell for spent, cell in trace if spent <= cost + 1e-9]
    return found[-1] if found else None


def measure(name: str, table: Table, seeds: range, scored: Scored) -> dict[str, Any]:
    """Return regrets at each budget and the cost to 1 % for each seed."""
    regrets: list[list[float]] = []
    costs: list[float] = []
    started = time.perf_counter()
    # bstune has no randomness of its own on a table: beyond the recorded seeds it would only repeat itself.
    for seed in seeds if name not in BSTUNE else seeds[: table.n_seeds]:
        if name in BSTUNE:
            plan = BSTUNE[name](table)
            row: list[float] = []
            trace: Trace = []
            for budget in BUDGETS:
                cell, trace = bstune_trace(table, seed, budget, watch=budget == BUDGETS[-1], **plan)
                row.append(scored.regret(cell))
        else:
            trace = baselines.trace(name, table, seed, BUDGETS[-1])
            cells = [at(trace, budget) for budget in BUDGETS]
            row = [math.inf if cell is None else scored.regret(cell) for cell in cells]
        regrets.append(row)
        costs.append(scored.cost_to_one_percent(trace))
    return {"regret": regrets, "cost": costs, "seconds": time.perf_counter() - started}


def recipes(table: Table, scored: Scored) -> dict[str, float]:
    """Return the regret of the framework default at the largest batch: its rate as it is, and scaled up from batch 32."""
    largest = max(table.batches)
    default = 1e-3 if "adam" in table.name else 1e-2
    found = {}
    for rule, factor in (("raw", 1.0), ("square root", math.sqrt(largest / 32)), ("linear", largest / 32)):
        lr = min(table.learning_rates, key=lambda rate: abs(math.log(rate / (default * factor))))
        found[rule] = scored.regret((largest, lr))
    return found


def report(group: str, results: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Return the lines for a group of tables: median over tables of the median over seeds, and the pooled 80th percentile."""
    lines = [f"### {group}: {len(next(iter(results.values())))} tables", ""]
    head = " | ".join(f"regret at {budget}" for budget in BUDGETS)
    p80 = " / ".join(map(str, BUDGETS))
    lines += [f"| searcher | {head} | p80 at {p80} | cost to 1 % | reached |", "| --- " * (4 + len(BUDGETS)) + "|"]
    for name, by_table in results.items():
        regret = {table: np.array(row["regret"]) for table, row in by_table.items()}
        medians = np.median(np.stack([np.median(r, axis=0) for r in regret.values()]), axis=0)
        pooled = np.percentile(np.concatenate(list(regret.values())), 80, axis=0)
        cost = np.array([c for row in by_table.values() for c in row["cost"]])
        typical = float(np.median(cost))
        cells = " | ".join(f"{100 * m:.1f} %" for m in medians)
        spread = " / ".join(f"{100 * p:.0f}" for p in pooled)
        reached = f"{'never' if math.isinf(typical) else f'{typical:.2f}'} | {np.isfinite(cost).mean():.0%}"
        lines.append(f"| {name} | {cells} | {spread} | {reached} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two tables of each group, three seeds, the usual baselines")
    parser.add_argument("--seeds", type=int, default=30, help="searcher seeds on a table; on LCBench a tenth of it")
    parser.add_argument("--searchers", nargs="*", default=None, help="names as in the table; all by default")
    parser.add_argument("--groups", nargs="*", default=["digits", "mnist", "lcbench", "own"])
    parser.add_argument("--out", type=Path, default=None, help="folder for the result (JSON and Markdown)")
    arguments = parser.parse_args()
    groups: dict[str, Callable[[], list[Table]]] = {
        "digits": tables.digits,
        "mnist": tables.mnist,
        "lcbench": tables.lcbench,
        "own": lambda: tables.own(HERE / "tables"),
    }
    names = arguments.searchers or [*BSTUNE, *baselines.SEARCHERS]
    if arguments.quick:
        names = arguments.searchers or QUICK
    kept: dict[str, Any] = {}
    text = [f"# Search on recorded tables, {datetime.date.today()}", "", _origin(), ""]
    for group in arguments.groups:
        found = groups[group]()[: 2 if arguments.quick else None]
        seeds = range(3 if arguments.quick else max(1, arguments.seeds // (10 if group == "lcbench" else 1)))
        results: dict[str, dict[str, dict[str, Any]]] = {}
        for name in names:
            results[name] = {table.name: measure(name, table, seeds, Scored(table)) for table in found}
            print(report(group, {name: results[name]})[-2], file=sys.stderr, flush=True)
        lines = report(group, results)
        excess = [recipes(table, Scored(table)) for table in found]
        said = ", ".join(f"{rule} {100 * float(np.median([row[rule] for row in excess])):.0f} %" for rule in excess[0])
        lines += [f"Framework default at the largest batch: {said}.", ""]
        print("\n".join(lines), flush=True)
        text += lines
        kept[group] = results
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "search.md").write_text("\n".join(text))
        (arguments.out / "search.json").write_text(json.dumps(_finite(kept)))


def _origin() -> str:
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("optuna", "numpy"))
    command = " ".join(["python benchmarks/search.py", *sys.argv[1:]])
    return f"Commit {commit}, Python {platform.python_version()}, {versions}. Command: `{command}`."


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return round(value, 5) if isinstance(value, float) and math.isfinite(value) else None if isinstance(value, float) else value


if __name__ == "__main__":
    main()
