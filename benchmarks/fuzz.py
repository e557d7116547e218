"""Random memory curves for the search of the largest size.

Slopes over decades, jumps, squares, noise, and predictors that are right or wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from bstune.tuner.probing.memory_fit import SizeTried
from bstune.tuner.probing.size_search import Bounds, Growth


def run(
    memory: Callable[[int], float],
    budget: float,
    bounds: Bounds | None = None,
    *,
    survives_to: float = 1.0,
    noise: Callable[[], float] = lambda: 0.0,
    **options: Any,
) -> Growth:
    """Search on a formula; an attempt up to `survives_to` times the budget tells its peak, a larger one dies first."""
    growth = Growth(bounds or Bounds(1, 65536), budget_bytes=int(budget), **options)
    while (size := growth.next_size()) is not None:
        peak = memory(size) * (1 + noise())
        if peak <= budget:
            growth.add(SizeTried(size, True, int(peak), "ok"))
        elif peak <= budget * survives_to:
            growth.add(SizeTried(size, False, int(peak), "ok"))
        else:
            growth.add(SizeTried(size, False, None, "oom"))
    return growth


def truth(memory: Callable[[int], float], budget: float, highest: int = 65536) -> int:
    """Return the largest size that fits, for memory that only grows."""
    low, high = 0, highest + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if memory(middle) <= budget else (low, middle)
    return low


def random_memory(rng: random.Random) -> Callable[[int], float]:
    """Return a random curve: up to 7 slopes over 4 decades, jumps, sometimes a square."""
    slopes = [10 ** rng.uniform(2, 6) for _ in range(rng.randint(1, 7))]
    if rng.random() < 0.5:
        slopes.sort()
    knots = [*sorted(2 ** rng.uniform(0, 16) for _ in slopes[1:]), math.inf]
    jumps = [(2 ** rng.uniform(0, 16), 10 ** rng.uniform(5, 8.7)) for _ in range(rng.randint(0, 2))]
    fixed, square = 10 ** rng.uniform(6, 9), rng.choice([0.0, 0.0, 0.0, 10 ** rng.uniform(-1, 2)])

    def memory(n: int) -> float:
        peak, start = fixed + square * n * n, 0.0
        for slope, knot in zip(slopes, knots, strict=True):
            peak += slope * max(0.0, min(n, knot) - start)
            start = knot
        return peak + sum(height for at, height in jumps if n >= at)

    return memory


def fuzzed(seed: int, *, noise: float) -> tuple[Growth, Callable[[int], float], int, int]:
    """Search on a random curve with a right, a wrong or no predictor; return (growth, memory, budget, usable)."""
    rng = random.Random(seed)
    memory, other = random_memory(rng), random_memory(rng)
    usable = memory(1) + (memory(65536) - memory(1)) * 10 ** rng.uniform(-4, 0.1)
    budget = int(usable * (0.95 if noise else 1.0))
    wrong = 10 ** rng.uniform(-1, 1)
    predict = rng.choice([memory, lambda n: 1e8 + wrong * (memory(n) - memory(1)), other, None])
    growth = run(
        memory, budget, predict=predict, survives_to=rng.choice([1.0, 1.05, 2.0]), noise=lambda: rng.gauss(0, noise)
    )
    return growth, memory, budget, int(usable)
