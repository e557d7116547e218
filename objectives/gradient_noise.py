"""Gradient noise of a model in training, measured so that training goes on bit for bit as if nothing had happened."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..tuner.core.trials import NoisePoint
from ..tuner.theory.gradient_noise import NoiseDesign, estimate

if TYPE_CHECKING:
    import torch


def moments(points: Sequence[int], start_samples: int, n_points: int) -> list[int]:
    """Return the report points at which to measure: about `n_points`, evenly spread after the start, with the last.

    Example:
        >>> moments([100, 200, 300, 400, 500, 600], start_samples=200, n_points=2)
        [400, 600]
    """
    ahead = [point for point in points if point > start_samples]
    n = min(n_points, len(ahead))
    return [ahead[round((i + 1) * len(ahead) / n) - 1] for i in range(n)]


def measure_noise(
    model: torch.nn.Module,
    loss_of: Callable[[Any], torch.Tensor],
    batches: Iterable[Any],
    design: NoiseDesign,
    *,
    at_samples: int,
    population: int,
    scale: float = 1.0,
    share: Callable[[list[torch.Tensor | None], list[float], int], list[float]] = lambda sums, norms, n: norms,
) -> NoisePoint:
    """Measure gradient noise at the weights as they are, before any clipping.

    Buffers (BatchNorm's running statistics among them) and every generator are put back; gradients are dropped, as the
    next optimizer step would do. With BatchNorm, each micro-batch is normalised by its own statistics ("ghost"
    batches), so the samples in it are not independent and the noise is that of training at the micro-batch size. A data
    set that keeps a generator of its own, and a module that counts its calls outside its buffers, cannot be put back.

    Args:
        model: In training mode.
        loss_of: The training loss of a micro-batch, a mean over it.
        batches: Micro-batches of `design.microbatch_size` samples, on the device, none drawn twice.
        design: How many.
        at_samples: Samples trained on so far.
        population: Samples of the data set.
        scale: Factor on the loss that keeps small gradients from vanishing in half precision; taken out again.
        share: Where several processes have measured a part each of so many micro-batches: adds up the sums of their
            gradients in place, and returns the squared norms of all.

    Returns:
        The measurement, without values where a gradient was not finite or memory did not suffice.
    """
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sums: list[torch.Tensor | None] = [None] * len(parameters)
    squared_norms: list[float] = []
    with untouched(model):
        try:
            for batch in batches:
                _drop(parameters)
                (loss_of(batch).reshape(()) * scale).backward()
                gradients = [None if parameter.grad is None else _dense(parameter.grad) for parameter in parameters]
                squared_norms.append(_squared_norm(gradients) / scale**2)
                for i, gradient in enumerate(gradients):
                    if gradient is not None:
                        held = sums[i]
                        sums[i] = gradient if held is None else held.add_(gradient)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            squared_norms = []
        finally:
            _drop(parameters)
        squared_norms = share(sums, squared_norms, design.n_microbatches)
    found: tuple[float | None, float | None] = (None, None)
    if len(squared_norms) == design.n_microbatches:
        squared_norm_of_mean = _squared_norm(sums) / (scale * len(squared_norms)) ** 2
        if math.isfinite(sum(squared_norms) + squared_norm_of_mean):
            found = estimate(squared_norms, squared_norm_of_mean, design.microbatch_size, population)
    return NoisePoint(at_samples, design.n_microbatches, design.microbatch_size, *found)


@contextmanager
def same_draws() -> Iterator[None]:
    """Put every generator back as it was, whatever the block does."""
    import numpy
    import torch

    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Put every generator and the model's buffers back as they were, whatever the block does."""
    import torch

    buffers = [
        (module, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    try:
        with same_draws():
            yield
    finally:
        with torch.no_grad():
            for module, name, tensor, copy in buffers:
                tensor.copy_(copy)
                module._buffers[name] = tensor


def _drop(parameters: Sequence[torch.Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _squared_norm(tensors: Sequence[torch.Tensor | None]) -> float:
    """Return the sum of squares over all tensors; one wait for the device."""
    import torch

    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors if tensor is not None]
    return float(torch.stack([norm.to(norms[0].device) for norm in norms]).double().square().sum()) if norms else 0.0
