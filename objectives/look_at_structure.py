"""A look at what a model is made of: layers that normalise, biases without effect, weights that were trained before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..tuner.core.examination import ExamineSpec
from .look_at_gradients import drawn, short
from .training import TrainingRun, seed_everything

if TYPE_CHECKING:
    import torch


def structure(run: TrainingRun, spec: ExamineSpec) -> tuple[Mapping[str, tuple[float, ...]], Mapping[str, Any]]:
    """Say which layers a bias stands in before BatchNorm, whether the output is normalised, and what is pretrained."""
    import torch

    norm = torch.nn.modules.batchnorm._BatchNorm
    with_bias, on_output = _traced(run, norm, min(4, spec.most_at_once))
    elements = sum(p.numel() for p in run.model.parameters())
    frozen = sum(p.numel() for p in run.model.parameters() if not p.requires_grad)
    useless = dict(run.model.named_modules())
    return {
        "batch_norms": (float(sum(isinstance(module, norm) for module in run.model.modules())),),
        "on_output": (float(on_output),),
        "useless_biases": (float(sum(useless[name].bias.numel() for name in with_bias)),),
        "elements": (float(elements),),
        "frozen_share": (frozen / elements if elements else 0.0,),
        "same_share": (_same_share(run, spec),),
        "param_groups": (float(len(run.optimizer.param_groups)),),
    }, {"useless": short(with_bias)}


def _traced(run: TrainingRun, norm: type, size: int) -> tuple[list[str], bool]:
    """Run one batch; return layers whose biased output goes straight into a BatchNorm, and whether one comes last.

    Of a compiled model nothing is seen inside.
    """
    import torch

    made: dict[int, tuple[str, Any]] = {}
    useless: list[str] = []
    last: list[Any] = []
    names = {id(module): name for name, module in run.model.named_modules()}

    def before(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        source = made.get(id(inputs[0])) if inputs else None
        if source is not None and source[1] is inputs[0] and source[0] not in useless:
            useless.append(source[0])

    def after(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, norm):
            last[:] = [output]
        elif isinstance(output, torch.Tensor) and not any(module.children()):
            made.pop(id(output), None)  # An activation in place returns what it was given.
            if getattr(module, "bias", None) is not None:
                made[id(output)] = (names[id(module)], output)

    outputs: list[Any] = []
    hooks = [run.model.register_forward_hook(lambda module, inputs, output: outputs.append(output))]
    for module in run.model.modules():
        hooks.append(module.register_forward_hook(after))
        if isinstance(module, norm):
            hooks.append(module.register_forward_pre_hook(before))
    try:
        with torch.no_grad():
            for batch in drawn(run, size, 1):
                run.training_loss(batch, needs_grad=False)
    finally:
        for hook in hooks:
            hook.remove()
    return useless, bool(outputs and last and outputs[-1] is last[-1])


def _same_share(run: TrainingRun, spec: ExamineSpec) -> float:
    """Return the share of weights that are the same in two fresh models: pretrained ones, or with a seed of their own.

    Weights that are all one number, as biases and norms begin, do not count.
    """
    models = []
    for seed in (spec.seed + 1, spec.seed + 2):
        seed_everything(seed)
        models.append(run.objective.build_model(spec.params))
    same = total = 0
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        if a.ndim < 2 or a.numel() < 2 or bool((a == a.reshape(-1)[0]).all()):
            continue
        total += a.numel()
        same += a.numel() if a.shape == b.shape and bool((a == b).all()) else 0
    return same / total if total else 0.0
