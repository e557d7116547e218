"""Short trainings that answer one question each: step times of odd sizes, first losses, growing and ghost batches."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from typing import Any

from ..tuner.core.examination import ExamineSpec
from ..tuner.theory.ramp import Place, Ramp
from .data import training_batches
from .fingerprint import optimizer_family
from .schedule import learning_rate_factor
from .training import TrainingRun

ROUNDS = 15
MOST_TIMED_S = 10.0
EARLY_STEPS, LEAST_EARLY_STEPS, EARLY_SHARE = 100, 10, 0.1
"""A start is so many steps, or this share of a run, whichever is less."""
GROWTH = 8
"""The batch grows to so many times its first size."""

Figures = tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]


def _batches(run: TrainingRun, size: int) -> Any:
    objective = run.objective
    return training_batches(
        objective.train_data,
        size,
        seed=run.seed,
        start_samples=0,
        collate_fn=objective.collate_fn,
        num_workers=0,
        pin_memory=run.cuda,
    )


def step_times(run: TrainingRun, spec: ExamineSpec) -> Figures:
    """Time steps of several sizes in turns, on loaded batches, so that whatever else runs slows all of them alike."""
    chance = random.Random(spec.seed)
    held = {size: next(_batches(run, size)) for size in spec.sizes}
    seconds: dict[int, list[float]] = {size: [] for size in held}
    began_s = time.perf_counter()
    for turn in range(-3, ROUNDS):  # The first three warm up.
        order = list(held)
        chance.shuffle(order)
        for size in order:
            run.hold_batch(held[size])
            run.synchronize()
            start_s = time.perf_counter()
            run.step()
            run.synchronize()
            if turn >= 0:
                seconds[size].append(time.perf_counter() - start_s)
        if turn >= 8 and time.perf_counter() - began_s > MOST_TIMED_S:
            break
    return {f"s_{size}": tuple(found) for size, found in seconds.items()}, {}


def early_steps(full_samples: float, batch: int) -> int:
    """Return how many steps count as the start of a run."""
    return min(EARLY_STEPS, max(LEAST_EARLY_STEPS, int(EARLY_SHARE * full_samples / batch)))


def early_losses(run: TrainingRun, spec: ExamineSpec) -> Figures:
    """Return the training losses of the first steps, as the training is."""
    losses: list[float] = []
    for _ in range(early_steps(spec.full_samples, spec.global_batch_size)):
        run.step()
        assert run.last_loss is not None
        losses.append(float(run.last_loss))
        if not math.isfinite(losses[-1]):
            break
    return {"loss": tuple(losses)}, {}


def grown_batch(run: TrainingRun, spec: ExamineSpec) -> Figures:
    """Train twice for as many samples: the rate decays by a cosine, or the batch grows in its place."""
    power = 1.0 if optimizer_family(type(run.optimizer).__name__) == "sgd" else 0.5
    total = spec.sizes[0]
    found: dict[str, tuple[float, ...]] = {}
    for name, most in (("decay", 1), ("grown", GROWTH)):
        ramp = Ramp(
            spec.global_batch_size,
            spec.global_batch_size * most,
            total,
            lambda progress: learning_rate_factor("cosine", progress),
            power,
        )
        training = fresh(run, spec)
        place, bases = Place(ramp), [group["lr"] for group in training.optimizer.param_groups]
        while place.samples < total:
            training.accumulation_steps = max(1, place.batch_size // spec.micro_batch_size)
            for group, base in zip(training.optimizer.param_groups, bases, strict=True):
                group["lr"] = base * place.rate_factor
            training.step()
            place.step()
        found[name] = (end_loss(training, spec),)
        found[f"{name}_updates"] = (float(place.updates),)
    return found, {}


def at_full_batch(run: TrainingRun, spec: ExamineSpec) -> Figures:
    """Train with all samples in each step, at several rates, and with the setting itself, each for stated steps.

    `spec.sizes`: the samples in one step, its micro-batches, its steps, and the steps of the setting itself.
    """
    whole, micro, steps, own_steps = spec.sizes
    training = fresh(run, spec)
    for _ in range(own_steps):
        training.step()
    found = {"own": (end_loss(training, spec),)}
    rates, losses = [], []
    for octaves in (0, 2, 4):
        rate = spec.learning_rate * 2.0**octaves
        training = fresh(run, spec, rate, (micro, whole // micro))
        for _ in range(steps):
            training.step()
        rates.append(rate)
        losses.append(end_loss(training, spec))
    return {**found, "rate": tuple(rates), "loss": tuple(losses)}, {}


def ghost_batches(run: TrainingRun, spec: ExamineSpec) -> Figures:
    """Train twice for as many samples: BatchNorm sees micro-batches as they are run, or small parts of them.

    `spec.sizes`: the samples, and those of a part.
    """
    samples, part = spec.sizes
    own = (spec.micro_batch_size, spec.accumulation_steps)
    found = {}
    for name, split in (("whole", own), ("parts", (part, spec.global_batch_size // part))):
        training = fresh(run, spec, split=split)
        while training.samples < samples and training.loss_is_finite():
            training.step()
        found[name] = (end_loss(training, spec),)
    return found, {}


def end_loss(training: TrainingRun, spec: ExamineSpec) -> float:
    """Return the validation loss, with statistics of BatchNorm made afresh: a short run is too short for its own."""
    training.make_norms_precise(min(spec.micro_batch_size, len(training.objective.train_data)))
    return training.validate(spec.eval_batch_size)["val_loss"]


def fresh(
    run: TrainingRun,
    spec: ExamineSpec,
    rate: float | None = None,
    split: tuple[int, int] | None = None,
    seed: int | None = None,
) -> TrainingRun:
    """Return a fresh training with a constant rate.

    Args:
        run: Of the same objective, on the same device.
        spec: Has rate, split and seed where these are not given.
        rate: The learning rate.
        split: Micro-batch size and accumulation steps.
        seed: Of model and data.
    """
    training = TrainingRun(
        run.objective,
        device=run.device,
        learning_rate=spec.learning_rate if rate is None else rate,
        seed=spec.seed if seed is None else seed,
        horizon_samples=None,
        params=spec.params,
    )
    training.open_stream(*(split or (spec.micro_batch_size, spec.accumulation_steps)))
    return training
