"""Looks at gradients: how they scatter from batch to batch, how they agree with new data, how layers differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..tuner.core.examination import ExamineSpec
from ..tuner.theory.gradient_noise import estimate
from .data import noise_batches, to_device
from .training import TrainingRun

if TYPE_CHECKING:
    import torch

SMALLEST, WITH_BATCH_NORM = 8, 32
"""Samples in a micro-batch; with BatchNorm more, since its statistics are those of the micro-batch."""
MOST_MICROBATCHES, LEAST_MICROBATCHES = 64, 8
CHUNK, HALF = 256, 512
"""Samples of one gradient that is to be near the true one, and of each half of one that is compared with others."""


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Tell whether a model has layers that normalise by the batch."""
    import torch

    kind = torch.nn.modules.batchnorm._BatchNorm
    return any(isinstance(module, kind) for module in model.modules())


def drawn(run: TrainingRun, size: int, n: int, *, validation: bool = False, skip: int = 0) -> Iterator[Any]:
    """Yield batches on the device, no sample in two of them; `skip`: leave out as many samples first."""
    objective = run.objective
    data = objective.val_data if validation else objective.train_data
    n_skipped = math.ceil(skip / size)
    batches = noise_batches(
        data, size, n + n_skipped, seed=run.seed, at_samples=run.samples, collate_fn=objective.collate_fn
    )
    for i, batch in enumerate(batches):
        if n_skipped <= i < n_skipped + n:
            yield to_device(batch, run.device)


def trained(run: TrainingRun) -> list[torch.nn.Parameter]:
    """Return the parameters that are trained."""
    return [parameter for parameter in run.model.parameters() if parameter.requires_grad]


def gradient_of(run: TrainingRun, batch: Any) -> tuple[torch.Tensor, float]:
    """Return the gradient of a batch as one vector, and its loss."""
    import torch

    parameters = trained(run)
    run.optimizer.zero_grad(set_to_none=True)
    loss, scale = run.training_loss(batch).reshape(()), run.loss_scale
    found = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
    flat = [
        torch.zeros_like(parameter).reshape(-1) if part is None else part.detach().reshape(-1)
        for parameter, part in zip(parameters, found, strict=True)
    ]
    return torch.cat([part.float() for part in flat]) / scale, float(loss.detach())


def mean_gradient(run: TrainingRun, batches: Iterator[Any]) -> torch.Tensor:
    """Return the mean gradient of batches of one size."""
    total, n = None, 0
    for batch in batches:
        part = gradient_of(run, batch)[0]
        total, n = part if total is None else total.add_(part), n + 1
    if total is None:
        raise ArithmeticError("the data set is too small for this")
    return total / n


def gradients(run: TrainingRun, spec: ExamineSpec) -> tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]:
    """Measure how gradients and losses of batches scatter, and whether a batch is as good as its parts joined."""
    found = scatter(run, spec)
    size, n = int(found["size"][0]), 2 * int(found["microbatches"][0])
    times = next((k for k in (8, 4, 2) if size * k <= spec.most_at_once and n >= 4 * k), None)
    if times is None:
        return found, {}
    batches = (gradient_of(run, batch)[0] for batch in drawn(run, size * times, n // times))
    squares = [float((a - b).double().square().sum()) / 2 for a, b in zip(batches, batches, strict=True)]
    joined = found["variance"][found["size"].index(size * times)]
    return {**found, "times": (float(times),), "whole": (sum(squares) / len(squares),), "joined": (joined,)}, {}


def scatter(run: TrainingRun, spec: ExamineSpec) -> Mapping[str, tuple[float, ...]]:
    """Return how gradients and losses of batches scatter, by batch size, and the noise scale.

    Micro-batches are joined in pairs, pairs of pairs, and so on: two that are side by side differ by twice the variance
    of a batch of their size.
    """
    n_samples = len(run.objective.train_data)
    size = min(WITH_BATCH_NORM if has_batch_norm(run.model) else SMALLEST, spec.most_at_once)
    n = min(MOST_MICROBATCHES, 1 << max(0, (n_samples // size).bit_length() - 1))
    if n < LEAST_MICROBATCHES:
        raise ArithmeticError(f"{n_samples} training samples make {n} micro-batches of {size}; 8 are needed")
    levels = n.bit_length()  # Of 8: single ones, pairs, fours, and all.
    waiting: list[tuple[torch.Tensor, float] | None] = [None] * levels
    variance, loss_variance, pairs = [0.0] * levels, [0.0] * levels, [0] * levels
    squared_norms: list[float] = []
    losses: list[float] = []
    halves: list[float] = []
    for batch in drawn(run, size, n):
        vector, loss = gradient_of(run, batch)
        squared_norms.append(float(vector.double().square().sum()))
        losses.append(loss)
        for level in range(levels):
            held = waiting[level]
            if held is None:
                waiting[level] = (vector, loss)
                break
            waiting[level] = None
            if level == levels - 2:
                halves = [float(part.double().square().sum()) for part in (held[0], vector)]
            variance[level] += float((held[0] - vector).double().square().sum()) / 2
            loss_variance[level] += (held[1] - loss) ** 2 / 2
            pairs[level] += 1
            vector, loss = (held[0] + vector) / 2, (held[1] + loss) / 2
    # Of each half by itself, so that they tell how sure the two estimates are.
    parts = [
        estimate(norms, mean, size, n_samples)
        for norms, mean in zip((squared_norms[: n // 2], squared_norms[n // 2 :]), halves, strict=True)
    ]
    if not math.isfinite(sum(signal + noise for signal, noise in parts)):
        raise ArithmeticError("a gradient is not finite")
    used = [level for level in range(levels) if pairs[level] > 0]
    return {
        "size": tuple(float(size << level) for level in used),
        "pairs": tuple(float(pairs[level]) for level in used),
        "variance": tuple(variance[level] / pairs[level] for level in used),
        "loss_variance": tuple(loss_variance[level] / pairs[level] for level in used),
        "loss": (sum(losses) / n,),
        "gradient_squared": tuple(signal for signal, _ in parts),
        "covariance_trace": tuple(noise for _, noise in parts),
        "microbatches": (float(n // 2), float(size)),
    }


def agreement(run: TrainingRun, spec: ExamineSpec) -> tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]:
    """Measure the angle between the gradients of training and of validation data, each from two halves."""
    n = min(len(run.objective.train_data), len(run.objective.val_data)) // 2
    if n < 4:
        raise ArithmeticError("the data sets are too small for two halves of 4 samples")
    count = math.ceil(min(HALF, n) / min(spec.most_at_once, CHUNK))
    size = min(HALF, n) // count
    halves = [
        mean_gradient(run, drawn(run, size, count, validation=validation, skip=skip)).double()
        for validation in (False, True)
        for skip in (0, count * size)
    ]
    train_a, train_b, val_a, val_b = halves
    across = [float(a @ b) for a in (train_a, train_b) for b in (val_a, val_b)]
    return {"train": (float(train_a @ train_b),), "val": (float(val_a @ val_b),), "across": tuple(across)}, {}


def layers(run: TrainingRun, spec: ExamineSpec) -> tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]:
    """Measure, for each weight with two dimensions or more, its norm over that of its gradient."""
    size = min(spec.most_at_once, CHUNK)
    gradient = mean_gradient(run, drawn(run, size, max(1, CHUNK // size)))
    names, ratios, at = [], [], 0
    for name, parameter in run.model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = gradient[at : at + parameter.numel()]
        at += parameter.numel()
        its, weight = float(part.norm()), float(parameter.detach().float().norm())
        if parameter.ndim > 1 and its > 0 and weight > 0:
            names.append(name)
            ratios.append(weight / its)
    return {"ratio": tuple(ratios)}, {"layer": short(names)}


def short(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of layers, none of them longer than a message can take."""
    return tuple(name[:120] for name in names[:200])
