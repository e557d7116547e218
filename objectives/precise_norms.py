"""Running statistics of BatchNorm made afresh from training samples, where those of a few updates would mislead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .gradient_noise import untouched

if TYPE_CHECKING:
    import torch

SAMPLES = 1024
"""Training samples whose statistics count as the true ones."""


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

    kind = torch.nn.modules.batchnorm._BatchNorm
    norms = [module for module in model.modules() if isinstance(module, kind) and module.track_running_stats]
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
