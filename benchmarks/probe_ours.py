"""bstune's side of `probe.py`, as a user's script would be: no torch in this process; prints one JSON object.

python benchmarks/probe_ours.py probe|check|soak|base TASK
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import bstune
import psutil
from bstune.tuner.core.trials import MeasureSpec
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host

MIB = 1 << 20
SEARCH_STEPS = 3
"""Attempts with more steps are there for the throughput, which does not count."""
SOAK_STEPS = 100
STABLE_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}

Row = dict[str, Any]


def objective(task: Row) -> Any:
    """Return the kind of a task, by its file."""
    os.environ["BENCHMARK_KIND"] = json.dumps(task["kind"])
    return bstune.load(Path(__file__).with_name("probe_objective.py"))


def probe(task: Row) -> Row:
    """Probe; count what there was to do until the answer was known, and look at what is left of it."""
    ended: list[tuple[float, Any]] = []
    before = (random.getstate(), dict(os.environ))
    asked = objective(task)
    result = bstune.probe(
        asked,
        device="cpu",
        memory=f"{task['limit_mib']}MiB",
        malloc="stable",
        storage="sqlite:///:memory:",
        on_attempt=lambda attempt: ended.append((time.time(), attempt)),
    )
    os.environ.pop("BENCHMARK_KIND")
    unchanged = before == (random.getstate(), dict(os.environ)) and "torch" not in sys.modules
    search = [(at, attempt) for at, attempt in ended if attempt.steps <= SEARCH_STEPS]
    line = result.memory_line
    return {
        "size": result.micro_batch_size,
        "eval_size": result.eval_batch_size,
        "steps": sum(attempt.steps for _, attempt in search),
        "oom": sum(attempt.outcome == "oom" for _, attempt in search),
        "seconds": search[-1][0] - task["started_s"],
        "proof": result.proof,
        "limited_by": result.limited_by,
        "prediction_error": line.relative_error if line else None,
        "attempts": [attempt.size for _, attempt in search],
        "left": len(psutil.Process().children(recursive=True)) + (not unchanged),
    }


def check(task: Row) -> Row:
    """Run each size alone in a fresh process, three steps and a validation batch; tell which fit the budget."""
    fits = {}
    with Host(objective(task), device="cpu", memory_bytes=task["limit_mib"] * MIB, environment=STABLE_MALLOC) as host:
        for size in task["sizes"]:
            answer = host.run(messages.Measure(MeasureSpec(size, min(size, 256), 2, 3, seed=1)))
            fits[size] = answer.reading.peak_bytes <= 0.95 * task["limit_mib"] * MIB
    return fits


def soak(task: Row) -> Row:
    """Train 100 optimizer steps at each size in a fresh process; return the peak as a share of all that is usable."""
    shares = {}
    with Host(objective(task), device="cpu", memory_bytes=task["limit_mib"] * MIB, environment=STABLE_MALLOC) as host:
        for size in task["sizes"]:
            answer = host.run(messages.Measure(MeasureSpec(size, min(size, 256), 1, SOAK_STEPS, seed=2)))
            shares[size] = answer.reading.peak_bytes / (task["limit_mib"] * MIB)
    return shares


def base(task: Row) -> int:
    """Return what a worker of bstune holds before it builds a model; each peer gets as much on top of its own."""
    with Host(objective(task), device="cpu", environment=STABLE_MALLOC) as host:
        return int(host.run(messages.Measure(MeasureSpec(1, 1, 1, 1, seed=0))).reading.start_bytes)


if __name__ == "__main__":
    verbs = {"probe": probe, "check": check, "soak": soak, "base": base}
    print(json.dumps(verbs[sys.argv[1]](json.loads(sys.argv[2]))))
