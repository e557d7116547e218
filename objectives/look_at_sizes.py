"""Trainings of a small and a large batch side by side: crossed with two rates, and compared at equal training loss.

`spec.sizes` are the samples of a training, the small batch and its micro-batch, the large batch and its micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..tuner.core.examination import ExamineSpec
from .look_at_curvature import largest_eigenvalues
from .look_at_gradients import drawn
from .look_at_training import end_loss, fresh
from .training import TrainingRun

SEEDS = 3
CROSSED_RUNS = 2 * SEEDS + 1
"""Most trainings of each batch size that are crossed: both rates with all seeds, and one more to find the rates.

Where that takes more of them, fewer seeds are left.
"""
MOST_SHIFTS = 3
"""So often both rates are moved on, while both batch sizes like the same one of them better."""
WAY = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of a training: where its losses are read."""
READ = 512
"""Samples of training data, and of validation data, that losses are read on."""

Figures = tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]


def crossed_pairs(run: TrainingRun, spec: ExamineSpec) -> Figures:
    """Train both batch sizes at a low and at a high rate, with several seeds, and return the losses.

    With the first seed the two rates are moved on until the sizes do not both like the same one better. Where they
    still do in the end, other seeds would change nothing.
    """
    low, high = spec.rates
    known: dict[tuple[int, float, int], float] = {}

    def loss(size: int, rate: float, seed: int = 0) -> float:
        if (size, rate, seed) not in known:
            known[size, rate, seed] = _loss_after(run, spec, size, rate, seed)
        return known[size, rate, seed]

    ratio, moved, between = high / low, 0, False
    for shifts in range(MOST_SHIFTS + 1):
        # Two trainings that both diverged ask for less.
        likes = {1 if loss(size, high) < loss(size, low) else -1 for size in (0, 1)}
        way = likes.pop()
        between = bool(likes) or way == -moved
        if between or shifts == MOST_SHIFTS:
            break
        # One of both is the same number as before, so that it is not trained again.
        low, high = (high, high * ratio) if way > 0 else (low / ratio, low)
        moved = way
    seeds = min(SEEDS, (CROSSED_RUNS - shifts) // 2) if between else 1
    found = {
        f"{name}_{kind}": tuple(loss(size, rate, seed) for seed in range(seeds))
        for size, name in enumerate(("small", "large"))
        for kind, rate in (("low", low), ("high", high))
    }
    return {**found, **_asked(spec), "rates": (low, high), "between": (float(between),)}, {}


def _asked(spec: ExamineSpec) -> dict[str, tuple[float, ...]]:
    samples, small, _, large, _ = map(float, spec.sizes)
    return {"sizes": (small, large), "samples": (samples,)}


def _split(spec: ExamineSpec, size: int) -> tuple[int, int]:
    batch, micro = spec.sizes[1 + 2 * size : 3 + 2 * size]
    return micro, batch // micro


def _loss_after(run: TrainingRun, spec: ExamineSpec, size: int, rate: float, seed: int) -> float:
    training = fresh(run, spec, rate, _split(spec, size), spec.seed + seed)
    while training.samples < spec.sizes[0] and training.loss_is_finite():
        training.step()
    loss = end_loss(training, spec)
    return loss if math.isfinite(loss) else math.inf


def side_by_side(run: TrainingRun, spec: ExamineSpec) -> Figures:
    """Train both batch sizes at a rate of their own, and read training and validation loss on the way.

    At the end the curvature is measured at each; where that fails, it is left out.
    """
    most = min(READ, len(run.objective.train_data), len(run.objective.val_data))
    size = min(spec.eval_batch_size, most)
    data = [list(drawn(run, size, most // size, validation=validation)) for validation in (False, True)]
    found: dict[str, tuple[float, ...]] = {}
    for i, name in enumerate(("small", "large")):
        training = fresh(run, spec, spec.rates[i], _split(spec, i))
        losses: list[tuple[float, float]] = []
        for part in WAY:
            while training.samples < part * spec.sizes[0] and training.loss_is_finite():
                training.step()
            losses.append((_loss_on(training, data[0], size), _loss_on(training, data[1], size)))
        found[f"{name}_train"], found[f"{name}_val"] = (tuple(kind) for kind in zip(*losses, strict=True))
        try:
            found[f"{name}_curvature"] = largest_eigenvalues(training, spec, 1)
        except (ArithmeticError, RuntimeError):
            found[f"{name}_curvature"] = ()
    return {**found, **_asked(spec)}, {}


def _loss_on(training: TrainingRun, batches: Sequence[Any], size: int) -> float:
    """Return the loss of these batches as a validation sees it, with statistics of BatchNorm made afresh."""
    training.make_norms_precise(size)
    training.model.eval()
    try:
        return sum(training.validate_batch(batch)["val_loss"] for batch in batches) / len(batches)
    finally:
        training.model.train()
