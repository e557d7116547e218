"""A search of ten thousand trials: seconds to go on with it and to ask for the next trial, and memory for each.

    python benchmarks/many_trials.py [--trials 10000] [--out benchmarks/results]

The trials are made up (a bowl in octaves with 2 % of noise, most runs stopped at a rung) and stored in a SQLite file as
any others are. Then the study is opened again and the real strategy goes on with it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before numpy is loaded: as beside a trial that trains.

import argparse
import dataclasses
import math
import random
import statistics
import tempfile
import time
import tracemalloc
from datetime import date
from pathlib import Path

from bstune.tuner.core.results import Setting
from bstune.tuner.core.specs import Plan, Proposal
from bstune.tuner.core.trials import TrialReport
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.optuna_parameters import Axes
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.studies.study import Study
from bstune.tuner.testing.tables import synthetic

TABLE = synthetic()
SPACE = {"batch_size": [8, 16, 32, 64, 128, 256, 512], "learning_rate": (1e-5, 1.0), "weight_decay": (1e-6, 1e-1)}
AXES = Axes((8, 512), (1e-5, 1.0), Plan(space=SPACE).space)
PASSED = 0.4
"""Share of the made-up runs at a rung that pass it."""


def strategy(study: Study) -> Strategy:
    """Return a strategy whose budget does not end."""
    return Strategy(Plan(budget=1e6, space=SPACE), TABLE.facts(), None, study.finished)


def loss(rng: random.Random, setting: Setting, progress: float) -> float:
    """Return what a bowl around batch 64, learning rate 0.03 and weight decay 1e-3 gives."""
    octaves = math.log2(setting.learning_rate / 0.03) - 0.7 * math.log2(setting.global_batch_size / 64)
    bowl = 1 + 0.03 * octaves**2 + 0.02 * (math.log10(setting.params["weight_decay"]) + 3) ** 2
    return bowl * (0.1 + 0.2 * (1 - progress) ** 2) * (1 + 0.02 * rng.gauss(0, 1))


def train(study: Study, proposal: Proposal, rng: random.Random, judge: Strategy | None) -> None:
    """Store a trial that is stopped by the strategy, or by chance where there is none."""
    setting = proposal.setting
    record = study.begin(proposal.spec(-1, setting.global_batch_size, 1), AXES)
    if judge is not None:
        judge.started(record.number, proposal)
    state = "complete"
    for point in proposal.points:
        report = TrialReport(record.number, (point,), point, loss(rng, setting, point / proposal.end_samples), {}, 1.0)
        record = study.report(report)
        stopped = rng.random() > PASSED if judge is None else judge.report(report) == "stop"
        if stopped and point < proposal.end_samples:
            state = "pruned"
            break
    record = dataclasses.replace(record, state=state, val_loss=record.values[-1][1], seconds=1.0)
    study.finish(record)
    if judge is not None:
        judge.finish(record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--asks", type=int, default=50, help="trials that are asked for after these")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/many.db"
        with open_storage(url) as storage:
            study = make_study(storage, "many")
            rungs = strategy(study).rungs.samples
            started_s = time.perf_counter()
            for _ in range(arguments.trials):
                decay = {"weight_decay": 10 ** rng.uniform(-6, -1)}
                rate = 10 ** rng.uniform(-5, 0)
                setting = Setting(rng.choice(SPACE["batch_size"]), rate, decay)  # type: ignore[arg-type]  # A list.
                train(study, Proposal("search", setting, 0, rungs[-1], rungs), rng, None)
            stored_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        with open_storage(url) as storage:
            reopened = find_study(storage, "many")
            assert reopened is not None
            now = strategy(reopened)
            proposal = now.ask()
            resume_s = time.perf_counter() - started_s
            ask_s: list[float] = []
            while proposal is not None and len(ask_s) < arguments.asks:
                train(reopened, proposal, rng, now)
                started_s = time.perf_counter()
                proposal = now.ask()
                ask_s.append(time.perf_counter() - started_s)
        tracemalloc.start()
        with open_storage(url) as storage:
            kept = find_study(storage, "many")
            assert kept is not None
            last = strategy(kept)
            last.ask()
            memory_kb = tracemalloc.get_traced_memory()[0] / 1000 / len(last.ledger)
    # The race along the learning rate comes first and is read off the ledger; what follows asks the surrogate.
    asking = sorted(ask_s)
    lines = [
        "# Ten thousand trials",
        "",
        f"{date.today()}. Command: `python benchmarks/many_trials.py --trials {arguments.trials}`; one thread.",
        "",
        "| figure | value |",
        "| --- | --- |",
        f"| trials stored | {arguments.trials}, {1000 * stored_s / arguments.trials:.1f} ms each |",
        f"| resume, up to the first proposal | {resume_s:.2f} s |",
        f"| ask, median of {len(asking)} | {1000 * statistics.median(asking):.0f} ms |",
        f"| ask, 90th percentile | {1000 * asking[int(0.9 * (len(asking) - 1))]:.0f} ms |",
        f"| memory for each trial | {memory_kb:.1f} kB |",
        "",
    ]
    print("\n".join(lines))
    if arguments.out is not None:
        (arguments.out / "many_trials.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
