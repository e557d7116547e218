"""An Optuna study of 20 trials on recorded tables: bstune.Sampler and bstune.Pruner beside Optuna's own.

    python benchmarks/optuna_face.py            # All tables, 5 seeds; writes results/optuna_face.md.
    python benchmarks/optuna_face.py --quick    # A fifth of the tables, 3 seeds; prints only.

Each study has the table's batch sizes and learning rates as choices, reports every recorded value at its optimizer
step, and answers with its best trial, as `study.best_params` does. What it has trained is counted in full runs of
samples. `bstune.search` gets for its budget what the study with both of bstune's has trained, and `goal="loss"`,
which is what a study of losses asks for. Regret is the mean final loss of the answer above the lowest of the table.

Figures are the median over tables of the median over seeds, the mean over tables of the mean over seeds (a regret
above 10 counts as 10), and the pooled 80th percentile. Tables of one seed have no luck to draw: one seed there.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before numpy is loaded: two workers share two cores.

import argparse
import datetime
import math
import multiprocessing
import platform
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import bstune
import numpy as np
import optuna
import tables
from bstune.tuner.core.specs import Plan
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.testing.replay import replay
from bstune.tuner.testing.tables import Table
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

HERE = Path(__file__).resolve().parent
TRIALS = 20
WORST = 10.0
OURS = "bstune.Sampler + bstune.Pruner"
SEARCH = "bstune.search, the same training"
Made = Callable[[int], tuple[BaseSampler, BasePruner]]
STUDIES: dict[str, Made] = {
    OURS: lambda seed: (bstune.Sampler(seed=seed), bstune.Pruner()),
    "bstune.Sampler, no pruner": lambda seed: (bstune.Sampler(seed=seed), NopPruner()),
    "TPE + MedianPruner": lambda seed: (TPESampler(seed=seed), MedianPruner()),
    "TPE + HyperbandPruner": lambda seed: (TPESampler(seed=seed), HyperbandPruner()),
    "TPE + bstune.Pruner": lambda seed: (TPESampler(seed=seed), bstune.Pruner()),
    "TPE, no pruner": lambda seed: (TPESampler(seed=seed), NopPruner()),
    "random, no pruner": lambda seed: (RandomSampler(seed=seed), NopPruner()),
}
Score = tuple[float, float]
"""Regret, and full runs trained."""
TABLES: dict[str, Table] = {}
"""Filled before the workers start, which inherit it."""


def study_on(table: Table, seed: int, sampler: BaseSampler, pruner: BasePruner) -> Score:
    """Run a study on a table."""
    study = optuna.create_study(sampler=sampler, pruner=pruner, study_name=f"face-{seed}")
    trained = 0.0
    for _ in range(TRIALS):
        trial = study.ask()
        batch = trial.suggest_categorical("batch_size", table.batches)
        lr = trial.suggest_categorical("lr", table.learning_rates)
        assert isinstance(batch, int)
        assert isinstance(lr, float)
        samples, loss, stopped = 0, math.nan, False
        for samples, loss in table.curve(batch, lr, seed):
            trial.report(loss, max(1, samples // batch))
            stopped = not math.isfinite(loss) or trial.should_prune()
            if stopped:
                break
        trained += samples / (table.n_samples * table.epochs)
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, loss)
    if not any(trial.state == TrialState.COMPLETE for trial in study.trials):
        return math.inf, trained
    best = study.best_params
    return table.regret(best["batch_size"], best["lr"]), trained


def run(job: tuple[str, int]) -> dict[str, Score]:
    """Return the scores of all on one table with one seed."""
    name, number = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = tables.reseeded(TABLES[name], number)
    seed = number if number < TABLES[name].n_seeds else 0
    found = {peer: study_on(table, seed, *made(number)) for peer, made in STUDIES.items()}
    strategy = Strategy(Plan(goal="loss", budget=found[OURS][1], space=table.space, seed=seed), table.facts(), None)
    replay(strategy, table)
    best = strategy.recommend()
    regret = table.regret(best.global_batch_size, best.learning_rate)
    return {**found, SEARCH: (regret, strategy.spent().full_runs)}


def report(results: dict[str, dict[str, list[Score]]]) -> list[str]:
    """Return the table of all, and what it was run with."""
    n_tables, command = len(TABLES), " ".join(["optuna_face.py", *sys.argv[1:]])
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("optuna", "numpy"))
    lines = [
        f"# Optuna studies of {TRIALS} trials on recorded tables, {datetime.date.today()}",
        "",
        f"`python benchmarks/{command}`, {n_tables} tables, Python {platform.python_version()}, {packages}.",
        "What the figures are stands in the script.",
        "",
        "| study | regret: median | mean | p80 | full runs trained: median |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in (OURS, SEARCH, *(peer for peer in STUDIES if peer != OURS)):
        by_table = [[min(regret, WORST) for regret, _ in rows] for rows in results[name].values()]
        pooled = [regret for rows in by_table for regret in rows]
        runs = [full_runs for rows in results[name].values() for _, full_runs in rows]
        lines.append(
            f"| {name} | {100 * np.median([np.median(rows) for rows in by_table]):.2f} % "
            f"| {100 * np.mean([np.mean(rows) for rows in by_table]):.1f} % "
            f"| {100 * np.percentile(pooled, 80):.1f} % | {np.median(runs):.1f} |"
        )
    better = [
        np.mean([a <= b for (a, _), (b, _) in zip(rows, results["TPE + MedianPruner"][name], strict=True)])
        for name, rows in results[OURS].items()
    ]
    lines += [
        "",
        f"bstune's study is at least as good as TPE + MedianPruner in {np.mean(better):.0%} of the pairs.",
        "",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the tables, 3 seeds, nothing written")
    parser.add_argument("--seeds", type=int, default=None, help="seeds on a table; 5, or 3 with --quick")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    found = [*tables.digits(), *tables.mnist(), *tables.own(HERE / "tables"), *tables.lcbench()]
    TABLES.update({table.name: table for table in (found[::5] if arguments.quick else found)})
    seeds = arguments.seeds or (3 if arguments.quick else 5)
    jobs = [(name, k) for name, table in TABLES.items() for k in range(seeds if table.n_seeds > 1 else 1)]
    results: dict[str, dict[str, list[Score]]] = defaultdict(lambda: defaultdict(list))
    with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
        for (name, _), scores in zip(jobs, pool.imap(run, jobs), strict=True):
            for peer, score in scores.items():
                results[peer][name].append(score)
    text = "\n".join(report(results))
    print(text)
    if not arguments.quick:
        (HERE / "results" / "optuna_face.md").write_text(text)


if __name__ == "__main__":
    main()
