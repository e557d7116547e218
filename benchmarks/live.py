"""Real training by the clock: what each finder would recommend after a quarter, half and all of a search's seconds.

    python benchmarks/live.py [--tasks digits_bn mnist adult characters] [--seeds 0] [--peers PYTHON]
    python benchmarks/live.py --quick  # One task, short searches, two fresh seeds; at most 3 minutes.

bstune searches at its defaults, probe and process starts included, and is stopped where a search takes too long;
Optuna (TPE and MedianPruner) and a random search, full runs in this process in a box of settings as a careful user
gives it, get the same seconds. PYTHON is an interpreter of an environment with `lightning` and the same torch; its
recipe (`scale_batch_size`, then `lr_find`) takes what it takes. Where a finder has nothing to say yet, batch 32 and
the middle of the rates stand in, marked `?`.

Each setting is then trained on fresh seeds, the same for all. Two settings are compared by the seconds in which
they come to the common target, the worse of their two final losses: samples to it on the mean curve, times the
seconds of a sample at that batch size, timed in turns. Writes results/live.md and live.json, unless --quick is
given.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Before torch is loaded; worker processes inherit it.

import argparse
import importlib.metadata
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import live_tasks
import torch
from live_finders import PEERS, Curve, Finding, Found, by_bstune, by_lightning, guess, train
from timing import seconds_per_sample

HERE = Path(__file__).resolve().parent
FRESH_SEEDS = (1001, 1002, 1003)
SHARES = (0.25, 0.5, 1.0)
"""Of the seconds of bstune's search, at which all finders are looked at."""
DIVERGED_FULL_RUNS = 4
"""So many full runs are counted for a setting that diverges, as the time to any target."""
MOST_SEARCH_S = 70.0
"""Four tasks, three finders and the fresh runs then end within 25 minutes."""
QUICK_TASKS = ("digits_bn",)
QUICK_SEARCH_S = 30.0
OURS = "bstune"
PAIRS = ((0.25, 1.0), (0.5, 1.0), (1.0, 1.0), (0.5, 0.5), (0.25, 0.25))
"""(share of the seconds that bstune had, share that the other finder had)."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much is done."""

    search_s: float
    budget: float
    fresh_seeds: tuple[int, ...]


def mean_curve(curves: list[Curve]) -> Curve:
    """Return the mean over seeds; infinite from where one of them ended early."""
    length = max(len(curve) for curve in curves)
    whole = [curve for curve in curves if len(curve) == length]
    return [
        (whole[0][i][0], statistics.mean(c[i][1] if i < len(c) else math.inf for c in curves)) for i in range(length)
    ]


def samples_to(curve: Curve, target: float) -> float:
    """Return the samples at which a curve first reaches a target, on straight lines; infinite if it never does."""
    before = None
    for samples, loss in curve:
        if loss <= target:
            if before is None or not math.isfinite(before[1]):
                return samples
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (samples - before[0])
        before = (samples, loss)
    return math.inf


def findings_of(name: str, seed: int, effort: Effort, python: str | None) -> dict[str, Finding]:
    """Let all finders search on a task, one after another."""
    objective = getattr(live_tasks, name)
    findings = {OURS: by_bstune(name, seed, effort.search_s, effort.budget)}
    for finder, search in PEERS.items():
        findings[finder] = search(objective, seed, findings[OURS].seconds)
    if python:
        findings["lightning"] = by_lightning(python, name, seed)
    return findings


def task_rows(name: str, seed: int, effort: Effort, python: str | None) -> list[Row]:
    """Let all finders recommend, and train what they say on fresh seeds."""
    objective = getattr(live_tasks, name)
    objective.prepare()
    findings = findings_of(name, seed, effort, python)
    rows: list[Row] = []
    for finder, finding in findings.items():
        for share in (1.0,) if finder == "lightning" else SHARES:
            at_s = share * finding.seconds if finder == "lightning" else share * findings[OURS].seconds
            # Its last trial may have ended a moment late; at the end of a search all of it counts.
            found = finding.at(math.inf if share == 1.0 else at_s)
            setting: Found = found or guess(objective)
            rows.append(
                {
                    "task": name,
                    "seed": seed,
                    "finder": finder,
                    "share": share,
                    "search_s": at_s,
                    "trials": finding.trials,
                    "guessed": found is None,
                    "batch_size": setting.batch_size,
                    "learning_rate": setting.learning_rate,
                }
            )
    times = seconds_per_sample(objective, sorted({row["batch_size"] for row in rows}))
    trained: dict[tuple[int, float], list[Curve]] = {}
    for row in rows:
        batch_size, learning_rate = key = row["batch_size"], row["learning_rate"]
        if key not in trained:
            trained[key] = [train(objective, batch_size, learning_rate, fresh) for fresh in effort.fresh_seeds]
        finals = [curve[-1][1] if curve else math.inf for curve in trained[key]]
        row["final_losses"] = [loss if math.isfinite(loss) else math.inf for loss in finals]
        row["us_per_sample"] = 1e6 * times[row["batch_size"]]
        row["full_run_s"] = times[row["batch_size"]] * objective.epochs * len(objective.train_data)
        row["curve"] = mean_curve(trained[key])
        print(json.dumps({key: value for key, value in row.items() if key != "curve"}), file=sys.stderr, flush=True)
    return rows


def seconds_to_common_target(one: Row, other: Row) -> tuple[float, float]:
    """Return the seconds in which each of two settings reaches the worse of their final losses."""
    finals = [statistics.mean(row["final_losses"]) for row in (one, other)]
    target = max((loss for loss in finals if math.isfinite(loss)), default=math.inf)

    def seconds(row: Row) -> float:
        samples = samples_to(row["curve"], target)
        diverged = not (math.isfinite(samples) and math.isfinite(target))
        needed_s: float = DIVERGED_FULL_RUNS * row["full_run_s"] if diverged else 1e-6 * row["us_per_sample"] * samples
        return needed_s

    return seconds(one), seconds(other)


def pair_lines(rows: list[Row]) -> list[str]:
    """Return how bstune compares with each other finder: by task, and in the geometric mean."""
    by_key = {(row["task"], row["seed"], row["finder"], row["share"]): row for row in rows}
    lines = [
        "| bstune with | against | with | seconds to the common target, geometric mean | by task "
        "| final loss, geometric mean | by task |",
        "|" + "---|" * 7,
    ]
    others = [finder for finder in dict.fromkeys(row["finder"] for row in rows) if finder != OURS]
    for finder, (own_share, share) in itertools.product(others, PAIRS):
        pairs = [
            (by_key[task, seed, OURS, own_share], other)
            for (task, seed, who, had), other in by_key.items()
            if (who, had) == (finder, share)
        ]
        if not pairs:
            continue
        times = [mine / theirs for mine, theirs in (seconds_to_common_target(*pair) for pair in pairs)]
        losses = [
            statistics.mean(mine["final_losses"]) / statistics.mean(theirs["final_losses"]) for mine, theirs in pairs
        ]
        cells = [_share(own_share), finder, "its own" if finder == "lightning" else _share(share)]
        marks = [" ?" if mine["guessed"] or theirs["guessed"] else "" for mine, theirs in pairs]
        for ratios in (times, losses):
            finite = [ratio for ratio in ratios if math.isfinite(ratio) and ratio > 0]
            mean = f"{statistics.geometric_mean(finite):.2f}" if len(finite) == len(ratios) else "one diverged"
            cells += [mean, ", ".join(f"{ratio:.2f}{mark}" for ratio, mark in zip(ratios, marks, strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _share(share: float) -> str:
    return "all the seconds" if share == 1 else f"1/{round(1 / share)}"


def report(rows: list[Row], command: str, seconds: float) -> str:
    """Return the results as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("bstune", "torch", "optuna"))
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    lines = [
        "# Live benchmark",
        "",
        f"{date.today()}, commit {commit}, {versions}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, 1 thread.",
        f"Command: `{command}`; {seconds / 60:.1f} minutes; load average at the end {os.getloadavg()[0]:.1f}.",
        f"Final loss is the mean of {len(rows[0]['final_losses'])} fresh seeds, with their standard deviation.",
        "`?`: nothing was found by then, and batch 32 with the middle of the rates stands in.",
        "",
        "| task | finder | after s | trials in all | batch size | learning rate | final loss | sd | full run s |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        mean = statistics.mean(row["final_losses"])
        deviation = statistics.stdev(row["final_losses"]) if math.isfinite(mean) else math.nan
        cells = [row["task"], row["finder"], f"{row['search_s']:.1f}", row["trials"]]
        cells += [f"{row['batch_size']}{' ?' if row['guessed'] else ''}", f"{row['learning_rate']:.3g}"]
        cells += [f"{mean:.4f}", f"{deviation:.4f}", f"{row['full_run_s']:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "bstune against the others: below 1 bstune is sooner, or its loss lower. Both settings are trained on the same",
        "fresh seeds; `?` where one of the two had found nothing yet.",
    ]
    return "\n".join([*lines, "", *pair_lines(rows), ""])


def main() -> None:
    """Run the tasks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="interpreter of an environment with lightning")
    parser.add_argument("--tasks", nargs="+", default=None, choices=live_tasks.TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--quick", action="store_true", help="one task, short searches, two fresh seeds")
    parser.add_argument("--search-s", type=float, default=MOST_SEARCH_S, help="most seconds of a search")
    arguments = parser.parse_args()
    tasks = arguments.tasks or (QUICK_TASKS if arguments.quick else live_tasks.TASKS)
    if not live_tasks.DATA.is_dir() and set(tasks) != {"digits_bn"}:
        sys.exit(
            f"No training data in {live_tasks.DATA}. Set BSTUNE_DATA to the folder that holds `train`, "
            "or use --tasks digits_bn."
        )
    torch.set_num_threads(1)
    effort = Effort(arguments.search_s, 12, FRESH_SEEDS)
    if arguments.quick:
        effort = Effort(QUICK_SEARCH_S, 4, FRESH_SEEDS[:2])
    start_s = time.time()
    command = " ".join(["python benchmarks/live.py", *sys.argv[1:]])
    rows: list[Row] = []
    for name, seed in itertools.product(tasks, arguments.seeds):
        rows += task_rows(name, seed, effort, arguments.peers)
        text = report(rows, command, time.time() - start_s)
        if not arguments.quick:
            (HERE / "results" / "live.md").write_text(text)
            (HERE / "results" / "live.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
