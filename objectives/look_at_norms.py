"""Looks at BatchNorm: how far the statistics of a batch are off, and whether the running ones are right."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..tuner.core.examination import ExamineSpec
from .look_at_gradients import drawn, has_batch_norm, short
from .training import TrainingRun

if TYPE_CHECKING:
    import torch

SAMPLES = 1024
"""For the statistics of one batch size, and for those that count as the true ones."""
LEAST_BATCHES, MOST_BATCHES = 4, 32
VALIDATIONS = 8
"""Parts of the validation data: their losses, twice, tell how sure a difference is."""
NONE = "the model has no BatchNorm layer"


def batch_norm(run: TrainingRun, spec: ExamineSpec) -> tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]:
    """Measure, by layer and for several batch sizes, how far batch means are from the true ones, in deviations."""
    if not has_batch_norm(run.model):
        raise ArithmeticError(NONE)
    errors: dict[int, dict[str, float]] = {}
    for size in spec.sizes:
        n = min(MOST_BATCHES, SAMPLES // size, len(run.objective.train_data) // size)
        if size <= spec.most_at_once and n >= LEAST_BATCHES:
            errors[size] = _errors(run, size, n)
    if not errors:
        raise ArithmeticError("the data set is too small for four batches of one size")
    names = sorted(set.union(*map(set, errors.values())))
    by_layer = {name: [errors[size].get(name, math.nan) for size in errors] for name in names}
    return {
        "size": tuple(map(float, errors)),
        **{f"error_{i}": tuple(by_layer[name]) for i, name in enumerate(names[:50])},
    }, {"layer": short(names[:50])}


def _errors(run: TrainingRun, size: int, n: int) -> dict[str, float]:
    """Return, by layer, the root mean square of (batch mean - true mean) over the true deviation."""
    import torch

    kind = torch.nn.modules.batchnorm._BatchNorm
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)

    def hook(name: str) -> Any:
        def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach().float()
            if x.shape[0] < 1:
                return
            over = [dim for dim in range(x.ndim) if dim != 1]
            seen[name].append((x.mean(over), x.var(over, unbiased=False)))

        return look

    hooks = [
        module.register_forward_pre_hook(hook(name))
        for name, module in run.model.named_modules()
        if isinstance(module, kind)
    ]
    try:
        with torch.no_grad():
            for batch in drawn(run, size, n):
                run.training_loss(batch, needs_grad=False)
    finally:
        for each in hooks:
            each.remove()
    found = {}
    for name, parts in seen.items():
        if len(parts) < 2:
            continue
        means = torch.stack([mean for mean, _ in parts])
        variances = torch.stack([variance for _, variance in parts])
        middle = means.mean(0)
        true = (variances + means.square()).mean(0) - middle.square()
        alive = true > 1e-12
        # The true mean is that of the same batches, so their distance from it is a little too small.
        squared = (means - middle).square().sum(0) / (len(parts) - 1)
        if bool(alive.any()):
            found[name] = math.sqrt(float((squared[alive] / true[alive]).mean()))
    return found


def running_statistics(
    run: TrainingRun, spec: ExamineSpec
) -> tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]:
    """Measure the validation loss with the running statistics, and with ones made afresh from training samples."""
    n_val = len(run.objective.val_data)
    size = max(1, min(spec.eval_batch_size, math.ceil(n_val / VALIDATIONS)))
    before = _losses(run, size)
    if not run.make_norms_precise(spec.micro_batch_size):
        raise ArithmeticError(NONE)
    after = _losses(run, size)
    return {"running": tuple(before), "precise": tuple(after), "updates": (float(run.steps),)}, {}


def _losses(run: TrainingRun, size: int) -> list[float]:
    return [run.validate_batch(batch)["val_loss"] for n, batch in run.validation(size) if n == size]
