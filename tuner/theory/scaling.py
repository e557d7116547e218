"""Pure arithmetic: batch splits, and how the best learning rate is expected to move with the batch size.

A rule here is a prior, never a law: the search learns the slope from its own trials. "Slope" means alpha in
"double the batch, multiply the learning rate by 2**alpha".
"""

from __future__ import annotations

import operator

from ..core.errors import ArgumentError

SLOPE_PRIOR = {"sgd": (0.9, 0.15), "adam": (0.5, 0.2), "other": (0.6, 0.25)}
"""Mean and standard deviation of the slope by optimizer family.

Sources: linear rule, Goyal et al. 2017, arXiv:1706.02677; square root, Malladi et al. 2022, arXiv:2205.10287; the
spread from MLPerf's expert settings (-0.05 to 1.0, median 0.62) and 17 StepLaw grids (0.19 to 0.65), arXiv:2503.04715.
"""

LEARNING_RATE_RANGE = {"sgd": (1e-4, 3.0), "adam": (1e-6, 1e-1), "other": (1e-5, 1.0)}

DEFAULT_LEARNING_RATE = {"sgd": 0.025, "adam": 1e-3}
"""At a global batch size of 64. SGD: 0.1 at 256, scaled linearly (Goyal et al. 2017); Adam: its authors' default."""

ANCHOR_BATCH = 64
"""The default learning rates above are meant for about this global batch size."""


def split(global_batch_size: int, micro_max: int, world_size: int = 1, *, longest: int = 1) -> tuple[int, int]:
    """Split a global batch into equal micro-batches that fit, exactly.

    Args:
        global_batch_size: Samples in one optimizer step.
        micro_max: Most samples that fit in one forward and backward pass on one device.
        world_size: Processes that train together.
        longest: What the longest sample has of what sizes count, such as tokens: a micro-batch is to hold it.

    Returns:
        The micro-batch size and the number of accumulation steps; their product with `world_size` is the global batch.

    Raises:
        ArgumentError: The global batch does not divide by `world_size`, or into micro-batches that fit and hold the
            longest sample, or one of them is no whole number of 1 or more.

    Example:
        >>> split(512, 24)
        (16, 32)
    """
    try:
        batch, most, processes = (operator.index(value) for value in (global_batch_size, micro_max, world_size))
    except TypeError:
        batch = most = processes = 0
    if min(batch, most, processes) < 1:
        raise ArgumentError(
            f"Cannot split a batch of {global_batch_size} by at most {micro_max} on {world_size} processes: all must "
            "be whole numbers of 1 or more."
        )
    if global_batch_size % world_size:
        raise ArgumentError(
            f"A global batch of {global_batch_size} does not divide by {world_size} processes; use a multiple of "
            f"{world_size}."
        )
    per_device = batch // processes
    micro = next(m for m in range(min(most, per_device), 0, -1) if per_device % m == 0)
    if micro < longest:
        raise ArgumentError(
            f"A batch of {global_batch_size} does not split into equal micro-batches that fit, {most} at most, and "
            f"hold the longest sample of {longest}"
            + (f": use a multiple of {most * processes}." if most >= longest else ": such a sample does not fit.")
        )
    return micro, per_device // micro
