"""Running statistics of BatchNorm made afresh from training samples, where those of a few updates would mislead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from .gradient_noise import untouched

if TYPE_CHECKING:
    import torch

SAMPLES = 1024
"""Training samples whose statistics count as the true ones."""
A_FEW = 256
"""Training samples where they are made afresh by default: enough to tell settings apart."""
NEARLY_ALL = 0.9
"""Share of a full run past which a run is whole, with the last steps left out that would pass it."""
BEGINNING = 0.01
"""Running statistics are made afresh by default while what they began with has at least this weight in them."""


def make_precise(model: torch.nn.Module, loss_of: Callable[[Any], object], batches: Iterable[Any]) -> bool:
    """Replace the running statistics by the means over training batches, at the weights as they are.

    Training goes on as if nothing had happened: it does not use them, and every generator and other buffer is put back.

    Args:
        model: In whichever mode; it stays in it.
        loss_of: The training loss of a batch, for what the model does on the way to it.
        batches: On the device. They are drawn only where they are needed.

    Returns:
        Whether the model has any.

    Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576, section 3.
    """
    import torch

    norms = _running(model)
    if not norms:
        return False
    momenta, was_training = [module.momentum for module in norms], model.training
    made = {}
    try:
        model.train()
        with untouched(model), torch.no_grad():
            for module in norms:
                module.reset_running_stats()
                module.momentum = None  # Their mean over all batches that follow.
            for batch in batches:
                loss_of(batch)
            made = {buffer: buffer.clone() for module in norms for buffer in module.buffers(recurse=False)}
    finally:
        model.train(was_training)
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
    with torch.no_grad():
        for buffer, value in made.items():
            buffer.copy_(value)
    return True


def samples_wanted(asked: bool | Literal["auto"], model: torch.nn.Module, updates: float, share: float) -> int:
    """Return how many samples are to go into statistics made afresh before a validation; 0: none are made.

    By default that is in the first updates, where short runs are judged, and not at the end of a full run: what it says
    is to hold for a training that does without.

    Args:
        asked: By the user.
        model: In training.
        updates: Of its running statistics, so far.
        share: Of a full run, so far.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm1d(8)  # Its momentum is 0.1.
        >>> samples_wanted("auto", norm, 40, 0.5), samples_wanted("auto", norm, 50, 0.5)
        (256, 0)
    """
    if asked != "auto":
        return SAMPLES if asked else 0
    held = any(norm.momentum and (1 - norm.momentum) ** updates > BEGINNING for norm in _running(model))
    return A_FEW if held and share < NEARLY_ALL else 0


def _running(model: torch.nn.Module) -> list[torch.nn.modules.batchnorm._BatchNorm]:
    """Return the layers that have running statistics."""
    import torch

    kind = torch.nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kind) and module.track_running_stats]
