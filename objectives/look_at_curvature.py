"""A look at the curvature of the loss: its largest eigenvalue, by power iteration.

Products with the Hessian are differences of gradients at weights a little to both sides. So no second derivative is
needed, which some models do not have: attention kernels, compiled models, functions that allow one derivative alone.
There torch may return a part of the product without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..tuner.core.examination import ExamineSpec
from .look_at_gradients import drawn, trained
from .training import TrainingRun

if TYPE_CHECKING:
    import torch

STEPS = 20
CONVERGED, SETTLED = 0.02, 0.2
"""Between two steps, relative: enough, and the most that still counts as an answer."""
SAMPLES = 256
ASIDE = 1e-3
"""How far weights are moved, over their norm (or over 1 where that is less)."""


def curvature(run: TrainingRun, spec: ExamineSpec) -> tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]:
    """Measure the largest eigenvalue of the Hessian on two batches, with dropout switched off, in full precision."""
    found = largest_eigenvalues(run, spec, 2)
    group = run.optimizer.param_groups[0]
    return {
        "eigenvalue": found,
        "momentum": (float(group.get("momentum", 0.0)),),
        "learning_rate": (float(group["lr"]),),
    }, {}


def largest_eigenvalues(run: TrainingRun, spec: ExamineSpec, n: int) -> tuple[float, ...]:
    """Return that of each of so many batches; weights are put back, and dropout is left switched off.

    Raises:
        ArithmeticError: The iteration did not settle.
    """
    import torch

    for module in run.model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.eval()
    size = min(SAMPLES, spec.most_at_once, max(1, len(run.objective.train_data) // 2))
    kept = [parameter.detach().clone() for parameter in trained(run)]
    try:
        return tuple(_largest(run, batch, kept) for batch in drawn(run, size, n))
    finally:
        _put(trained(run), kept)


def _largest(run: TrainingRun, batch: Any, kept: Sequence[torch.Tensor]) -> float:
    """Return the eigenvalue that is largest in size."""
    import torch

    parameters = trained(run)
    chance = torch.Generator().manual_seed(0)
    vector = _unit([torch.randn(p.shape, generator=chance).to(p.device, p.dtype) for p in parameters])
    aside = ASIDE * max(1.0, _norm(kept))
    value, change = 0.0, 1.0
    for _ in range(STEPS):
        ahead, behind = (_gradient(run, batch, kept, vector, step) for step in (aside, -aside))
        product = [(a - b) / (2 * aside) for a, b in zip(ahead, behind, strict=True)]
        before, value = value, float(sum((part * v).sum() for part, v in zip(product, vector, strict=True)))
        change = abs(value - before) / abs(value) if value else 1.0
        if change < CONVERGED or _norm(product) == 0:
            break
        vector = _unit(product)
    if value and not change < SETTLED:
        raise ArithmeticError("the power iteration for the curvature did not settle")
    return value


def _gradient(
    run: TrainingRun, batch: Any, kept: Sequence[torch.Tensor], vector: Sequence[torch.Tensor], step: float
) -> list[torch.Tensor]:
    """Return the gradient at weights that are a step aside."""
    import torch

    parameters = trained(run)
    _put(parameters, [weight + step * part for weight, part in zip(kept, vector, strict=True)])
    loss = run.objective.training_step(run.model, batch)
    found = torch.autograd.grad(loss.reshape(()), parameters, allow_unused=True)
    return [torch.zeros_like(p) if part is None else part for part, p in zip(found, parameters, strict=True)]


def _put(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    import torch

    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _norm(parts: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(part.float().square().sum()) for part in parts))


def _unit(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    norm = _norm(parts)
    return [part / norm for part in parts]
