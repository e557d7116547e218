"""Measure small tables of learning curves: batch size x learning rate x seed, trained for real on the CPU.

They stand beside the recorded tables of BSTUNE_DATA, so that no rule of the search needs to be tuned on the table that
it is scored on. All learning rates of a batch size and seed are trained at once, as one stack of models.

Under a schedule that falls to the planned end of a run, a short run is not the beginning of a long one. There the runs
of a third, a ninth and a 27th of a full run are trained too, each with the schedule scaled to its own end.

    python benchmarks/make_tables.py benchmarks/tables  # About 25 minutes on one core.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from bstune.objectives.schedule import learning_rate_factor
from tables import PLANNED_SHARES, SCHEDULED_EPOCHS, data_dir

BATCHES = (8, 16, 32, 64, 128, 256, 512)
SEEDS = 3


@dataclass(frozen=True)
class Data:
    """A training and a validation set, scaled."""

    x: torch.Tensor
    y: torch.Tensor
    x_val: torch.Tensor
    y_val: torch.Tensor
    outputs: int
    regression: bool = False


@dataclass(frozen=True)
class Task:
    """What is trained: a small network on a small set."""

    name: str
    data: Callable[[], Data]
    hidden: tuple[int, ...]
    optimizer: str
    exponents: tuple[int, int]
    epochs: int = 12
    weight_decay: float = 0.0
    schedule: str = "constant"


def _split(x: np.ndarray, y: np.ndarray, n_train: int, n_val: int, outputs: int, regression: bool = False) -> Data:
    order = np.random.default_rng(123).permutation(len(x))
    train, val = order[:n_train], order[n_train : n_train + n_val]
    mean, sd = x[train].mean(0), x[train].std(0) + 1e-6
    scaled = torch.tensor((x - mean) / sd, dtype=torch.float32).clamp(-5, 5)
    target = torch.tensor(y, dtype=torch.float32 if regression else torch.long)
    return Data(scaled[train], target[train], scaled[val], target[val], outputs, regression)


def adult() -> Data:
    frame = pd.read_csv(data_dir() / "train" / "adult.csv.gz").drop(columns=["split"], errors="ignore")
    label = frame.columns[-1]
    y = frame[label].astype(str).str.contains(">50K").to_numpy().astype(int)
    x = pd.get_dummies(frame.drop(columns=[label])).to_numpy(dtype=np.float32)
    return _split(x, y, 4096, 4096, 2)


def california() -> Data:
    frame = pd.get_dummies(pd.read_csv(data_dir() / "train" / "california_housing.csv.gz")).dropna()
    y = frame.pop("median_house_value").to_numpy() / 1e5
    return _split(frame.to_numpy(dtype=np.float32), y - y.mean(), 4096, 4096, 1, regression=True)


def mnist() -> Data:
    with np.load(data_dir() / "train" / "mnist10k.npz") as data:
        return _split(data["x"].reshape(len(data["x"]), -1)[:, ::3].astype(np.float32) / 255, data["y"], 3072, 4096, 10)


def characters() -> Data:
    text = (data_dir() / "train" / "tinyshakespeare.txt").read_text()[:200_000]
    letters = sorted(set(text))
    codes = np.array([letters.index(c) for c in text])
    starts = np.random.default_rng(5).permutation(len(codes) - 5)[:8192]
    x = np.concatenate([np.eye(len(letters), dtype=np.float32)[codes[starts + k]] for k in range(4)], axis=1)
    return _split(x, codes[starts + 4], 4096, 4096, len(letters))


FULL_POINTS, SHORT_POINTS = 24, 6
"""Validations of a full and of a short run under a schedule; at a constant rate there is one an epoch."""


def mnist4k() -> Data:
    with np.load(data_dir() / "train" / "mnist10k.npz") as data:
        return _split(data["x"].reshape(len(data["x"]), -1)[:, ::3].astype(np.float32) / 255, data["y"], 4096, 4096, 10)


SCHEDULED = tuple(
    task
    for schedule in ("linear", "cosine")
    for task in (
        Task(f"mnist4k_sgd_{schedule}", mnist4k, (64,), "sgdm", (-10, 0), SCHEDULED_EPOCHS, 0.0, schedule),
        Task(f"california_adamw_{schedule}", california, (64, 32), "adam", (-12, -2), SCHEDULED_EPOCHS, 0.01, schedule),
    )
)

TASKS = (
    Task("adult_adam", adult, (32,), "adam", (-14, -2)),
    Task("adult_sgd", adult, (32,), "sgdm", (-13, -1)),
    Task("california_adam", california, (64, 32), "adam", (-13, -1)),
    Task("california_sgd", california, (64,), "sgdm", (-14, -2)),
    Task("mnist3k_sgd_plain", mnist, (64, 64), "sgd", (-9, 3)),
    Task("mnist3k_adamw", mnist, (96,), "adam", (-14, -2), weight_decay=0.05),
    Task("characters_adam", characters, (96,), "adam", (-13, -1)),
    Task("characters_sgd", characters, (96,), "sgdm", (-9, 3)),
)


def losses_of(weights: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor, regression: bool) -> torch.Tensor:
    """Return the mean loss of each model of the stack."""
    hidden = x.expand(len(weights[0]), *x.shape[-2:])
    for i in range(0, len(weights), 2):
        hidden = torch.baddbmm(weights[i + 1], hidden, weights[i])
        if i < len(weights) - 2:
            hidden = hidden.relu()
    if regression:
        return ((hidden.squeeze(-1) - y) ** 2).mean(1)
    chosen = hidden.log_softmax(-1).gather(-1, y.expand(len(hidden), -1).unsqueeze(-1))
    return -chosen.squeeze(-1).mean(1)


def ends_of(task: Task, n_samples: int, batch: int) -> list[tuple[int, int]]:
    """Return (planned end, validations) of the runs of a batch size: the full one; by a schedule, short ones."""
    full = task.epochs * n_samples
    if task.schedule == "constant":
        return [(full // batch * batch, task.epochs)]
    shares = [(1.0, FULL_POINTS), *((share, SHORT_POINTS) for share in PLANNED_SHARES)]
    return [(max(1, int(full * share / batch + 1e-9)) * batch, points) for share, points in shares]


def train(
    task: Task, data: Data, batch: int, seed: int, end: int, n_points: int
) -> list[tuple[int, float, int, int, int, float]]:
    """Train one model per learning rate side by side; return rows (batch, lr, seed, end, samples, loss)."""
    rates = [2.0**k for k in range(task.exponents[0], task.exponents[1] + 1)]
    peak = torch.tensor(rates).view(-1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    sizes = (data.x.shape[1], *task.hidden, data.outputs)
    weights: list[torch.Tensor] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        bound = (1 / fan_in) ** 0.5
        for shape in ((1, fan_in, fan_out), (1, 1, fan_out)):
            one = (torch.rand(shape, generator=generator) * 2 - 1) * bound
            weights.append(one.repeat(len(rates), 1, 1).requires_grad_())
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    shuffle = torch.Generator().manual_seed(1000 + seed)
    n = len(data.x)
    stream = torch.cat([torch.randperm(n, generator=shuffle) for _ in range(task.epochs)])
    points = [end * k / n_points for k in range(1, n_points + 1)]
    rows, passed = [], 0
    for step in range(1, end // batch + 1):
        rows_of_batch = stream[(step - 1) * batch : step * batch]
        loss = losses_of(weights, data.x[rows_of_batch], data.y[rows_of_batch], data.regression)
        gradients = torch.autograd.grad(loss.sum(), weights)
        lr = peak * learning_rate_factor(task.schedule, (step - 1) * batch / end)
        with torch.no_grad():
            for w, g, m, v in zip(weights, gradients, first, second, strict=True):
                if task.optimizer == "adam":
                    m.mul_(0.9).add_(g, alpha=0.1)
                    v.mul_(0.999).addcmul_(g, g, value=0.001)
                    w.mul_(1 - lr * task.weight_decay)
                    w.sub_(lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
                else:
                    m.mul_(0.9 if task.optimizer == "sgdm" else 0.0).add_(g)
                    w.sub_(lr * m)
            if step * batch >= points[passed] - 1e-6:
                values = losses_of(weights, data.x_val, data.y_val, data.regression).tolist()
                rows += [
                    (batch, rate, seed, end, step * batch, value) for rate, value in zip(rates, values, strict=True)
                ]
                passed = sum(step * batch >= point - 1e-6 for point in points)
    return rows


def measure(task: Task) -> pd.DataFrame:
    """Return all rows of a task; the planned end is told only where there are several."""
    data = task.data()
    rows = [
        row
        for batch in BATCHES
        for end, n_points in ends_of(task, len(data.x), batch)
        for seed in range(SEEDS)
        for row in train(task, data, batch, seed, end, n_points)
    ]
    keys = ["batch", "lr", "seed", "end", "samples"]
    frame: pd.DataFrame = pd.DataFrame(rows, columns=[*keys, "loss"]).sort_values(keys)
    return frame.drop(columns=["end"]) if task.schedule == "constant" else frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="*", default=[task.name for task in (*TASKS, *SCHEDULED)])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for task in (*TASKS, *SCHEDULED):
        if task.name in arguments.tasks:
            frame = measure(task)
            with gzip.GzipFile(arguments.out / f"{task.name}.csv.gz", "wb", mtime=0) as file:
                file.write(frame.to_csv(index=False, float_format="%.6g").encode())
            print(task.name, len(frame), frame["loss"].min(), flush=True)


if __name__ == "__main__":
    main()
