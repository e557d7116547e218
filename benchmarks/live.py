"""Real training, end to end: what bstune recommends against Optuna at its defaults and against Lightning's recipe.

    python benchmarks/live.py --peers PYTHON [--tasks digits_bn mnist adult characters] [--seeds 0]

PYTHON is an interpreter of an environment with `lightning` and the same torch. On each task bstune searches first, probe and
process starts included, once for the lowest loss (its default) and once for the shortest time. Optuna (TPE and MedianPruner, full
runs in this process, a box of settings as a careful user gives it) gets the seconds of the first. Lightning's finder
(`scale_batch_size`, then `lr_find`) takes what it takes. Then each recommended setting trains on 3 fresh seeds.

Seconds to target are samples to target times the seconds a sample takes at that batch size, timed in turns. The target is the
worse of the final losses of bstune and Optuna, plus 2 %: Lightning is held to what the others show to be possible. A setting that
does not get there in a full run trains on, up to ten of them; where that is not enough its seconds are a lower bound, marked `>`.
Writes results/live.md and live.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any, Literal

import bstune
import live_tasks
import optuna
import torch
from bstune.objectives.base import Trial
from bstune.objectives.training import TrainingRun
from bstune.tuner.core.trials import TrialReport, TrialSpec, Verdict

HERE = Path(__file__).resolve().parent
FRESH_SEEDS = (1001, 1002, 1003)
TIMING_ROUNDS = 7
TIMED_S = 0.15
SLACK = 1.02
MOST_FULL_RUNS = 10
BATCH_SIZES = [8, 16, 32, 64, 128, 256, 512, 1024]
RATES = {"SGD": (1e-3, 1.0), "AdamW": (1e-5, 1e-1)}
"""Optuna's range of learning rates: what a careful user gives for the optimizer."""

Row = dict[str, Any]
Curve = list[tuple[int, float]]


def train(
    objective: bstune.Supervised,
    batch_size: int,
    learning_rate: float,
    seed: int,
    verdict: Any = None,
    full_runs: int = 1,
) -> Curve:
    """Train full runs' worth of samples and return validation losses by samples; `verdict(point, loss)` may stop it early."""
    full_samples = full_runs * round(objective.epochs * len(objective.train_data))
    n_points = full_runs * objective.evals
    curve: Curve = []

    def send(report: TrialReport) -> Verdict:
        curve.append((report.samples, report.val_loss))
        wanted = verdict is None or verdict(len(curve), report.val_loss)
        return "go" if wanted and math.isfinite(report.val_loss) else "stop"

    spec = TrialSpec(
        number=0,
        stage="live",
        global_batch_size=batch_size,
        micro_batch_size=batch_size,
        accumulation_steps=1,
        learning_rate=learning_rate,
        seed=seed,
        end_samples=full_samples // batch_size * batch_size,
        points=tuple(math.ceil(full_samples * point / n_points) for point in range(1, n_points + 1)),
        eval_batch_size=len(objective.val_data),
    )
    with contextlib.suppress(bstune.TrialPruned):
        objective.train(Trial(spec, device="cpu", send=send, clock=time.perf_counter), spec)
    return curve


def by_bstune(name: str, seed: int, goal: Literal["loss", "time"]) -> Row:
    """Search with bstune at its defaults but for the goal."""
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        objective = bstune.load(f"{HERE / 'live_tasks.py'}:{name}")
        result = bstune.search(objective, goal=goal, seed=seed, storage=f"sqlite:///{folder}/live.db")
        seconds = time.perf_counter() - start_s
    told = result.recommendation
    batch = {"batch_size": told.global_batch_size, "learning_rate": told.learning_rate}
    return batch | {"seconds": seconds, "full_runs": result.spent.full_runs, "verified": told.verified}


def by_optuna(objective: bstune.Supervised, seed: int, seconds: float) -> Row:
    """Search with Optuna at its defaults for as many seconds."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    make = objective.build_optimizer(objective.build_model(), 0.1)
    low, high = RATES[type(make).__name__]
    start_s = time.perf_counter()

    def value(trial: optuna.Trial) -> float:
        batch_size = trial.suggest_categorical("batch_size", BATCH_SIZES)
        learning_rate = trial.suggest_float("learning_rate", low, high, log=True)

        def go_on(step: int, loss: float) -> bool:
            trial.report(loss if math.isfinite(loss) else 1e9, step)
            return not trial.should_prune() and time.perf_counter() - start_s < seconds

        curve = train(objective, batch_size, learning_rate, seed=trial.number, verdict=go_on)
        if len(curve) < objective.evals - 1 or not math.isfinite(curve[-1][1]):
            raise optuna.TrialPruned
        return curve[-1][1]

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(value, timeout=seconds)
    done = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    best = study.best_params if done else {"batch_size": 32, "learning_rate": math.sqrt(low * high)}
    return best | {"seconds": time.perf_counter() - start_s, "trials": len(study.trials), "finished": len(done)}


def by_lightning(python: str, name: str, seed: int) -> Row:
    """Follow Lightning's recipe in its own environment."""
    command = [python, str(HERE / "live_peers.py"), name, str(seed)]
    with tempfile.TemporaryDirectory() as folder:  # Lightning writes checkpoints to where it runs.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "BSTUNE_DATA": str(live_tasks.DATA.parent)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    if done.returncode:
        sys.exit(f"Lightning's recipe failed on {name}:\n{done.stderr[-2000:]}")
    answer: Row = json.loads(done.stdout.splitlines()[-1])
    return answer


def seconds_per_sample(objective: bstune.Supervised, settings: dict[str, Row]) -> dict[str, float]:
    """Time training of all settings in turns, and return the median of each."""
    runs: dict[str, TrainingRun] = {}
    seen: dict[str, list[float]] = {finder: [] for finder in settings}
    for finder, row in settings.items():
        runs[finder] = TrainingRun(objective, device="cpu", learning_rate=1e-6, seed=0, horizon_samples=None)
        runs[finder].open_stream(row["batch_size"], 1)
        runs[finder].step()
    for _ in range(TIMING_ROUNDS):
        for finder, run in runs.items():
            start_s, before = time.perf_counter(), run.samples
            while time.perf_counter() - start_s < TIMED_S:
                run.step()
            seen[finder].append((time.perf_counter() - start_s) / (run.samples - before))
    return {finder: statistics.median(times) for finder, times in seen.items()}


def mean_curve(curves: list[Curve]) -> Curve:
    """Return the mean over seeds; infinite from where one of them ended early."""
    length = max(len(curve) for curve in curves)
    whole = [curve for curve in curves if len(curve) == length]
    return [
        (whole[0][i][0], statistics.mean(c[i][1] if i < len(c) else math.inf for c in curves)) for i in range(length)
    ]


def longer_curve(objective: bstune.Supervised, row: Row, target: float) -> Curve:
    """Train on until the target is reached, or for ten full runs, on the first fresh seed."""
    return train(
        objective,
        row["batch_size"],
        row["learning_rate"],
        FRESH_SEEDS[0],
        verdict=lambda _, loss: loss > target,
        full_runs=MOST_FULL_RUNS,
    )


def samples_to(curve: Curve, target: float) -> float:
    """Return the samples at which a curve first reaches a target, between points along a straight line; infinite if it never does."""
    before = None
    for samples, loss in curve:
        if loss <= target:
            if before is None or not math.isfinite(before[1]):
                return samples
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (samples - before[0])
        before = (samples, loss)
    return math.inf


def task_rows(name: str, seed: int, python: str | None) -> list[Row]:
    """Let all finders recommend, and train what they say."""
    objective = getattr(live_tasks, name)
    objective.prepare()
    settings = {"bstune": by_bstune(name, seed, "loss"), "bstune, goal time": by_bstune(name, seed, "time")}
    settings["optuna"] = by_optuna(objective, seed, settings["bstune"]["seconds"])
    if python:
        settings["lightning"] = by_lightning(python, name, seed)
    curves = {
        finder: [train(objective, row["batch_size"], row["learning_rate"], fresh) for fresh in FRESH_SEEDS]
        for finder, row in settings.items()
    }
    finals = {
        finder: [curve[-1][1] if len(curve) else math.inf for curve in of_one] for finder, of_one in curves.items()
    }
    target = SLACK * max(statistics.mean(finals[finder]) for finder in ("bstune", "optuna"))
    times = seconds_per_sample(objective, settings)
    rows = []
    for finder, row in settings.items():
        samples = samples_to(mean_curve(curves[finder]), target)
        if not math.isfinite(samples):
            samples = samples_to(longer_curve(objective, row, target), target)
        reached = math.isfinite(samples)
        full_samples = round(objective.epochs * len(objective.train_data))
        to_target_s = times[finder] * (samples if reached else MOST_FULL_RUNS * full_samples)
        known = {
            "task": name,
            "seed": seed,
            "finder": finder,
            "target": target,
            "reached": reached,
            "to_target_s": to_target_s,
        }
        rows.append(row | known | {"final_losses": finals[finder], "us_per_sample": 1e6 * times[finder]})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def ratio_lines(rows: list[Row]) -> list[str]:
    """Return how bstune's seconds to target compare with each other finder's, by task and in the geometric mean."""
    lines = []
    for own, other in itertools.product(("bstune", "bstune, goal time"), ("optuna", "lightning")):
        ratios, bound = [], False
        for row in rows:
            if row["finder"] == other:
                ours = next(r for r in rows if (r["task"], r["seed"], r["finder"]) == (row["task"], row["seed"], own))
                ratios.append(ours["to_target_s"] / row["to_target_s"])
                bound = bound or not row["reached"]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            less = " (an upper bound: it did not always reach the target)" if bound else ""
            lines.append(
                f"- {own}: {mean:.2f} times the seconds to target of {other}, in the geometric mean ({told}){less}"
            )
    return lines


def report(rows: list[Row], command: str, seconds: float) -> str:
    """Return the results as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("bstune", "torch", "optuna"))
    lines = [
        "# Live benchmark",
        "",
        f"{date.today()}, {versions}, Python {platform.python_version()}, {os.cpu_count()} cores, 1 thread.",
        f"Command: `{command}`; {seconds / 60:.1f} minutes; load average at the end {os.getloadavg()[0]:.1f}.",
        "Final loss is the mean of 3 fresh seeds, with their standard deviation.",
        "",
        "| task | finder | search s | batch size | learning rate | final loss | sd | us a sample | seconds to target |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        mean, deviation = statistics.mean(row["final_losses"]), statistics.stdev(row["final_losses"])
        to_target = f"{'' if row['reached'] else '> '}{row['to_target_s']:.2f}"
        cells = [row["task"], row["finder"], f"{row['seconds']:.0f}", row["batch_size"], f"{row['learning_rate']:.3g}"]
        cells += [f"{mean:.4f}", f"{deviation:.4f}", f"{row['us_per_sample']:.1f}", to_target]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", *ratio_lines(rows), ""])


def main() -> None:
    """Run the tasks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="interpreter of an environment with lightning")
    parser.add_argument("--tasks", nargs="+", default=live_tasks.TASKS, choices=live_tasks.TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    if not live_tasks.DATA.is_dir() and set(arguments.tasks) != {"digits_bn"}:
        sys.exit(
            f"No training data in {live_tasks.DATA}. Set BSTUNE_DATA to the folder that holds `train`, or use --tasks digits_bn."
        )
    torch.set_num_threads(1)
    start_s = time.time()
    command = "python benchmarks/live.py --peers PYTHON" if arguments.peers else "python benchmarks/live.py"
    command += "" if arguments.seeds == [0] else " --seeds " + " ".join(map(str, arguments.seeds))
    command += "" if tuple(arguments.tasks) == live_tasks.TASKS else " --tasks " + " ".join(arguments.tasks)
    rows: list[Row] = []
    for name, seed in itertools.product(arguments.tasks, arguments.seeds):
        rows += task_rows(name, seed, arguments.peers)
        text = report(rows, command, time.time() - start_s)
        (HERE / "results" / "live.md").write_text(text)
        (HERE / "results" / "live.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
