"""Training problems whose answers are known: a quadratic with known noise and curvature, a net with a BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from bstune.objectives.examination import examine
from bstune.objectives.supervised import Supervised
from bstune.tuner.core.examination import ExamineSpec
from bstune.tuner.diagnosis.known import Known
from torch import nn
from torch.utils.data import TensorDataset

WIDTH = 40
N_SAMPLES = 4096


class Point(nn.Module):
    """A point in a valley; what a sample adds to its loss is a slope of its own."""

    def __init__(self) -> None:
        """Begin at one in all directions, whatever the seed."""
        super().__init__()
        self.at = nn.Parameter(torch.ones(WIDTH))


def quadratic(*, curvature: float, noise: float, rate_family: str = "sgd", shift: float = 0.0) -> Supervised:
    """A quadratic whose largest eigenvalue and gradient noise scale are known.

    Args:
        curvature: Of the steepest direction; all others have a tenth of it.
        noise: Standard deviation of each sample's slope, in each direction.
        rate_family: `sgd` or `adam`.
        shift: Slope of all validation samples, beside that of the valley, in units of the latter.
    """
    hessian = torch.full((WIDTH,), curvature / 10)
    hessian[0] = curvature
    chance = torch.Generator().manual_seed(5)
    slopes = noise * torch.randn(N_SAMPLES + 1024, WIDTH, generator=chance)
    slopes -= slopes.mean(0)
    away = torch.zeros(WIDTH)
    away[1::2] = shift * curvature

    def step(model: Point, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        (slope,) = batch
        return 0.5 * (hessian * model.at**2).sum() + (slope @ model.at).mean() + 10.0

    return Supervised(
        model=Point,
        train_data=TensorDataset(slopes[:N_SAMPLES]),
        val_data=TensorDataset(slopes[N_SAMPLES:] + away),
        training_step=step,
        optimizer=torch.optim.AdamW if rate_family == "adam" else torch.optim.SGD,
        epochs=10,
    )


def classes(*, between: float) -> Supervised:
    """A quadratic whose samples' slopes are those of their class, and noise; `between`: the classes' share of it."""
    chance = torch.Generator().manual_seed(9)
    middles = torch.randn(4, WIDTH, generator=chance)
    middles -= middles.mean(0)
    middles *= (between / middles.square().sum(1).mean()).sqrt()
    labels = torch.arange(N_SAMPLES) % 4
    slopes = middles[labels] + ((1 - between) / WIDTH) ** 0.5 * torch.randn(N_SAMPLES, WIDTH, generator=chance)

    def step(model: Point, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        return 0.5 * (model.at**2).sum() + (batch[0] @ model.at).mean() + 10.0

    data = TensorDataset(slopes, labels)
    return Supervised(model=Point, train_data=data, val_data=data, training_step=step, optimizer=torch.optim.SGD)


def true_noise_scale(*, curvature: float, noise: float) -> float:
    """tr(Sigma) / |G|^2 at the beginning."""
    squared = curvature**2 * (1 + (WIDTH - 1) / 100)
    return WIDTH * noise**2 / squared


def normalised(*, pixels: int, correlated: bool = False, last: bool = False, bias: bool = True) -> Supervised:
    """A net with one BatchNorm, on images of independent pixels, so that B images are B * pixels samples a channel.

    Args:
        pixels: In one image.
        correlated: All pixels of an image are the same, so that an image is one sample.
        last: The BatchNorm is the last layer.
        bias: The layer before it has one.
    """
    chance = torch.Generator().manual_seed(7)
    images = torch.randn(N_SAMPLES, 1, 1 if correlated else pixels, generator=chance).expand(-1, 1, pixels).clone()
    labels = (images.mean((1, 2)) > 0).long()

    def net() -> nn.Module:
        layers: list[nn.Module] = [nn.Conv1d(1, 4, 1, bias=bias), nn.BatchNorm1d(4), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)]
        return nn.Sequential(*layers, *([nn.BatchNorm1d(2)] if last else []))

    return Supervised(
        model=net,
        train_data=TensorDataset(images[:3072], labels[:3072]),
        val_data=TensorDataset(images[3072:], labels[3072:]),
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr),
        epochs=5,
    )


def looked_at(
    objective: Supervised, measurements: Sequence[str], *, seed: int = 0, rate: float = 1e-7, **changed: Any
) -> Known:
    """What is known after looks at four moments of a run, in this process."""
    objective.prepare()
    facts = objective.describe()
    asked: dict[str, Any] = {"points": (64, 128, 192, 256), "sizes": (4, 8, 16, 32)} | changed
    spec = ExamineSpec(
        measurements=tuple(measurements),
        global_batch_size=32,
        micro_batch_size=32,
        accumulation_steps=1,
        learning_rate=rate,
        seed=seed,
        eval_batch_size=64,
        full_samples=10_240,
        **asked,
    )
    return Known(facts, looks=examine(objective, spec, "cpu").looks)
