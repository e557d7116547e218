"""Training problems whose answers are known: a quadratic with known noise and curvature, a net with a BatchNorm."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from bstune.objectives.examination import examine
from bstune.objectives.supervised import Supervised
from bstune.tests.diagnosis.made import searched, with_best
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


def valley(
    *, noise: float, offset: float = 0.0, gain: float = 0.0, flat: float = 1.0, n_samples: int = N_SAMPLES
) -> Supervised:
    """A quadratic of curvature 1, without noise in its validation data: the loss of any setting is known.

    Args:
        noise: Standard deviation of each training sample's slope, in each direction.
        offset: Added to all losses.
        flat: Curvature of all directions but the first.
        n_samples: Of training; what a run has used of them makes the rest less noisy.
        gain: The validation loss falls by this power of the updates made, whatever the training loss is.
    """
    chance = torch.Generator().manual_seed(5)
    slopes = noise * torch.randn(n_samples, WIDTH, generator=chance)
    slopes -= slopes.mean(0)
    hessian = torch.full((WIDTH,), flat)
    hessian[0] = 1.0

    def step(model: Steps, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        slope, is_new = batch
        if model.training:
            model.made += 1
        loss = 0.5 * (hessian * model.at**2).sum() + (slope @ model.at).mean() + offset
        return loss * (1.0 + model.made) ** (-gain * is_new.mean())

    return Supervised(
        model=Steps,
        train_data=TensorDataset(slopes, torch.zeros(n_samples)),
        val_data=TensorDataset(torch.zeros(512, WIDTH), torch.ones(512)),
        training_step=step,
        optimizer=torch.optim.SGD,
        epochs=10,
    )


class Steps(Point):
    """A point that counts its updates."""

    made: torch.Tensor

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self.register_buffer("made", torch.zeros(()))


def valley_loss(rate: float, batch: int, samples: int, noise: float) -> float:
    """The expected validation loss of such a valley after training with plain SGD, without its offset."""
    kept = (1 - rate) ** (2 * samples // batch)
    return WIDTH / 2 * (kept + rate * noise**2 / batch * (1 - kept) / (2 - rate))


def layered(ratio: float) -> Supervised:
    """Two layers whose |weight| / |gradient| differ by this ratio, at any weights."""

    def step(model: nn.Sequential, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        first, second = (0.5 * (weight**2).sum() for weight in model.parameters())
        return ratio * first + second + 0 * batch[0].mean()

    data = TensorDataset(torch.zeros(512, 4))
    return Supervised(
        model=lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)),
        train_data=data,
        val_data=data,
        training_step=step,
        optimizer=torch.optim.SGD,
        epochs=10,
    )


def entangled() -> Supervised:
    """A loss over all pairs of a batch: squares of its mean slopes, so that gradients scatter by 1 / batch."""
    chance = torch.Generator().manual_seed(5)
    slopes = torch.randn(N_SAMPLES, WIDTH, generator=chance)

    def step(model: Point, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        return 0.5 * ((batch[0].mean(0) * model.at) ** 2).sum() + 1.0

    data = TensorDataset(slopes - slopes.mean(0))
    return Supervised(
        model=Point, train_data=data, val_data=data, training_step=step, optimizer=torch.optim.SGD, epochs=10
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


def normalised(
    *, pixels: int, correlated: bool = False, last: bool = False, bias: bool = True, middle: float = 0.0
) -> Supervised:
    """A net with one BatchNorm, on images of independent pixels, so that B images are B * pixels samples a channel.

    Args:
        pixels: In one image.
        correlated: All pixels of an image are the same, so that an image is one sample.
        last: The BatchNorm is the last layer.
        bias: The layer before it has one.
        middle: Mean of the pixels.
    """
    chance = torch.Generator().manual_seed(7)
    images = torch.randn(N_SAMPLES, 1, 1 if correlated else pixels, generator=chance).expand(-1, 1, pixels).clone()
    labels = (images.mean((1, 2)) > 0).long()
    images += middle

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
    asked: dict[str, Any] = {
        "global_batch_size": 32,
        "micro_batch_size": 32,
        "accumulation_steps": 1,
        "eval_batch_size": 64,
        "full_samples": 10_240,
        "points": (64, 128, 192, 256),
        "sizes": (4, 8, 16, 32),
        **changed,
    }
    spec = ExamineSpec(tuple(measurements), learning_rate=rate, seed=seed, **asked)
    return Known(objective.describe(), looks=examine(objective, spec, "cpu").looks)


def crossed(noise: float, offset: float, *, seed: int, rates: tuple[float, float] = (0.016, 0.128)) -> Known:
    """What is known after batches of 8 and 64 were crossed with two rates in a valley, over 1,280 samples."""
    problem = valley(noise=noise, offset=offset, n_samples=1 << 16)
    asked: dict[str, Any] = {"points": (0,), "sizes": (1280, 8, 8, 64, 64), "rates": rates}
    return looked_at(problem, ["crossed_pairs"], seed=3 * seed, **asked)


def crossed_truth(noise: float, offset: float) -> float:
    """By how many times the losses of the crossed pairs are higher, in the geometric mean."""
    own, other = (
        [offset + valley_loss(rate, batch, 1280, noise) for batch, rate in pairs]
        for pairs in (((8, 0.016), (64, 0.128)), ((8, 0.128), (64, 0.016)))
    )
    return math.sqrt(math.prod(other) / math.prod(own))


def beside(gain: float, *, seed: int) -> Known:
    """What is known after batches of 8 and 64 were trained side by side in a valley, with three seeds."""
    problem = valley(noise=0.5, offset=5.0, gain=gain)
    asked: dict[str, Any] = {"points": (0,), "sizes": (2560, 8, 8, 64, 64), "rates": (0.005, 0.04)}
    found = [looked_at(problem, ["side_by_side"], seed=3 * seed + i, **asked) for i in range(3)]
    return dataclasses.replace(found[0], looks=tuple(look for known in found for look in known.looks))


def pretrained() -> nn.Module:
    """The same weights each time."""
    model = nn.Linear(8, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(16.0).reshape(2, 8) / 16)
    return model


def fine_tuned(rate: float, *, seed: int) -> Known:
    """What is known after a search of a pretrained model recommends this rate at batch 64, where 0.025 is usual."""
    data = TensorDataset(torch.zeros(64, 8), torch.zeros(64, dtype=torch.long))
    objective = Supervised(model=pretrained, train_data=data, val_data=data, optimizer=torch.optim.SGD, epochs=1)
    seen = looked_at(objective, ["structure"], seed=seed, points=(0,))
    best = with_best(searched(), global_batch_size=64, learning_rate=rate)
    return dataclasses.replace(best, facts=seen.facts, looks=seen.looks)


def left_over(rest: int) -> Known:
    """What is known of a net with BatchNorm whose batches of 32 leave so many samples."""
    known = looked_at(normalised(pixels=4), ["structure"], points=(0,))
    assert known.facts is not None
    return dataclasses.replace(known, facts=dataclasses.replace(known.facts, n_samples=3200 + rest))


def whole_batch(noise: float, *, seed: int) -> Known:
    """What is known after all samples of a valley made a step, two of them, and batches of 32 made 160.

    Two steps at 16 times the rate of 0.05 leave 0.03; batches of 32 end at next to 0 without noise, and at 1 with 8.
    """
    asked: dict[str, Any] = {"points": (0,), "sizes": (N_SAMPLES, 512, 2, 160)}
    return looked_at(valley(noise=noise), ["at_full_batch"], seed=seed, rate=0.05, **asked)


def both_optimizers(flat: float, *, seed: int) -> Known:
    """What is known after SGD and Adam were tried in a valley without noise: Adam is for one that is flat."""
    steps = 20 if flat == 1 else 100
    asked: dict[str, Any] = {"points": (0,), "sizes": (16 * steps, 32 * steps), "rates": (0.3, 0.03)}
    return looked_at(valley(noise=0.0, flat=flat), ["two_optimizers"], seed=seed, **asked)
