"""Running statistics of BatchNorm made afresh from training samples, where those of a few updates would mislead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .data import noise_batches, to_device
from .gradient_noise import same_draws

if TYPE_CHECKING:
    from .training import TrainingRun

SAMPLES = 1024
"""Training samples whose statistics count as the true ones."""


def make_precise(run: TrainingRun, size: int) -> bool:
    """Replace the running statistics by the means over training batches of this size, at the weights as they are.

    Training goes on as if nothing had happened: it does not use them, and every generator is put back.

    Returns:
        Whether the model has any.

    Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576, section 3.
    """
    import torch

    kind = torch.nn.modules.batchnorm._BatchNorm
    norms = [module for module in run.model.modules() if isinstance(module, kind) and module.track_running_stats]
    if not norms:
        return False
    momenta = [module.momentum for module in norms]
    data, was_training = run.objective.train_data, run.model.training
    batches: Any = noise_batches(
        data,
        size,
        max(1, min(SAMPLES, len(data)) // size),
        seed=run.seed,
        at_samples=run.samples,
        collate_fn=run.objective.collate_fn,
    )
    try:
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # Their mean over all batches that follow.
        run.model.train()
        with same_draws(), torch.no_grad():
            for batch in batches:
                run.training_loss(to_device(batch, run.device), needs_grad=False)
    finally:
        run.model.train(was_training)
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
    return True
