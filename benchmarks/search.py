"""Replay the search on recorded tables, against the searchers that people use; print and keep the figures.

    python benchmarks/search.py            # All searchers, 30 seeds; under half an hour on 2 cores.
    python benchmarks/search.py --quick    # Two minutes.

Cost is training in full runs, everything included. Regret is how much worse the recommended cell is than the best cell
of the table, by the mean over the recorded seeds. bstune is run through its real strategy, once for each budget; it
sees a user's loop that reports when it likes, so a stopped run is never continued, and is charged again when it comes
back, while a baseline is charged only for what it adds. "Cost to 1 %" is the cost from which on the recommended cell is
within 1 % of the range from the untrained loss to the best one, in a search with a budget of 12.

The first searcher seeds see the recorded seeds as they are; each further one sees the recorded curves of every cell in
an order of its own, so that the truth stays and the luck is drawn anew. Tables of one seed (LCBench) have no luck to
draw: there bstune is run once.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before numpy is loaded: two workers share two cores.

import argparse
import contextlib
import datetime
import functools
import json
import math
import multiprocessing
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import baselines
import numpy as np
import tables
import watching
from baselines import Trace
from bstune.tuner.core.probe_results import ProbeResult
from bstune.tuner.core.results import Setting
from bstune.tuner.core.specs import Plan, Proposal
from bstune.tuner.strategy import gaussian_process, posterior, race, rung_sampler
from bstune.tuner.strategy.curves import samples_to
from bstune.tuner.strategy.ledger import Run
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import Cell, Table
from bstune.tuner.theory import scaling
from bstune.tuner.theory.critical_batch import CRITICAL_PRIOR

BUDGETS = (4, 8, 12)
HERE = Path(__file__).resolve().parent
GROUPS = ["digits", "mnist", "own", "lcbench", "scheduled"]
BESIDE = "scheduled"
"""Tables under a falling rate, where bstune plans its short runs: shown alone, and in no figure over all tables."""
BESIDE_SEEDS = 10
NEVER = math.inf
QUICK = ["bstune", "bstune, prior 16x wrong", "random", "screen + top 3", "TPE + Median", "Ray ASHA + random"]
FEW_SEEDS = {"GPSampler": 2}
"""A Gaussian process takes about four seconds a search, a hundred times what the others do."""
ABLATION_SEEDS = 3
"""And every third table of LCBench: an ablation tells parts apart, not searchers."""


@dataclass(frozen=True)
class Variant:
    """bstune, or bstune with one part changed."""

    plan: Callable[[Table], dict[str, Any]] = lambda table: {}
    patch: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    watched: bool = False
    """Whether the cost to 1 % is read off."""


def wrong_prior(table: Table) -> dict[str, Any]:
    """Return a plan whose centre is 16 times the middle of the table's rates: the user's baseline, far off."""
    rates = table.learning_rates
    middle = math.sqrt(rates[0] * rates[-1]) * 16
    return {
        "baseline": (
            min(table.batches, key=lambda b: abs(b - 64)),
            min(rates, key=lambda lr: abs(math.log(lr / middle))),
        )
    }


@contextlib.contextmanager
def no_prior() -> Iterator[None]:
    """Take away the slope expected of the learning rate, the rise off the centre line, and that with the batch."""
    flat = mock.patch.object(gaussian_process, "Hyper", functools.partial(gaussian_process.Hyper, rise=0.0, growth=0.0))
    with flat, mock.patch.dict(scaling.SLOPE_PRIOR, {"other": (0.0, 0.25)}):
        yield


def _hyper(**changes: float) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: mock.patch.object(gaussian_process, "Hyper", functools.partial(gaussian_process.Hyper, **changes))


BSTUNE: dict[str, Variant] = {
    "bstune": Variant(watched=True),
    "bstune, prior 16x wrong": Variant(wrong_prior, watched=True),
    "bstune, no prior": Variant(patch=no_prior),
    "bstune, no race": Variant(patch=lambda: mock.patch.object(race.Race, "next", return_value=None)),
    "bstune, no curve over integrated rate": Variant(patch=_hyper(learning=1e-6)),
    "bstune, no rise with the batch": Variant(patch=_hyper(growth=0.0)),
    "bstune, any run for any share of the budget": Variant(
        patch=lambda: mock.patch.object(rung_sampler, "LARGEST_SHARE", 1.0)
    ),
    "bstune, collapsed runs as any other": Variant(patch=lambda: mock.patch.object(posterior, "COLLAPSED", math.inf)),
    "bstune, successive halving by thirds": Variant(patch=lambda: mock.patch.object(rung_sampler, "PROMOTED", 3.0)),
    "bstune, no confirmation": Variant(lambda table: {"confirm": 0}),
    "bstune, no pruner": Variant(lambda table: {"pruner": "none"}),
    "bstune, random in place of the surrogate": Variant(lambda table: {"sampler": "random"}),
    "bstune, TPE in place of the surrogate": Variant(lambda table: {"sampler": "tpe"}),
}
RIVALS = ("TPE + Hyperband", "TPE + SHA", "Ray ASHA + random", "screen + top 3")


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
        return baselines.since(trace, lambda cell: self.truth[cell] - self.best <= 0.01 * self._range)


def bstune_once(
    table: Table, seed: int, budget: int, plan: dict[str, Any], *, watch: bool
) -> tuple[Strategy, Trace, int]:
    """Run the real strategy to its end; return it, what it recommended on the way if watched, and how many trials."""
    strategy = Strategy(
        Plan(goal="loss", budget=budget, tolerance=0.0, space=table.space, seed=seed, **plan), table.facts(), None
    )
    trace: Trace = []
    look = watching.recommendations(trace, lambda now: now.spent().full_runs) if watch else None
    trials = len(replay(strategy, table, watch=look))
    return strategy, trace, trials


def fresh_runs_inside(strategy: Strategy, table: Table) -> tuple[int, int]:
    """Return how many recorded runs that the search has not seen fall into the interval it gives, and of how many."""
    best = strategy.recommend()
    seen = {run.seed % table.n_seeds for run in strategy.ledger.of(_key(best.global_batch_size, best.learning_rate))}
    fresh = [
        table.curve(best.global_batch_size, best.learning_rate, s)[-1][1] for s in range(table.n_seeds) if s not in seen
    ]
    low, high = best.val_loss.low, best.val_loss.high
    return (0, 0) if low is None or high is None else (sum(low <= loss <= high for loss in fresh), len(fresh))


def _key(batch: int, lr: float) -> Any:
    from bstune.tuner.strategy.ledger import key_of

    return key_of(Setting(batch, lr))


# --- the batch size that is fastest ---

SATURATION = 100.0
"""a / c of the step times that are assumed where a table has none."""


def timed_probe(table: Table) -> ProbeResult:
    """Return a probe that found every batch of the table to fit, and step times of 1 ms and 10 us a sample."""
    return known_probe(max(table.batches), step_s=(SATURATION * 1e-5, 1e-5), n_train_samples=table.n_samples)


def fastest_batch(table: Table, level: float) -> int | None:
    """Return the batch size that reaches a loss in the fewest seconds at its best rate, by the median over seeds."""
    seconds = {}
    for batch, lr in table.curves:
        needed = []
        for i, curve in enumerate(table.curves[batch, lr]):
            asked = Proposal("search", Setting(batch, lr), i, curve[-1][0], ())
            run = Run(i, asked, values=dict(curve), samples=curve[-1][0])
            needed.append(samples_to(level, run) or math.inf)
        seconds[batch, lr] = float(np.median(needed)) * (SATURATION + batch) / batch
    best = min(seconds, key=lambda cell: seconds[cell])
    return best[0] if math.isfinite(seconds[best]) else None


def batch_answer(table: Table, seed: int) -> tuple[float, float] | None:
    """Return by how many octaves a search of 12 full runs misses the fastest batch, and the prior alone; else None."""
    probe = timed_probe(table)
    strategy = Strategy(Plan(goal="loss", budget=12, space=table.space, seed=seed), table.facts(), probe)
    replay(strategy, table)
    answer = strategy.batch_answer()
    truth = None if answer.target is None else fastest_batch(table, answer.target)
    if truth is None or answer.fastest is None:
        return None
    guess = min(table.batches, key=lambda batch: (1 + CRITICAL_PRIOR[0] / batch) * (SATURATION + batch))
    return math.log2(answer.fastest / truth), math.log2(guess / truth)


# --- the work, in two processes ---


@dataclass(frozen=True)
class Job:
    """One searcher on one table with one seed."""

    group: str
    table: int
    searcher: str
    seed: int


def run(job: Job) -> dict[str, Any]:
    """Return regrets at each budget, the cost to 1 %, and what else is counted."""
    recorded = TABLES[job.group][job.table]
    scored = Scored(recorded)
    table = tables.reseeded(recorded, job.seed)
    seed = job.seed if job.seed < recorded.n_seeds else 0
    started = time.perf_counter()
    row: dict[str, Any] = {"cost": NEVER, "inside": 0, "fresh": 0, "trials": 0}
    if job.searcher == "batch answer":
        return {**row, "octaves": batch_answer(table, seed)}
    if job.searcher in BSTUNE:
        variant = BSTUNE[job.searcher]
        regrets = []
        with variant.patch():
            for budget in BUDGETS:
                watch = variant.watched and budget == BUDGETS[-1]
                strategy, trace, row["trials"] = bstune_once(table, seed, budget, variant.plan(recorded), watch=watch)
                best = strategy.recommend()
                regrets.append(scored.regret((best.global_batch_size, best.learning_rate)))
                inside, fresh = fresh_runs_inside(strategy, table)
                row["inside"] += inside
                row["fresh"] += fresh
    else:
        own_seed = seed if job.seed < recorded.n_seeds else job.seed
        trace = baselines.search(job.searcher, table, own_seed, BUDGETS[-1]).trace
        cells = [baselines.at(trace, budget) for budget in BUDGETS]
        regrets = [math.inf if cell is None else scored.regret(cell) for cell in cells]
    return {
        **row,
        "regret": regrets,
        "cost": scored.cost_to_one_percent(trace),
        "seconds": time.perf_counter() - started,
    }


TABLES: dict[str, list[Table]] = {}
"""Filled before the workers start, which inherit it."""


def jobs_of(group: str, names: list[str], seeds: int) -> list[Job]:
    """Return the jobs of a group: the costly first, so that both processes end together."""
    jobs = []
    for i, table in enumerate(TABLES[group]):
        for name in [*names, "batch answer"]:
            n = min(seeds, FEW_SEEDS.get(name, seeds))
            if name in BSTUNE and not BSTUNE[name].watched:
                n = min(n, ABLATION_SEEDS)
            if name == "batch answer":
                n = min(n, table.n_seeds)
            if group == BESIDE:
                n = (
                    0
                    if name == "batch answer" or (name in BSTUNE and not BSTUNE[name].watched)
                    else min(n, BESIDE_SEEDS)
                )
            if table.n_seeds == 1:  # No luck to draw: only what has its own can differ.
                n = 1 if name in BSTUNE or name == "batch answer" else min(n, 3)
            few = name in FEW_SEEDS or (name in BSTUNE and not BSTUNE[name].watched)
            if few and group == "lcbench" and i % 3:
                continue
            jobs += [Job(group, i, name, seed) for seed in range(n)]
    return sorted(jobs, key=lambda job: job.searcher not in FEW_SEEDS)


def summary(by_table: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the median over tables of the median over seeds, the pooled 80th percentile, and the cost to 1 %."""
    regret = {table: np.array([row["regret"] for row in rows]) for table, rows in by_table.items()}
    cost = np.array([row["cost"] for rows in by_table.values() for row in rows])
    typical = [float(np.median([row["cost"] for row in rows])) for rows in by_table.values()]
    return {
        "median": np.median(np.stack([np.median(r, axis=0) for r in regret.values()]), axis=0),
        "p80": np.percentile(np.concatenate(list(regret.values())), 80, axis=0),
        "cost": float(np.median(typical)),
        "reached": float(np.isfinite(cost).mean()),
    }


Results = dict[str, dict[str, list[dict[str, Any]]]]
SAME = "bstune, on the tables and seeds of the ablations"


def report(title: str, results: Results) -> list[str]:
    """Return the lines for some tables."""
    lines = [f"## {title}", ""]
    head = " | ".join(f"regret at {budget}" for budget in BUDGETS)
    lines += [
        f"| searcher | {head} | p80 at {' / '.join(map(str, BUDGETS))} | cost to 1 % | reached |",
        "| --- " * (4 + len(BUDGETS)) + "|",
    ]
    for name, by_table in _with_equal_terms(results).items():
        found = summary(by_table)
        cells = " | ".join(f"{100 * m:.1f} %" for m in found["median"])
        spread = " / ".join(f"{100 * p:.0f}" for p in found["p80"])
        watched = name != SAME and (name not in BSTUNE or BSTUNE[name].watched)
        reached = f"{_cost(found['cost'])} | {found['reached']:.0%}" if watched else "- | -"
        lines.append(f"| {name} | {cells} | {spread} % | {reached} |")
    return [*lines, ""]


def _with_equal_terms(results: Results) -> Results:
    """Return the results with bstune's once more, on what its ablations were run on, before the first of these."""
    ablations = [name for name in results if name in BSTUNE and not BSTUNE[name].watched]
    if "bstune" not in results or not ablations:
        return results
    same = {table: results["bstune"][table][: len(rows)] for table, rows in results[ablations[0]].items()}
    found: Results = {}
    for name, rows in results.items():
        if name == ablations[0]:
            found[SAME] = same
        found[name] = rows
    return found


def _cost(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.2f}"


def targets(results: Results) -> list[str]:
    """Return the lines that compare bstune with the best single baseline at each cost, over all tables."""
    rivals = [name for name in results if name not in BSTUNE]
    found = {name: summary(by_table) for name, by_table in results.items()}
    whole = [name for name in rivals if len(results[name]) == len(results["bstune"])]
    best = [min(whole, key=lambda name: found[name]["median"][i]) for i in range(len(BUDGETS))]
    ours = found["bstune"]["median"]
    lines = ["## Against the best single baseline, over all tables", ""]
    lines += ["| full runs | bstune | best baseline there | tables within 1 point of it |", "| --- | --- | --- | --- |"]
    for i, budget in enumerate(BUDGETS):
        pairs = [
            (
                np.median([row["regret"][i] for row in rows]),
                np.median([row["regret"][i] for row in results[best[i]][table]]),
            )
            for table, rows in results["bstune"].items()
        ]
        near = float(np.mean([mine <= theirs + 0.01 for mine, theirs in pairs]))
        theirs = found[best[i]]["median"][i]
        lines.append(f"| {budget} | {100 * ours[i]:.1f} % | {best[i]}, {100 * theirs:.1f} % | {near:.0%} |")
    late = found[best[-1]]["median"][-1]
    lines += [
        "",
        f"bstune at {BUDGETS[0]} full runs: {100 * ours[0]:.1f} %; "
        f"the best baseline at {BUDGETS[-1]}: {100 * late:.1f} %.",
        "",
    ]
    cost = found["bstune"]["cost"]
    said = [f"Cost to 1 % of the range (median over tables): bstune {_cost(cost)}"]
    said += [
        f"{name} {_cost(found[name]['cost'])}"
        for name in ("TPE + Median", *RIVALS, "bstune, prior 16x wrong")
        if name in found
    ]
    return [*lines, "; ".join(said) + ".", ""]


def per_table(results: Results) -> list[str]:
    """Return one line for each table."""
    names = [name for name in ("bstune", "TPE + Median", *RIVALS) if name in results]
    lines = ["## Every table: median regret at 4 / 8 / 12 full runs, in %", ""]
    lines += ["| table | " + " | ".join(names) + " |", "| --- " * (1 + len(names)) + "|"]
    for table in results["bstune"]:
        cells = []
        for name in names:
            medians = np.median([row["regret"] for row in results[name][table]], axis=0)
            cells.append(" / ".join(f"{100 * m:.1f}" for m in medians))
        lines.append(f"| {table} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def honesty(results: Results, answers: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return what is said of the intervals, of the batch answer, and of time."""
    rows = [row for by_table in results["bstune"].values() for row in by_table]
    inside, fresh = sum(row["inside"] for row in rows), sum(row["fresh"] for row in rows)
    lines = ["## Intervals, batch answers, time", ""]
    if fresh:
        lines.append(
            f"The 90 % prediction interval of the recommended cell held {inside / fresh:.0%} of {fresh} runs "
            "that the search had not seen."
        )
    octaves = [row["octaves"] for by_table in answers.values() for row in by_table]
    given = np.abs([pair for pair in octaves if pair is not None])
    near = ""
    if len(given):
        share, error = (given <= 1).mean(axis=0), given.mean(axis=0)
        near = (
            f", within one octave of the fastest in {share[0]:.0%} of these, "
            f"with a mean error of {error[0]:.2f} octaves"
        )
        near += f" (the prior alone: {share[1]:.0%} and {error[1]:.2f})"
    lines.append(
        "Which batch is fastest (a step of 1 ms + 10 us a sample assumed) was answered from trials "
        f"in {len(given)} of {len(octaves)} "
        f"searches of 12 full runs{near}."
    )
    each = 1000 * overhead_s()
    lines.append(
        f"The strategy took {each:.0f} ms a trial (ask, reports, end, and the table itself) "
        "in a search of about 100 trials."
    )
    return [*lines, ""]


def overhead_s() -> float:
    """Return the seconds of processor time that a trial takes in a long search, watched by nobody."""
    table = next(iter(TABLES.values()))[0]
    started = time.process_time()
    trials = bstune_once(table, 0, 40, {}, watch=False)[2]
    return (time.process_time() - started) / trials


def recipes(table: Table) -> dict[str, float]:
    """Return the regret of a framework's default at the largest batch: its rate as it is, and scaled up from 32."""
    scored = Scored(table)
    largest = max(table.batches)
    default = 1e-3 if "adam" in table.name else 1e-2
    found = {}
    for rule, factor in (("raw", 1.0), ("square root", math.sqrt(largest / 32)), ("linear", largest / 32)):
        lr = min(table.learning_rates, key=lambda rate: abs(math.log(rate / (default * factor))))
        found[rule] = scored.regret((largest, lr))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two tables of each group, three seeds, the usual baselines"
    )
    parser.add_argument(
        "--seeds", type=int, default=30, help="searcher seeds on a table; three on LCBench and for ablations"
    )
    parser.add_argument("--searchers", nargs="*", default=None, help="names as in the table; all by default")
    parser.add_argument("--groups", nargs="*", default=GROUPS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=None, help="folder for search.md and search.json; results/ if all is run"
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    loaders: dict[str, Callable[[], list[Table]]] = {
        "digits": tables.digits,
        "mnist": tables.mnist,
        "own": lambda: tables.own(HERE / "tables"),
        "lcbench": tables.lcbench,
        "scheduled": lambda: tables.scheduled(HERE / "tables"),
    }
    for group in arguments.groups:
        TABLES[group] = loaders[group]()[: 2 if arguments.quick else None]
    names = arguments.searchers or (QUICK if arguments.quick else [*BSTUNE, *baselines.SEARCHERS])
    results: Results = defaultdict(lambda: defaultdict(list))
    beside: Results = defaultdict(lambda: defaultdict(list))
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    text = [f"# Search on recorded tables, {datetime.date.today()}", "", _origin(), ""]
    with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
        for group in arguments.groups:
            jobs = jobs_of(group, names, 3 if arguments.quick else arguments.seeds)
            here: Results = {name: defaultdict(list) for name in names}
            for job, row in zip(jobs, pool.imap(run, jobs, chunksize=4), strict=True):
                table = TABLES[group][job.table].name
                if job.searcher == "batch answer":
                    answers[table].append(row)
                    continue
                here[job.searcher][table].append(row)
                (beside if group == BESIDE else results)[job.searcher][table].append(row)
            lines = report(f"{group}: {len(TABLES[group])} tables", {name: rows for name, rows in here.items() if rows})
            excess = [recipes(table) for table in TABLES[group]]
            said = ", ".join(
                f"{rule} {100 * float(np.median([row[rule] for row in excess])):.0f} %" for rule in excess[0]
            )
            lines += [f"Framework default at the largest batch: {said}.", ""]
            print("\n".join(lines), flush=True)
            text += lines
    ordered = {name: results[name] for name in names}
    n_tables = sum(len(found) for group, found in TABLES.items() if group != BESIDE)
    lines = (
        report(f"All {n_tables} tables{' at a constant rate' if BESIDE in TABLES else ''}", ordered) if n_tables else []
    )
    if n_tables and "bstune" in names and any(name not in BSTUNE for name in names):
        every = {name: {**ordered[name], **beside[name]} for name in names}
        lines += [*targets(ordered), *honesty(ordered, answers), *per_table(every)]
    lines.append(
        f"All of it took {(time.perf_counter() - started) / 60:.1f} minutes in {arguments.processes} processes."
    )
    print("\n".join(lines), flush=True)
    whole = not arguments.quick and arguments.searchers is None and arguments.groups == GROUPS and arguments.seeds >= 30
    out = arguments.out or (HERE / "results" if whole else None)
    if out is not None:
        _write(out, [*text, *lines, ""], ordered, answers)


def _write(out: Path, text: list[str], ordered: Results, answers: dict[str, list[dict[str, Any]]]) -> None:
    """Write what was said, and the figures of all tables."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "search.md").write_text("\n".join(text))
    kept = {
        "origin": _origin(),
        "budgets": BUDGETS,
        "searchers": {
            name: {table: _columns(rows) for table, rows in by_table.items()} for name, by_table in ordered.items()
        },
        "octaves_off_the_fastest_batch": {table: [row["octaves"] for row in rows] for table, rows in answers.items()},
    }
    (out / "search.json").write_text(json.dumps(_finite(kept)) + "\n")


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"regret": [row["regret"] for row in rows], "cost": [row["cost"] for row in rows]}


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
    return (
        round(value, 4)
        if isinstance(value, float) and math.isfinite(value)
        else None
        if isinstance(value, float)
        else value
    )


if __name__ == "__main__":
    main()
