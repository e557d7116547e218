"""One problem for all ways in: digits, a network of one hidden layer, SGD with momentum. It is a script as well."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

N = 1024
x, y = torch.load(os.environ.get("DIGITS", Path(__file__).with_name("digits.pt")), weights_only=True)
train_x, train_y, val_x, val_y = x[:N], y[:N], x[N:], y[N:]


def net() -> nn.Module:
    """Return the network; wide ones take memory."""
    hidden = int(os.environ.get("HIDDEN", "64"))
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def sgd(parameters: Iterable[Any], lr: float) -> torch.optim.Optimizer:
    """Return the optimizer."""
    return torch.optim.SGD(parameters, lr, momentum=0.9)


def validation_loss(model: nn.Module, batch_size: int) -> float:
    """Return the mean over all validation samples."""
    parts = zip(val_x.split(batch_size), val_y.split(batch_size), strict=True)
    with torch.no_grad():
        return float(sum(nn.functional.cross_entropy(model(a), b, reduction="sum") for a, b in parts)) / len(val_x)


def steps(micro_batch: int, accumulation: int, lr: float, seed: int) -> Iterator[tuple[int, nn.Module]]:
    """Train as people do, without end, and yield samples and model after each optimizer step."""
    torch.manual_seed(seed)
    model = net()
    optimizer, n_batches, samples = sgd(model.parameters(), lr), 0, 0
    while True:
        for batch in torch.randperm(N).split(micro_batch):
            loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
            (loss / accumulation).backward()
            n_batches, samples = n_batches + 1, samples + len(batch)
            if n_batches % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
                yield samples, model


def training(
    micro_batch: int, lr: float, max_samples: int, seed: int, accumulation: int = 1
) -> Iterator[tuple[int, float]]:
    """Train, and yield samples and validation loss after each epoch and at the end."""
    due = N
    for samples, model in steps(micro_batch, accumulation, lr, seed):
        if samples >= min(due, max_samples):
            yield samples, validation_loss(model, micro_batch)
            due += N
        if samples >= max_samples:
            return


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--max-samples", type=int, default=4 * N)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seen, loss in training(args.batch_size, args.lr, args.max_samples, args.seed, args.accumulate):
        print(f"samples {seen} val_loss={loss:.6f}", flush=True)
