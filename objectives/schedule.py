"""Learning-rate schedules as functions of progress: samples seen over the planned end of the run."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES = ("constant", "linear", "cosine", "wsd")
WSD_WARMUP = 0.05
WSD_DECAY = 0.2


def learning_rate_factor(schedule: str | Callable[[float], float], progress: float) -> float:
    """Return the factor on the learning rate at `progress` in [0, 1].

    `linear` and `cosine` fall from 1 to 0; `wsd` (warm-up, stable, decay) rises over the first 5 %, stays, and falls
    linearly to 0 over the last 20 %.

    Example:
        >>> [round(learning_rate_factor("cosine", p), 2) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]

    Source for wsd: Hu et al. 2024, arXiv:2404.06395.
    """
    if callable(schedule):
        return float(schedule(progress))
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "wsd":
        # Progress is that before the step: a factor of exactly 0 in the first step would waste it.
        return min(1.0, (progress + 1e-3) / WSD_WARMUP, (1.0 - progress) / WSD_DECAY)
    return 1.0
