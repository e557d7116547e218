"""A small model with small data, as an objective, and a run of it in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import bstune
import torch
from bstune.objectives.base import Trial
from bstune.tuner.core.trials import TrialReport, TrialSpec, Verdict
from torch import nn
from torch.utils.data import TensorDataset

N = 96
DATA = TensorDataset(torch.randn(N, 4, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 3)


def net() -> nn.Module:
    """Return a small classifier with dropout, so that a run depends on every generator."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def supervised(**options: Any) -> bstune.Supervised:
    """Return a small objective on CPU."""
    return bstune.Supervised(**{"model": net, "train_data": DATA, "val_data": DATA, "epochs": 4, **options})


def spec_of(**options: Any) -> TrialSpec:
    """Return a run of 16 samples a step over four epochs, reporting at the half and at the end."""
    plain: dict[str, Any] = {
        "number": 0,
        "stage": "search",
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "accumulation_steps": 1,
        "learning_rate": 0.01,
        "seed": 3,
        "end_samples": 4 * N,
        "points": (2 * N, 4 * N),
    }
    return TrialSpec(**{**plain, **options})


def run(
    objective: Any, spec: TrialSpec, verdict: Callable[[TrialReport], Verdict] = lambda _: "go"
) -> list[TrialReport]:
    """Run a trial in this process and return its reports."""
    reports: list[TrialReport] = []

    def send(report: TrialReport) -> Verdict:
        reports.append(report)
        return verdict(report)

    trial = Trial(spec, device="cpu", send=send, clock=time.perf_counter)
    try:
        objective.train(trial, spec)
    except bstune.TrialPruned:
        assert trial.stopped_at is not None
    return reports
