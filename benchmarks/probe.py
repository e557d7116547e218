"""How the probe compares with other batch-size finders: steps, failures, exactness and time, in one run.

    python benchmarks/probe.py --peers PYTHON [--quick]

PYTHON is an interpreter of an environment with `lightning` and `accelerate` and the same torch; without it the peers
are left out. Three tables, written to benchmarks/results/:

1. Simulated cards: traced steps of six model kinds, replayed through a model of CUDA's caching allocator at several
   capacities. Truth: every size, from above, until one fits without retries.
2. Real steps on CPU under a limit on resident memory, processes and imports included in the time. Truth: the answer and
   sizes up to 1.3 times it, each in a new run. Then 100 steps at what each finder returned. All with a fixed mmap
   threshold of malloc; see docs.
3. Fuzzed memory curves: jumps, kernel switches, squares, noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import bstune
import torch
from bstune.tuner.memory.caching_allocator import ReservedPeak, reserved_at
from bstune.tuner.memory.dispatch_recorder import recording
from bstune.tuner.memory.trace import Trace, TraceModel
from bstune.tuner.probing.size_search import Bounds, Growth
from bstune.tuner.testing.fake_device import GIB, FakeDevice
from fuzz import fuzzed, truth
from model_kinds import Kind
from torch.nn import functional

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
KINDS = (
    Kind("mlp", width=1024, size=0),
    Kind("cnn", width=32, size=32),
    Kind("gpt", width=128, size=64),
    Kind("gpt_checkpointed", width=128, size=64),
    Kind("lstm", width=128, size=32),
    Kind("embedding", width=64, size=50_000),
)
CAP = 8192
"""Lightning's own `max_val`."""
CAPACITIES_GIB = (0.25, 1.0, 3.0)
CPU_LIMITS_MIB = (310, 350)
FURTHER = (1.02, 1.05, 1.1, 1.3)
"""Sizes above the answer that are run, as multiples of it, beside its three successors."""
STABLE_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
SIMULATED_PEERS = ["lightning binsearch", "lightning power", "accelerate", "ultralytics' rule"]
CPU_PEERS = ["lightning binsearch", "accelerate"]

Row = dict[str, Any]


# --- 1. simulated cards ---------------------------------------------------------------------------------------------


def traced(kind: Kind, n: int) -> Trace:
    """Record two optimizer steps, each of two micro-batches, and a validation batch."""
    torch.manual_seed(0)
    with recording(n, "cpu") as recorder:
        model = kind.model()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(2):
                x, y = kind.batch(n)
                functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            x, y = kind.batch(n)
            functional.cross_entropy(model.eval()(x), y)
    return recorder.trace()


def simulated_rows(kind: Kind, model: TraceModel, capacity_gib: float, peers: str | None) -> list[Row]:
    """Compare all finders on one kind and capacity."""
    capacity = int(capacity_gib * GIB)
    highest = next((n for n in range(CAP, 0, -1) if model.peak_at(n) <= capacity), 0)
    best = next((n for n in range(highest, 0, -1) if (r := reserved_at(model, n, capacity)).fits and not r.retries), 0)
    case: Row = {"kind": kind.name, "capacity": f"{capacity_gib:g} GiB", "truth": best}
    if best == 0:
        return []
    device = FakeDevice(capacity_gib=capacity_gib, trace=model)
    growth = Growth(Bounds(1, CAP), budget_bytes=capacity)
    held_bytes = 4 * sum(
        parameter.nbytes for parameter in kind.model().parameters()
    )  # AdamW: gradients and two moments.
    start_s = time.perf_counter()
    while (size := growth.next_size()) is not None:
        growth.add(device.attempt(size, n_steps=3 if growth.expects_answer else 2))
        growth.fixed_bytes = held_bytes  # As the probe does, from the tensors that the first attempt held.
        if len(growth.history) == 2:
            growth.predictor = ReservedPeak(model, capacity)
    seconds = time.perf_counter() - start_s
    failures = sum(measured.outcome == "oom" for measured in growth.history)
    rows = [
        case
        | {
            "finder": "bstune",
            "size": growth.answer.size or 0,
            "steps": len(device.sizes),
            "oom": failures,
            "seconds": seconds,
        }
    ]
    if peers:
        with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
            file.write(pickle.dumps(model))
            file.flush()
            task = {
                "model": file.name,
                "capacity_gib": capacity_gib,
                "limit_bytes": capacity,
                "cap": CAP,
                "peers": SIMULATED_PEERS,
            }
            rows += [case | {"finder": name} | answer for name, answer in run_peers(peers, task).items()]
    for row in rows:
        result = reserved_at(model, row["size"], capacity)
        row["soak"] = "ok" if result.fits and not result.retries else "retries" if result.fits else "OOM"
    return rows


def run_peers(python: str, task: Row) -> dict[str, Row]:
    """Run other finders in their own environment."""
    command = [python, str(HERE / "probe_peers.py"), json.dumps(task)]
    with tempfile.TemporaryDirectory() as folder:  # Lightning writes checkpoints to where it runs.
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env={**os.environ, **STABLE_MALLOC}, check=False
        )
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return {}
    answers: dict[str, Row] = json.loads(done.stdout.splitlines()[-1])
    return answers


# --- 2. real steps on CPU -------------------------------------------------------------------------------------------


def cpu_rows(kind: Kind, limit_mib: int, peers: str | None) -> list[Row]:
    """Compare the finders on real steps, and train 100 steps at what each of them returns."""
    task = {"kind": dataclasses.asdict(kind), "limit_mib": limit_mib}
    case = {"kind": kind.name, "capacity": f"{limit_mib} MiB"}
    row = run_ours("probe", task | {"started_s": time.time()})
    row["truth"] = row["size"]
    if row["limited_by"] == "memory":
        above = sorted({row["size"] + more for more in (0, 1, 2, 3)} | {round(row["size"] * more) for more in FURTHER})
        fits = run_ours("check", task | {"sizes": above})
        row["truth"] = max((size for size in above if fits[str(size)]), default=row["size"] - 1)
    rows = [case | {"finder": "bstune"} | row]
    if peers:
        extra_bytes = limit_mib * MIB * 95 // 100 - run_ours("base", task)
        peer_task = {"kind": task["kind"], "limit_bytes": extra_bytes, "cap": 2048}
        for name in CPU_PEERS:
            start_s = time.time()
            for finder, answer in run_peers(peers, peer_task | {"peers": [name]}).items():
                rows.append(case | {"finder": finder, "truth": None} | answer | {"seconds": time.time() - start_s})
    soaked = (
        rows if limit_mib == CPU_LIMITS_MIB[0] else rows[:1]
    )  # The others' sizes are soaked at one limit: it is most of the time.
    shares = run_ours("soak", task | {"sizes": sorted({max(1, row["size"]) for row in soaked})})
    for row in soaked:
        row["soak_share"] = shares[str(max(1, row["size"]))]
        row["soak"] = "ok" if row["soak_share"] <= 1 else "too large"
    return rows


def run_ours(verb: str, task: Row) -> Any:
    """Run bstune in a fresh process, as a user's script would."""
    command = [sys.executable, str(HERE / "probe_ours.py"), verb, json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout.splitlines()[-1]
    )


# --- 3. fuzzed curves -----------------------------------------------------------------------------------------------


def fuzz_table(count: int) -> Row:
    """Search on random memory curves, exact and noisy."""
    table: Row = {}
    for name, noise in (("exact", 0.0), ("1.5 % noise", 0.015)):
        attempts, too_large, right, noisy = [], 0, 0, 0
        for seed in range(count):
            growth, memory, budget, usable = fuzzed(seed, noise=noise)
            size = growth.answer.size
            attempts.append(len(growth.history))
            too_large += size is not None and memory(size) > usable
            noisy += growth.answer.proof == "noise"
            right += (size or 0) == truth(memory, budget)
        table[name] = {
            "curves": count,
            "too large": too_large,
            "exact": right,
            "proof noise": noisy,
            "attempts mean": round(statistics.mean(attempts), 1),
            "attempts max": max(attempts),
        }
    return table


# --- the report -----------------------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> list[str]:
    """Return a Markdown table with one line per finder."""
    lines = [
        "| finder | cases | steps, median | OOM, median | OOM, all | exact | too large | size / truth | s, median |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for finder in dict.fromkeys(row["finder"] for row in rows):
        mine = [row for row in rows if row["finder"] == finder]
        known = [row for row in mine if row.get("truth")]
        exact = (
            f"{sum(abs(row['size'] - row['truth']) <= 1 or row.get('proof') == 'noise' for row in known)}/{len(known)}"
            if known
            else "-"
        )
        large = sum(row.get("soak", "ok") != "ok" for row in mine) if "soak" in mine[0] else "-"
        ratio = f"{statistics.median(row['size'] / row['truth'] for row in known):.2f}" if known else "-"
        numbers = [statistics.median(row[key] for row in mine) for key in ("steps", "oom")]
        seconds = statistics.median(row["seconds"] for row in mine)
        total = sum(row["oom"] for row in mine)
        lines.append(
            f"| {finder} | {len(mine)} | {numbers[0]:g} | {numbers[1]:g} | {total} | {exact} | {large} | {ratio} | "
            f"{seconds:.1f} |"
        )
    return lines


def against_lightning(rows: list[Row]) -> str:
    """Return one sentence: bstune's steps and seconds as shares of those of Lightning's binsearch, case by case."""
    of = {(row["kind"], row["capacity"], row["finder"]): row for row in rows}
    pairs = [
        (row, of.get((row["kind"], row["capacity"], "lightning binsearch")))
        for row in rows
        if row["finder"] == "bstune"
    ]
    both = [(ours, theirs) for ours, theirs in pairs if theirs]
    if not both:
        return "Lightning was not run."
    steps = statistics.median(theirs["steps"] / ours["steps"] for ours, theirs in both)
    text = f"Lightning's binsearch takes {steps:.1f} times the steps (median)"
    if ours_s := [ours["seconds"] / theirs["seconds"] for ours, theirs in both if "left" in ours]:
        text += f"; bstune takes {statistics.geometric_mean(ours_s):.2f} of its wall time (geometric mean)"
        text += f" and leaves {sum(ours['left'] for ours, _ in both)} processes or changes behind"
    return text + "."


def case_table(rows: list[Row]) -> list[str]:
    """Return a Markdown table with one line per case and finder."""
    lines = [
        "| kind | capacity | finder | size | truth | steps | OOM | s | soak | proof | prediction error |",
        "|" + "---|" * 11,
    ]
    for row in rows:
        error = f"{row['prediction_error']:+.2%}" if row.get("prediction_error") is not None else ""
        cells = [
            row["kind"],
            row["capacity"],
            row["finder"],
            row["size"],
            row.get("truth") or "",
            row["steps"],
            row["oom"],
        ]
        cells += [f"{row['seconds']:.1f}", row.get("soak", ""), row.get("proof", ""), error]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def report(simulated: list[Row], cpu: list[Row], fuzz: Row, command: str, seconds: float) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Probe benchmark",
        "",
        f"{date.today()}, bstune {bstune.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores.",
        f"Command: `{command}`; {seconds / 60:.1f} minutes; load average at the end {os.getloadavg()[0]:.1f}.",
        "",
        "## Simulated cards",
        "",
        "Six model kinds, traced on CPU and replayed through a model of CUDA's caching allocator. *Too large*: the "
        "size fails or retries.",
        "bstune predicts with the same model that the card is simulated by, so its row is what a faithful model "
        "would give. Lightning",
        "takes 5 % off what binsearch finds, by design; Accelerate only goes down, from 128; Ultralytics aims at 60 "
        "% of the card.",
        "",
        *summary(simulated),
        "",
        against_lightning(simulated),
        "",
        "## Real steps on CPU",
        "",
        "Resident memory beyond what a process holds before it builds the model is limited for all in the same way. "
        "Seconds include processes and imports.",
        "bstune's step is two accumulated micro-batches and its size must leave room for validation; the peers' "
        "loops have neither.",
        "Then each size trains 100 steps in a fresh process of bstune's: *too large* is one whose peak passes the "
        "whole limit.",
        "",
        *summary(cpu),
        "",
        against_lightning(cpu),
        "",
        "## Fuzzed memory curves",
        "",
        *(f"- {name}: {', '.join(f'{key} {value}' for key, value in row.items())}" for name, row in fuzz.items()),
        "",
        "## All cases",
        "",
        *case_table(simulated + cpu),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="interpreter of an environment with lightning and accelerate")
    parser.add_argument("--quick", action="store_true", help="fewer cases: about 3 minutes")
    arguments = parser.parse_args()
    start_s = time.time()
    torch.set_num_threads(1)
    simulated: list[Row] = []
    for kind in KINDS[1:3] if arguments.quick else KINDS:
        model = TraceModel.fit([traced(kind, n) for n in (3, 5)])
        for capacity_gib in CAPACITIES_GIB[:1] if arguments.quick else CAPACITIES_GIB:
            simulated += simulated_rows(kind, model, capacity_gib, arguments.peers)
            print(f"{time.time() - start_s:6.0f} s  simulated {kind.name} {capacity_gib:g} GiB", file=sys.stderr)
    cpu: list[Row] = []
    for kind in KINDS[2:3] if arguments.quick else KINDS:
        for limit_mib in CPU_LIMITS_MIB[:1] if arguments.quick else CPU_LIMITS_MIB:
            cpu += cpu_rows(kind, limit_mib, arguments.peers)
            print(f"{time.time() - start_s:6.0f} s  cpu {kind.name} {limit_mib} MiB", file=sys.stderr)
    fuzz = fuzz_table(200 if arguments.quick else 1000)
    command = (
        "python benchmarks/probe.py"
        + (" --peers PYTHON" if arguments.peers else "")
        + (" --quick" if arguments.quick else "")
    )
    text = report(simulated, cpu, fuzz, command, time.time() - start_s)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    stem = f"probe{'-quick' if arguments.quick else ''}"
    (results / f"{stem}.md").write_text(text)
    (results / f"{stem}.json").write_text(
        json.dumps({"simulated": simulated, "cpu": cpu, "fuzz": fuzz}, indent=1) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
