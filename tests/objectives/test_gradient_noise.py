"""Gradient noise is measured along a run, and changes nothing of it."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from bstune.objectives.data import noise_batches
from bstune.objectives.gradient_noise import measure_noise
from bstune.tests.objectives.small import DATA, N, net, run, spec_of, supervised
from bstune.tuner.core.trials import TrialReport
from bstune.tuner.theory.gradient_noise import NoiseDesign
from torch import nn


class Norm(nn.Module):
    """A small model with BatchNorm and dropout: everything that a measurement could leave a trace in."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, from inputs that random and NumPy have jittered."""
        out: torch.Tensor = self.layers(x + 0.01 * random.random() + 0.01 * float(numpy.random.rand()))
        return out


@pytest.mark.parametrize(
    "options", [{}, {"micro_batch_size": 4, "accumulation_steps": 4}], ids=["whole", "accumulated"]
)
@pytest.mark.parametrize("model", [net, Norm])
def test_measuring_noise_leaves_training_bit_for_bit_as_it_was(
    model: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """Losses, weights, statistics and generators are the same with and without; only the reports carry more."""
    points = tuple(range(N // 2, 4 * N + 1, N // 2))
    allowance = 512 if model is Norm else 128

    def train(noise_samples: int) -> tuple[list[TrialReport], dict[str, Any]]:
        path = str(tmp_path / f"{noise_samples}.pt")
        spec = spec_of(points=points, noise_samples=noise_samples, checkpoint_to=path, **options)
        reports = run(
            supervised(model=model, clip_grad_norm=0.5),
            spec,
            lambda report: "stop" if report.samples >= 4 * N else "go",
        )
        return reports, torch.load(path, weights_only=False)

    plain, state = train(0)
    measured, measured_state = train(allowance)

    assert [report.val_loss for report in measured] == [report.val_loss for report in plain]
    assert all(torch.equal(value, measured_state["model"][name]) for name, value in state["model"].items())
    assert torch.equal(state["torch_rng"], measured_state["torch_rng"])
    assert state["python_rng"] == measured_state["python_rng"]
    found = [point for report in measured for point in report.noise]
    assert len(found) >= 4
    assert sum(point.n_samples for point in found) <= allowance
    assert all(point.covariance_trace is not None and point.covariance_trace > 0 for point in found)
    assert [point for report in plain for point in report.noise] == []


def test_measured_noise_is_that_of_the_model_before_clipping() -> None:
    """On a linear model, 200 measurements agree with the exact gradient and covariance, within four standard errors."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, y = DATA.tensors

    def loss_of(batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    rows = []
    for i in range(N):
        model.zero_grad()
        loss_of((x[i : i + 1], y[i : i + 1])).backward()
        rows.append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        )
    each = torch.stack(rows).double()
    truth = float(each.mean(0).square().sum()), float(each.var(0).sum())
    plan = NoiseDesign(4, 8, 4)
    points = [
        measure_noise(
            model,
            loss_of,
            noise_batches(DATA, 4, 8, seed=1, at_samples=i, collate_fn=None),
            plan,
            at_samples=i,
            population=N,
            scale=64.0,
        )
        for i in range(200)
    ]

    for values, expected in zip(
        zip(*((p.gradient_squared, p.covariance_trace) for p in points), strict=True), truth, strict=True
    ):
        assert abs(numpy.mean(values) - expected) < 4 * numpy.std(values) / math.sqrt(len(points))


def test_a_gradient_that_is_not_finite_is_charged_and_has_no_value() -> None:
    """What was drawn is told, so that the budget stays true; no number is made of it."""
    model = nn.Linear(4, 3)
    batches = noise_batches(DATA, 4, 8, seed=1, at_samples=0, collate_fn=None)

    point = measure_noise(
        model, lambda batch: model(batch[0]).sum() * math.inf, batches, NoiseDesign(4, 8, 4), at_samples=0, population=N
    )

    assert (point.n_samples, point.gradient_squared, point.covariance_trace) == (32, None, None)
