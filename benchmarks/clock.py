"""Replay the search on recorded tables by the clock: what it costs in seconds, and how soon its answer gets there.

    python benchmarks/clock.py                         # Everything, 20 seeds.
    python benchmarks/clock.py --quick                 # Fewer tables, 4 seeds; at most 3 minutes.
    python benchmarks/clock.py --quick --bstune-only   # Without the peers, with a line for each table.
    python benchmarks/clock.py --only digits/mlp_sgd --lines 512,measured

A step takes t(B) = a + c B, with a / c as a GPU has it, or what was measured where a table says so. Behind the
soonest: by how many octaves of time the recommended cell reaches the target (the best mean final loss + 5 %) later
than the cell that is there first, by the cells' mean curves, which go on along their own slope for at most four
full runs. Under a falling rate the curve is that of the ends of planned runs: whoever wants to be done sooner plans
a shorter run. A cell that is never there, or no answer yet, counts as 8 octaves.

bstune searches at its defaults (goal "time", a budget of 12 reference runs). Each peer gets the same seconds, and
three times as many, once with the loss as its objective and once with equal-loss seconds: those of a full run, and
what the loss lacks by the slope of the table's curves, which is told to the peer. A peer's trial that is repeated
or goes on is charged only for what it adds; the seconds until a peer's answer is within an octave for good are
looked for in all the three times as many.

Figures are the median over tables of the median over seeds; p80 is pooled. Tables of one seed have no luck to draw:
3 seeds there.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before numpy is loaded: two workers share two cores.

import argparse
import datetime
import json
import math
import multiprocessing
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import tables
import watching
from baselines import Trace
from bstune.tuner.core.specs import Plan
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import Table
from seconds import SLACK, SLOWER, Clock, Truth

HERE = Path(__file__).resolve().parent
BUDGET = 12.0
MOST_OCTAVES = {"median": 0.5, "80th percentile": 1.0}
"""Targets: behind the soonest, at most."""
MOST_OVER = 1.1
"""Target: the 80th percentile of what a search takes, beside what was announced."""
MOST_OF_PEER = {"16": 2 / 3, "128": 1 / 3, "512": 1 / 3}
"""Targets: the seconds until within an octave for good, beside those of the best peer, at most."""
MORE = 3
"""Peers are also looked at with so many times the seconds."""
LINES = "16,128,512,measured"
BY_TIME = ", equal-loss s"
PEERS = tuple(
    name + by
    for by in ("", BY_TIME)
    for name in ("TPE + Median", "TPE + Hyperband", "Ray ASHA + random", "random", "screen + top 3")
)
QUICK_PEERS = ("TPE + Median", "TPE + Median" + BY_TIME, "Ray ASHA + random" + BY_TIME)
QUICK = (
    "digits/cnn_sgd",
    "digits/mlp_adam",
    "mnist/sgdm",
    "own/california_adam",
    "own/characters_sgd",
    "own/mnist3k_adamw",
    "own/california_adamw_cosine",
    "own/mnist4k_sgd_linear",
    "lcbench/126025",
    "lcbench/167181",
)
ONE_SEED = 3
"""Seeds on a table of one recorded seed."""

Row = dict[str, Any]
Results = dict[str, dict[str, list[Row]]]
"""Rows by searcher and table."""


@dataclass(frozen=True)
class Recorded:
    """A table, its truth, and the clocks that it is run by."""

    table: Table
    truth: Truth
    clocks: dict[str, Clock]


TABLES: dict[str, Recorded] = {}
"""Filled before the workers start, which inherit it."""


def load(lines: list[str], wanted: Callable[[str], bool], slack: float) -> None:
    """Read the tables whose names are wanted."""
    found = [*tables.digits(), *tables.mnist(), *tables.own(HERE / "tables"), *tables.scheduled(HERE / "tables")]
    measured = tables.measured_step_s()
    for table in [*found, *tables.lcbench()[::3]]:
        if not wanted(table.name):
            continue
        clocks = {line: Clock.of_line(float(line), table.batches) for line in lines if line != "measured"}
        if "measured" in lines and table.name in measured:
            clocks["measured"] = Clock("measured", measured[table.name])
        if clocks:
            TABLES[table.name] = Recorded(table, Truth(table, slack), clocks)


# --- one search ---


@dataclass(frozen=True)
class Job:
    """All searchers on one table with one clock and one seed."""

    line: str
    table: str
    seed: int
    peers: tuple[str, ...]
    budget: float


def run(job: Job) -> dict[str, Row]:
    """Return what came of each searcher, by its name."""
    recorded = TABLES[job.table]
    clock, truth = recorded.clocks[job.line], recorded.truth
    table = tables.reseeded(recorded.table, job.seed)
    seed = job.seed if job.seed < recorded.table.n_seeds else 0
    rows = {"bstune": by_bstune(table, truth, clock, seed, job.budget)}
    spent_s = rows["bstune"]["seconds"]
    for name in job.peers:
        peer = name.removesuffix(BY_TIME)
        worth = (lambda batch, loss: truth.equal_loss(batch, loss, clock)) if name.endswith(BY_TIME) else None
        own_seed = seed if job.seed < recorded.table.n_seeds and recorded.table.n_seeds > 1 else job.seed
        meter = baselines.search(peer, table, own_seed, MORE * spent_s, clock.seconds, worth)
        rows[name] = scores(meter.trace, spent_s, dict(meter.by_batch), truth, clock)
    return rows


def by_bstune(table: Table, truth: Truth, clock: Clock, seed: int, budget: float) -> Row:
    """Run the real strategy to its end at its defaults, and score it."""
    facts = table.facts(step_times=tuple(sorted(clock.step_s.items())))
    strategy = Strategy(Plan(goal="time", budget=budget, space=table.space, seed=seed), facts, None)
    trace: Trace = []
    started = time.process_time()
    trials = len(replay(strategy, table, watch=watching.recommendations(trace, lambda now: _seconds(now, clock))))
    best = strategy.recommend()
    by_batch: dict[int, float] = defaultdict(float)
    for run in strategy.ledger:
        by_batch[run.setting.global_batch_size] += clock.seconds(run.setting.global_batch_size, run.charged)
    seconds = _seconds(strategy, clock)
    trace.append((seconds, (best.global_batch_size, best.learning_rate)))
    row = scores(trace, seconds, dict(by_batch), truth, clock)
    told = strategy.spent().predicted_seconds or math.nan
    return {**row, "trials": trials, "told": told / seconds, "cpu": time.process_time() - started}


def _seconds(strategy: Strategy, clock: Clock) -> float:
    """Return the seconds of all that was trained: counted here, not taken from the strategy."""
    return sum(clock.seconds(run.setting.global_batch_size, run.charged) for run in strategy.ledger)


def scores(trace: Trace, spent_s: float, by_batch: dict[int, float], truth: Truth, clock: Clock) -> Row:
    """Return the scores of a search that took so many seconds."""
    cell = baselines.at(trace, spent_s)
    quickest_s = min(clock.seconds(batch, truth.full_samples) for batch in clock.step_s)
    slow_s = sum(seconds for batch, seconds in by_batch.items() if clock.slowness(batch) > SLOWER)
    until_s = baselines.since(trace, lambda now: truth.octaves(now, clock) <= 1)
    return {
        "octaves": truth.octaves(cell, clock),
        "octaves_more": truth.octaves(baselines.at(trace, MORE * spent_s), clock),
        "regret": truth.regret(cell),
        "cell": cell,
        "seconds": spent_s,
        "quickest_runs": spent_s / quickest_s,
        "reference_runs": spent_s / clock.seconds(clock.reference_batch, truth.full_samples),
        "slow": slow_s / max(sum(by_batch.values()), 1e-12),
        "until": until_s / quickest_s,
    }


# --- what is said of them ---


def middle(by_table: dict[str, list[Row]], key: str) -> float:
    """Return the median over tables of the median over seeds."""
    return float(np.median([np.median([row[key] for row in rows]) for rows in by_table.values()]))


def p80(by_table: dict[str, list[Row]], key: str) -> float:
    """Return the pooled 80th percentile."""
    pooled = [row[key] for rows in by_table.values() for row in rows]
    return float(np.percentile(pooled, 80, method="higher"))


def rules(line: str) -> dict[str, list[float]]:
    """Return, for each table, what would be chosen by someone who knows every final loss."""
    by_rule, lowest = {}, {}
    for name, recorded in TABLES.items():
        if line in recorded.clocks:
            truth, clock = recorded.truth, recorded.clocks[line]
            by_rule[name] = truth.octaves(truth.by_rule(clock), clock)
            lowest[name] = truth.octaves(min(truth.final, key=lambda cell: truth.final[cell]), clock)
    return {"equal-loss seconds": list(by_rule.values()), "lowest loss": list(lowest.values())}


def report(line: str, results: Results, budget: float) -> list[str]:
    """Return the table of one line."""
    n_tables = len(results["bstune"])
    lines = [f"## {'Measured step times' if line == 'measured' else f'a/c = {line}'}: {n_tables} tables", ""]
    lines += [
        f"| searcher | octaves behind the soonest: median / p80 / worst | at {MORE} x the seconds "
        "| loss above the best: median / p80 | seconds until within an octave for good, in quickest full runs "
        "| reached | share of seconds on slow batches |",
        "| --- " * 7 + "|",
    ]
    for name, by_table in results.items():
        pooled = [row for rows in by_table.values() for row in rows]
        worst = max(row["octaves"] for row in pooled)
        reached = float(np.mean([math.isfinite(row["until"]) for row in pooled]))
        more = "-"
        if name != "bstune":
            more = f"{middle(by_table, 'octaves_more'):.2f} / {p80(by_table, 'octaves_more'):.1f}"
        lines.append(
            f"| {name} | {middle(by_table, 'octaves'):.2f} / {p80(by_table, 'octaves'):.2f} / {worst:.1f} | {more} "
            f"| {100 * middle(by_table, 'regret'):.1f} / {100 * p80(by_table, 'regret'):.0f} % "
            f"| {_runs(middle(by_table, 'until'))} | {reached:.0%} | {100 * middle(by_table, 'slow'):.0f} % |"
        )
    ours = results["bstune"]
    lines += [
        "",
        f"A search of bstune took {middle(ours, 'reference_runs'):.1f} reference runs of {budget:g} announced (p80 "
        f"{p80(ours, 'reference_runs'):.1f}), {middle(ours, 'quickest_runs'):.1f} full runs of the quickest batch (p80 "
        f"{p80(ours, 'quickest_runs'):.1f}), and {middle(ours, 'trials'):.0f} trials; by its own books "
        f"{middle(ours, 'told'):.2f} times these seconds. The strategy itself, watched, took "
        f"{middle(ours, 'cpu'):.1f} s of processor time.",
    ]
    for name, octaves in rules(line).items():
        lines.append(
            f"Told every final loss, {name} chooses {np.median(octaves):.2f} / {np.percentile(octaves, 80):.2f} / "
            f"{max(octaves):.1f} octaves behind."
        )
    peers = {name: middle(rows, "until") for name, rows in results.items() if name != "bstune"}
    if peers:
        best = min(peers, key=lambda name: peers[name])
        said = f"Until within an octave for good, in quickest runs: {_runs(middle(ours, 'until'))}; the best peer "
        said += f"{_runs(peers[best])}{f' ({best})' if math.isfinite(peers[best]) else ''}"
        ratio = middle(ours, "until") / peers[best]
        lines.append(f"{said}: {ratio:.2f} times." if 0 < ratio < math.inf else f"{said}.")
    return [*lines, ""]


def targets(results: dict[str, Results], budget: float) -> list[str]:
    """Return which targets are met on which lines, and by how much the others are missed."""
    lines = ["## Targets", "", "| target | line | at most | measured | |", "| --- " * 5 + "|"]

    def enter(target: str, line: str, most: float, measured: float) -> None:
        said = "met" if measured <= most else f"missed by {measured - most:.2f}"
        lines.append(f"| {target} | {line} | {most:.2f} | {_runs(measured)} | {said} |")

    for line, found in results.items():
        ours = found["bstune"]
        for name, figure in (("median", middle(ours, "octaves")), ("80th percentile", p80(ours, "octaves"))):
            enter(f"octaves behind the soonest, {name}", line, MOST_OCTAVES[name], figure)
    for line, found in results.items():
        over = p80(found["bstune"], "reference_runs") / budget
        enter("what a search takes of what was announced, 80th percentile", line, MOST_OVER, over)
    for line, found in results.items():
        others = [middle(rows, "until") for name, rows in found.items() if name != "bstune"]
        until = middle(found["bstune"], "until")
        if line in MOST_OF_PEER and others and math.isfinite(min(*others, until)):
            share = until / min(others)  # 0 where in the median over tables no peer is ever there.
            enter("seconds until within an octave, of the best peer's", line, MOST_OF_PEER[line], share)
    return [*lines, ""]


def _runs(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.2f}"


def per_table(line: str, ours: dict[str, list[Row]]) -> list[str]:
    """Return one line for each table: what bstune chose there, and what it paid."""
    lines = [f"### Every table at {line}: bstune", ""]
    lines += [
        "| table | octaves: median / worst | loss above the best | batches | soonest cell | reference runs | slow "
        "| within an octave |"
    ]
    lines += ["| --- " * 8 + "|"]
    for name, rows in ours.items():
        recorded = TABLES[name]
        soonest = recorded.truth.soonest(recorded.clocks[line])
        chosen = sorted(row["cell"][0] for row in rows)
        batches = f"{chosen[0]}" if chosen[0] == chosen[-1] else f"{chosen[0]} to {chosen[-1]}"
        one = {name: rows}
        lines.append(
            f"| {name} | {middle(one, 'octaves'):.2f} / {max(row['octaves'] for row in rows):.1f} "
            f"| {100 * middle(one, 'regret'):.1f} % | {batches} | {soonest[0]} at {soonest[1]:.3g} "
            f"| {middle(one, 'reference_runs'):.1f} | {100 * middle(one, 'slow'):.0f} % "
            f"| {_runs(middle(one, 'until'))} |"
        )
    return [*lines, ""]


def jobs_of(line: str, seeds: int, peers: tuple[str, ...], budget: float) -> list[Job]:
    """Return the jobs of a line, in the order of the tables."""
    return [
        Job(line, name, seed, peers, budget)
        for name, recorded in TABLES.items()
        if line in recorded.clocks
        for seed in range(min(seeds, ONE_SEED) if recorded.table.n_seeds == 1 else seeds)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten tables, 4 seeds")
    parser.add_argument("--bstune-only", action="store_true", help="no peers, and a line for each table")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="tables whose names hold one of these")
    parser.add_argument("--lines", default=LINES, help=f"a / c of the step times, separated by commas; default {LINES}")
    parser.add_argument("--seeds", type=int, default=None, help="seeds on a table; 20, or 4 with --quick")
    parser.add_argument("--budget", type=float, default=BUDGET, help="of bstune's search, in reference runs")
    parser.add_argument("--slack", type=float, default=SLACK, help="the target is the best loss times this")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=None, help="folder for clock.md and clock.json; results/ if all is run"
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    lines = arguments.lines.split(",")
    seeds = arguments.seeds or (4 if arguments.quick else 20)
    if arguments.only:
        load(lines, lambda name: any(text in name for text in arguments.only), arguments.slack)
    else:
        load(lines, lambda name: name in QUICK or not arguments.quick, arguments.slack)
    if not TABLES:
        sys.exit("No table has such a name and such a clock; run with --lines 128 and without --only to see all names.")
    peers = () if arguments.bstune_only else QUICK_PEERS if arguments.quick else PEERS
    kept: dict[str, Any] = {}
    by_line: dict[str, Results] = {}
    tables_said: list[str] = []
    whole = not (arguments.quick or arguments.bstune_only or arguments.only)
    whole = whole and (arguments.lines, arguments.slack, arguments.budget) == (LINES, SLACK, BUDGET) and seeds >= 20
    out = arguments.out or (HERE / "results" if whole else None)
    with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
        for line in lines:
            results: Results = defaultdict(lambda: defaultdict(list))
            jobs = jobs_of(line, seeds, peers, arguments.budget)
            for job, rows in zip(jobs, pool.imap(run, jobs), strict=True):
                for name, row in rows.items():
                    results[name][job.table].append(row)
            if not jobs:
                continue
            said = [*report(line, results, arguments.budget), *per_table(line, results["bstune"])]
            print("\n".join(said), flush=True)
            tables_said += said
            by_line[line] = results
            kept[line] = {name: {t: _columns(rows) for t, rows in by.items()} for name, by in results.items()}
            if out is not None:
                minutes = (time.perf_counter() - started) / 60
                head = _head(seeds, minutes, arguments.processes)
                out.mkdir(parents=True, exist_ok=True)
                text = [*head, *targets(by_line, arguments.budget), *tables_said]
                (out / "clock.md").write_text("\n".join(text))
                (out / "clock.json").write_text(json.dumps({"origin": _origin(), "lines": _finite(kept)}) + "\n")
    print("\n".join(targets(by_line, arguments.budget)))


def _head(seeds: int, minutes: float, processes: int) -> list[str]:
    """Return what stands above all tables."""
    return [
        f"# The search by the clock, {datetime.date.today()}",
        "",
        _origin(),
        f"Seeds on a table: {seeds}; {min(seeds, ONE_SEED)} where one was recorded. {minutes:.0f} minutes in "
        f"{processes} processes; load average at the end {os.getloadavg()[0]:.1f}.",
        "What the figures mean stands above the code of the benchmark, and in its --help.",
        "",
    ]


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0] if key not in ("seconds", "cpu")}


def _origin() -> str:
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("optuna", "numpy"))
    command = " ".join(["python benchmarks/clock.py", *sys.argv[1:]])
    return f"Commit {commit}, Python {platform.python_version()}, {versions}. Command: `{command}`."


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
