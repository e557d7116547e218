"""A look at classes: how much of the scatter of gradients is between them, and gone in batches of the same mix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from ..tuner.core.examination import ExamineSpec
from .data import to_device
from .look_at_gradients import gradient_of, has_batch_norm, scatter
from .training import TrainingRun

if TYPE_CHECKING:
    import torch

MOST_SAMPLES, MOST_CLASSES = 1024, 50
LEAST_IN_HALF, MOST_IN_HALF = 4, 64
"""Samples of a class in each of two halves, whose products have no bias by noise."""
NO_CLASSES = "samples are no pairs whose second part is a class"


def strata(run: TrainingRun, spec: ExamineSpec) -> tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]:
    """Measure the variance of the mean gradients of classes, and that of single samples' gradients."""
    if has_batch_norm(run.model):
        raise ArithmeticError("with BatchNorm, batches of a single class say nothing of those of training")
    members = _by_class(run)
    shares = {name: len(found) for name, found in members.items()}
    sums: list[torch.Tensor | None] = [None, None]
    product = 0.0
    total = sum(shares.values())
    for name, found in members.items():
        half = min(MOST_IN_HALF, len(found) // 2, spec.most_at_once)
        pair = [_gradient(run, found[i * half : (i + 1) * half]) for i in (0, 1)]
        share = shares[name] / total
        product += share * float(pair[0] @ pair[1])
        for i, part in enumerate(pair):
            held = sums[i]
            sums[i] = share * part if held is None else held + share * part
    assert sums[0] is not None
    assert sums[1] is not None
    own = float(sums[0] @ sums[1])
    trace = scatter(run, spec)["covariance_trace"]
    return {"between": (product - own,), "whole": (sum(trace) / len(trace),), "classes": (float(len(shares)),)}, {}


def _by_class(run: TrainingRun) -> dict[int, list[int]]:
    """Return indices of samples by class, of classes with enough of them.

    Raises:
        ArithmeticError: There are no classes.
    """
    import torch

    data = run.objective.train_data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(run.seed + run.samples)).tolist()
    found: dict[int, list[int]] = defaultdict(list)
    for index in order[:MOST_SAMPLES]:
        sample = data[index]
        if not (isinstance(sample, (tuple, list)) and len(sample) == 2):
            raise ArithmeticError(NO_CLASSES)
        label = sample[1]
        if isinstance(label, torch.Tensor) and (label.ndim > 0 or label.is_floating_point()):
            raise ArithmeticError(NO_CLASSES)
        if not isinstance(label, (int, torch.Tensor)) and not hasattr(label, "__index__"):
            raise ArithmeticError(NO_CLASSES)
        found[int(label)].append(index)
        if len(found) > MOST_CLASSES:
            raise ArithmeticError(f"there are more than {MOST_CLASSES} classes")
    enough = {name: indices for name, indices in found.items() if len(indices) >= 2 * LEAST_IN_HALF}
    if len(enough) < 2:
        raise ArithmeticError("fewer than two classes have 8 samples")
    return enough


def _gradient(run: TrainingRun, indices: list[int]) -> torch.Tensor:
    import torch

    # A loader, as data sets may hand out whole batches to one.
    objective, chance = run.objective, torch.Generator()
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        objective.train_data, batch_sampler=cast(Any, [indices]), collate_fn=objective.collate_fn, generator=chance
    )
    return gradient_of(run, to_device(next(iter(loader)), run.device))[0].double()
