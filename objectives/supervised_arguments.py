"""What is wrong with the arguments of a `Supervised`, seen without running anything."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from .base import run_problems
from .keywords import takes_two
from .schedule import SCHEDULES

PRECISIONS = ("fp32", "bf16", "fp16")
SIZE_UNITS = ("samples", "tokens")
FUNCTIONS = {
    "training_step": "(model, batch) -> loss",
    "validation_step": "(model, batch) -> loss",
    "loss": "(output, target) -> loss",
    "collate_fn": "samples -> batch",
    "length": "sample -> number",
    "worst_batch": "n -> batch",
}
"""Arguments that are functions where they are given, and what they do."""


def problems(given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with these arguments, by name, a sentence each."""
    wrong = [*_model_problems(given["model"]), *_optimizer_problems(given["optimizer"])]
    wrong += run_problems(given["epochs"], given["evals"], given["name"])
    schedule = given["schedule"]
    if not callable(schedule) and not (isinstance(schedule, str) and schedule in SCHEDULES):
        wrong.append(f"schedule={schedule!r}: expected {', '.join(SCHEDULES)} or a function of progress")
    if given["precision"] not in PRECISIONS:
        wrong.append(f"precision={given['precision']!r}: expected {', '.join(PRECISIONS)}")
    if given["training_step"] is not None and given["loss"] is not None:
        wrong.append("training_step and loss were both given: training_step owns the loss, so leave out one of them")
    wrong += [
        f"{name}={given[name]!r}: expected a function ({does}), or leave it out"
        for name, does in FUNCTIONS.items()
        if given[name] is not None and not callable(given[name])
    ]
    metrics = given["metrics"]
    has_none = metrics is None or (isinstance(metrics, list | tuple) and not metrics)
    if not has_none and not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
        wrong.append(f"metrics={metrics!r}: expected names with functions, {{name: (model, batch) -> number}}")
    if given["size_unit"] not in SIZE_UNITS:
        wrong.append(f"size_unit={given['size_unit']!r}: expected samples or tokens")
    precise = given["precise_batch_norm"]
    if not (isinstance(precise, bool) or (isinstance(precise, str) and precise == "auto")):
        wrong.append(f"precise_batch_norm={precise!r}: expected True, False or 'auto'")
    return wrong + _number_problems(given)


def _number_problems(given: Mapping[str, Any]) -> list[str]:
    wrong = []
    workers, norm, ranks = given["num_workers"], given["clip_grad_norm"], given["world_size"]
    if not (isinstance(workers, Integral) and int(workers) >= 0):
        wrong.append(f"num_workers={workers!r}: expected the number of processes that load data, 0 or more")
    if norm is not None and not (isinstance(norm, Real) and float(norm) > 0):
        wrong.append(f"clip_grad_norm={norm!r}: expected a number above 0, or None to leave gradients as they are")
    if not (isinstance(ranks, Integral) and int(ranks) >= 1):
        wrong.append(f"world_size={ranks!r}: expected the number of processes that train together, 1 or more")
    return wrong


def _model_problems(model: Any) -> list[str]:
    torch_nn = sys.modules.get("torch.nn")
    if torch_nn is not None and isinstance(model, torch_nn.Module):
        return [
            "model is a module that was already built: expected a class or function that builds one (model=Net, "
            "not Net())"
        ]
    if not callable(model):
        return [f"model={model!r}: expected a class or function without arguments that returns a module"]
    return []


def _optimizer_problems(optimizer: Any) -> list[str]:
    if optimizer is None or takes_two(optimizer):
        return []
    return [
        "optimizer: expected a class or function (parameters, lr) that returns a torch.optim.Optimizer; parameters "
        "beside these need a default, such as momentum=0.9"
    ]
