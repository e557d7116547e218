"""What a forward-only line search for the critical learning rate would tell the race where to start.

    python benchmarks/critical_rate.py

After 50 steps at an eighth of the default rate, the next update's direction is followed, doubling its length until the loss of the 512
samples that gave it rises, then bisecting: the critical rate (critical sharpness, arXiv:2601.16979). Half of it is compared with the
rate of lowest final loss at a batch of 64, among full runs an octave apart, and with bstune's default. Four tasks of live_tasks.py and
three for which the defaults were not made. Costs are in samples, a forward pass counted as a third. Writes results/critical_rate.md.
"""

from __future__ import annotations

import math
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import bstune
import live_tasks
import torch
from bstune.objectives.run import Run
from bstune.tuner.scaling import ANCHOR_BATCH, DEFAULT_LEARNING_RATE
from live import train
from torch import nn
from torch.utils.data import TensorDataset

SAFE_STEPS = 50
SAFE_SHARE = 1 / 8
LINE_SAMPLES = 512
BISECTIONS = 3
SEEDS = (0, 1, 2)
OCTAVES = range(-7, 8)
"""Of the ladder, around the default."""


def plain_sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return SGD without momentum."""
    return torch.optim.SGD(parameters, lr=lr)


def deep() -> nn.Module:
    """Return a deep and narrow network of tanh, without normalisation."""
    layers = [nn.Linear(784, 64), nn.Tanh()]
    for _ in range(5):
        layers += [nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def _large_targets(first: int, last: int) -> TensorDataset:
    """Return some samples of a regression whose targets have a standard deviation of about 80."""
    generator = torch.Generator().manual_seed(0)
    inputs, weights = torch.randn(4096, 20, generator=generator), torch.randn(20, 1, generator=generator)
    targets = 100 * (torch.tanh(inputs @ weights) + 0.3 * torch.randn(4096, 1, generator=generator))
    return TensorDataset(inputs[first:last], targets[first:last])


def odd_tasks() -> dict[str, bstune.Supervised]:
    """Return tasks whose best rates lie far from the defaults."""
    text, mnist = live_tasks._text, live_tasks._mnist

    def summed(model: Any, batch: Any) -> torch.Tensor:
        return live_tasks.next_character(model, batch) * (len(batch[0]) * live_tasks.LENGTH)

    def regressor() -> nn.Module:
        return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))

    def task(model: Any, train: Any, val: Any, epochs: float, optimizer: Any, **steps: Any) -> bstune.Supervised:
        return bstune.Supervised(model, train, val, epochs=epochs, optimizer=optimizer, evals=8, **steps)

    numbers = (lambda: _large_targets(0, 3000), lambda: _large_targets(3000, 4096))
    characters = (lambda: text()[0], lambda: text()[1])
    steps = {"training_step": summed, "validation_step": live_tasks.next_character}
    return {
        "large targets": task(regressor, *numbers, 8, live_tasks.sgd),
        "deep tanh": task(deep, lambda: mnist()[0], lambda: mnist()[1], 4, plain_sgd),
        "summed loss": task(live_tasks.Characters, *characters, 3, live_tasks.sgd, **steps),
    }


def critical_rate(objective: bstune.Supervised, default: float, seed: int) -> tuple[float, float]:
    """Return the critical rate, and what it cost in samples."""
    safe = default * SAFE_SHARE
    run = Run(objective, device="cpu", learning_rate=safe, seed=seed, horizon_samples=None)
    run.open_stream(ANCHOR_BATCH, 1)
    for _ in range(SAFE_STEPS):
        run.step()
    run.open_stream(LINE_SAMPLES, 1)
    run.hold_batch()
    fixed = next(run._batches)
    parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    run.step()
    direction = [(parameter.detach() - start) / safe for parameter, start in zip(parameters, before, strict=True)]
    losses: list[float] = []

    def loss_at(rate: float) -> float:
        with torch.no_grad():
            for parameter, start, step in zip(parameters, before, direction, strict=True):
                parameter.copy_(start + rate * step)
            losses.append(float(objective.training_step(run.model, fixed)))
        return losses[-1]

    start = loss_at(0.0)
    rate = default
    falls = loss_at(rate) < start
    rate *= 2 if falls else 0.5
    while (loss_at(rate) < start) == falls and len(losses) < 40:
        rate *= 2 if falls else 0.5
    low, high = (rate / 2, rate) if falls else (rate, rate * 2)
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if loss_at(middle) < start else (low, middle)
    return math.sqrt(low * high), run.samples + len(losses) * LINE_SAMPLES / 3


def row_of(name: str, objective: bstune.Supervised) -> dict[str, Any]:
    """Return what the line search says of a task, and what full runs say."""
    objective.prepare()
    default = DEFAULT_LEARNING_RATE["adam" if objective.optimizer is None else "sgd"]
    ends = {}
    for octave in OCTAVES:
        curve = train(objective, ANCHOR_BATCH, default * 2.0**octave, seed=0)
        ends[octave] = curve[-1][1] if curve and math.isfinite(curve[-1][1]) else math.inf
        if octave > 0 and not math.isfinite(ends[octave]):
            break
    best = min(ends, key=lambda octave: ends[octave])
    found = [critical_rate(objective, default, seed) for seed in SEEDS]
    octaves = [math.log2(rate / 2 / default) for rate, _ in found]
    full_run = objective.epochs * len(objective.train_data)
    row = {"task": name, "best": best, "critical": statistics.median(octaves), "spread": max(octaves) - min(octaves)}
    row["cost"] = found[0][1] / full_run
    print(row, file=sys.stderr, flush=True)
    return row


def report(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    offset = statistics.mean(row["critical"] - row["best"] for row in rows)
    lines = [
        "# Where would a critical-rate line search start the race?",
        "",
        f"{date.today()}, bstune 0.1.0, torch {torch.__version__}, 1 thread. Command: `python benchmarks/critical_rate.py`.",
        "Rates in octaves from bstune's default at a batch of 64; the line search's is the median of 3 seeds, with their range.",
        "",
        "| task | best rate | critical rate / 2 | range | error | error of the default | error of both joined | cost, full runs |",
        "|" + "---|" * 8,
    ]
    errors: list[tuple[float, float, float]] = []
    for row in rows:
        joined = (row["critical"] - offset) / 2 - row["best"]
        errors.append((row["critical"] - row["best"], -row["best"], joined))
        cells = [row["task"], f"{row['best']:+d}", f"{row['critical']:+.1f}", f"{row['spread']:.1f}"]
        cells += [f"{error:+.1f}" for error in errors[-1]]
        lines.append("| " + " | ".join([*cells, f"{row['cost']:.2f}"]) + " |")
    own, default, both = (statistics.mean(abs(error[i]) for error in errors) for i in range(3))
    saved, cost = (default - both) / 2 / 27, statistics.mean(row["cost"] for row in rows)
    lines += [
        "",
        f"Mean error: line search {own:.1f} octaves, default {default:.1f}, both joined {both:.1f} (half way from the default to the line",
        f"search less its mean error of {offset:.1f} octaves, which was read off these very tasks: as good as it can look).",
        "",
        "A step of the race covers two octaves and costs 1/27 of a full run. So joining them saves about "
        f"{saved:.3f} full runs of race and costs {cost:.2f}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the tasks and write the table."""
    torch.set_num_threads(1)
    if not live_tasks.DATA.is_dir():
        sys.exit(f"No training data in {live_tasks.DATA}. Set BSTUNE_DATA to the folder that holds `train`.")
    tasks = {name: getattr(live_tasks, name) for name in live_tasks.TASKS} | odd_tasks()
    text = report([row_of(name, objective) for name, objective in tasks.items()])
    (Path(__file__).resolve().parent / "results" / "critical_rate.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
