"""Trainings with SGD and with Adam: as many rates of each, and the best of both with several seeds.

The user's own optimizer stands for its kind. The other one gets the same groups of parameters, rates in the same
ratios and the same weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..tuner.core.examination import ExamineSpec
from .fingerprint import optimizer_family
from .look_at_sizes import SEEDS
from .look_at_training import end_loss, fresh
from .training import TrainingRun

KINDS = ("sgd", "adam")
TRIED = 6
"""Rates of each."""
STEP = 4.0
"""Times from one rate to the next."""
MOMENTUM = 0.9

Figures = tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]


def two_optimizers(run: TrainingRun, spec: ExamineSpec) -> Figures:
    """Train with both; `spec.sizes`: samples of a trial and of a run with the best rate, `spec.rates`: first rates."""
    short, long = spec.sizes
    found: dict[str, tuple[float, ...]] = {"settings": (float(TRIED),), "samples": (float(long),)}
    for kind, first in zip(KINDS, spec.rates, strict=True):

        def trial(rate: float, kind: str = kind) -> float:
            return _loss(run, spec, kind, rate, short, spec.seed)

        tried = walked(trial, first)
        rate = min(tried, key=lambda each: tried[each])
        found[f"{kind}_rates"] = tuple(sorted(tried))
        found[f"{kind}_best"] = (rate,)
        found[kind] = tuple(_loss(run, spec, kind, rate, long, spec.seed + i) for i in range(SEEDS))
    return found, {}


def walked(loss_of: Callable[[float], float], first: float) -> dict[float, float]:
    """Return losses by rate: the first one and its neighbours, then on in the direction of the best of them.

    Example:
        >>> found = walked(lambda rate: abs(rate - 64), 1.0)
        >>> sorted(found), min(found, key=lambda rate: found[rate])
        ([0.25, 1.0, 4.0, 16.0, 64.0, 256.0], 64.0)
        >>> sorted(walked(lambda rate: abs(rate - 1), 1.0))
        [0.0625, 0.25, 1.0, 4.0, 16.0, 64.0]
    """
    losses = {rate: loss_of(rate) for rate in (first, first * STEP, first / STEP)}
    while len(losses) < TRIED:
        best = min(losses, key=lambda rate: losses[rate])
        ends = min(losses) / STEP, max(losses) * STEP
        # Beside the best one, or once it lies between, on the side that was looked at less.
        down = best / min(losses) < max(losses) / best
        new = ends[0] if down else ends[1]
        losses[new] = loss_of(new)
    return losses


def _loss(run: TrainingRun, spec: ExamineSpec, kind: str, rate: float, samples: int, seed: int) -> float:
    training = fresh(run, spec, rate, seed=seed)
    if optimizer_family(type(training.optimizer).__name__) != kind:
        training.optimizer = _other(training.optimizer, kind)
    while training.samples < samples and training.loss_is_finite():
        training.step()
    loss = end_loss(training, spec)
    return loss if math.isfinite(loss) else math.inf


def _other(own: Any, kind: str) -> Any:
    """Return an optimizer of this kind for the same parameters."""
    import torch

    groups = [
        {"params": group["params"], "lr": group["lr"], "weight_decay": group.get("weight_decay", 0.0)}
        for group in own.param_groups
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM) if kind == "sgd" else torch.optim.AdamW(groups)
