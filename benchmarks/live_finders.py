"""Who searches on a live task: each finder tells what it would recommend at any second of its search.

Every finder starts its own clock; what it needs to start (for bstune processes and the probe) is part of its seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bstune
import live_tasks
import optuna
from bstune.objectives.base import Trial
from bstune.tuner.core.errors import NoSignalError
from bstune.tuner.core.progress import Progress
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.core.trials import Facts, TrialReport, TrialSpec, Verdict
from bstune.tuner.strategy.strategy import Strategy

HERE = Path(__file__).resolve().parent
BATCH_SIZES = [8, 16, 32, 64, 128, 256, 512, 1024]
RATES = {"SGD": (1e-3, 1.0), "AdamW": (1e-5, 1e-1)}
"""The range of learning rates of Optuna's searches: what a careful user gives for the optimizer."""

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Found:
    """A setting that a finder would recommend, and from which second of its search on."""

    seconds: float
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Finding:
    """A whole search: what it would have recommended, in the order of time, and the seconds that it took."""

    found: list[Found]
    seconds: float
    trials: int

    def at(self, seconds: float) -> Found | None:
        """Return what it would recommend after so many seconds; None while it has nothing."""
        before = [found for found in self.found if found.seconds <= seconds]
        return before[-1] if before else None


def rates_of(objective: bstune.Supervised) -> tuple[float, float]:
    """Return the range of learning rates that a careful user gives."""
    return RATES[type(objective.build_optimizer(objective.build_model(), 0.1)).__name__]


def guess(objective: bstune.Supervised) -> Found:
    """Return what is used where a finder has nothing to say yet: batch 32 and the middle of the rates."""
    return Found(0.0, 32, math.sqrt(math.prod(rates_of(objective))))


def train(
    objective: bstune.Supervised,
    batch_size: int,
    learning_rate: float,
    seed: int,
    verdict: Callable[[int, float], bool] | None = None,
) -> Curve:
    """Train a full run and return validation losses by samples; `verdict(point, loss)` may stop it early."""
    full_samples = round(objective.epochs * len(objective.train_data))
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
        points=tuple(math.ceil(full_samples * point / objective.evals) for point in range(1, objective.evals + 1)),
        eval_batch_size=len(objective.val_data),
    )
    with contextlib.suppress(bstune.TrialPruned):
        objective.train(Trial(spec, device="cpu", send=send, clock=time.perf_counter), spec)
    return curve


def by_bstune(name: str, seed: int, timeout_s: float, budget: float) -> Finding:
    """Search with bstune at its defaults; what it would have said earlier is worked out from the trials by then."""
    told: list[tuple[float, TrialRecord]] = []
    facts: list[Facts] = []
    start_s = time.perf_counter()

    def listen(progress: Progress) -> None:
        if progress.facts is not None:
            facts.append(progress.facts)
        if progress.trial is not None and progress.kind != "start":
            told.append((time.perf_counter() - start_s, progress.trial))

    result = None
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(NoSignalError):
        result = bstune.search(
            bstune.load(f"{HERE / 'live_tasks.py'}:{name}"),
            goal="time",
            budget=budget,
            timeout=timeout_s,
            seed=seed,
            storage=f"sqlite:///{folder}/live.db",
            callbacks=(listen,),
        )
    seconds = time.perf_counter() - start_s
    if result is None:
        return Finding([], seconds, 0)
    found: list[Found] = []
    known: dict[int, TrialRecord] = {}
    plan = Plan(goal="time", budget=budget, seed=seed)
    for at_s, trial in told:
        known[trial.number] = trial
        history = [known[number] for number in sorted(known)]
        with contextlib.suppress(NoSignalError):
            best = Strategy(plan, facts[0], result.probe, history).recommend()
            found.append(Found(at_s, best.global_batch_size, best.learning_rate))
    last = result.recommendation
    return Finding([*found, Found(seconds, last.global_batch_size, last.learning_rate)], seconds, len(result.records))


def by_optuna(
    objective: bstune.Supervised,
    seed: int,
    seconds: float,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> Finding:
    """Search full runs in this process for so many seconds, in a box of settings as a careful user gives it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    low, high = rates_of(objective)
    found: list[Found] = []
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

    def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.state is optuna.trial.TrialState.COMPLETE and study.best_trial.number == trial.number:
            best = study.best_params
            found.append(Found(time.perf_counter() - start_s, best["batch_size"], best["learning_rate"]))

    study = optuna.create_study(sampler=sampler, pruner=pruner)
    study.optimize(value, timeout=seconds, callbacks=[note])
    return Finding(found, time.perf_counter() - start_s, len(study.trials))


def tpe_median(objective: bstune.Supervised, seed: int, seconds: float) -> Finding:
    """Search with Optuna's defaults."""
    return by_optuna(objective, seed, seconds, optuna.samplers.TPESampler(seed=seed), optuna.pruners.MedianPruner())


def at_random(objective: bstune.Supervised, seed: int, seconds: float) -> Finding:
    """Search at random, every run to its end."""
    return by_optuna(objective, seed, seconds, optuna.samplers.RandomSampler(seed=seed), optuna.pruners.NopPruner())


PEERS: dict[str, Callable[[bstune.Supervised, int, float], Finding]] = {"optuna": tpe_median, "random": at_random}


def by_lightning(python: str, name: str, seed: int) -> Finding:
    """Follow Lightning's recipe in its own environment."""
    command = [python, str(HERE / "live_peers.py"), name, str(seed)]
    with tempfile.TemporaryDirectory() as folder:  # Lightning writes checkpoints to where it runs.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "BSTUNE_DATA": str(live_tasks.DATA.parent)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    if done.returncode:
        sys.exit(f"Lightning's recipe failed on {name}:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found = Found(answer["seconds"], answer["batch_size"], answer["learning_rate"])
    return Finding([found], found.seconds, 1)
