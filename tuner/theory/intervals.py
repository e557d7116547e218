"""How sure an estimate is: a quantile of Student's t, and the jackknife. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")

_FEW = {1: 6.3138, 2: 2.9200, 3: 2.3534}
"""Where the series below is off by more than 0.5 %."""


def student_quantile(freedom: float) -> float:
    """Return the quantile of Student's t that leaves 5 % above it: times a standard error, half of a 90 % interval.

    Example:
        >>> round(student_quantile(2), 2), round(student_quantile(8), 2), round(student_quantile(1e6), 3)
        (2.92, 1.86, 1.645)

    Source: Abramowitz and Stegun 1964, 26.7.5 (a series in 1 / freedom).
    """
    if freedom in _FEW:
        return _FEW[int(freedom)]
    z, n = 1.6448536, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def stratified_error(strata: Sequence[Sequence[Item]], statistic: Callable[[list[Item], list[float]], float]) -> float:
    """Return the jackknife standard error of a statistic of all items, leaving out one at a time within each stratum.

    Args:
        strata: Groups of at least two items that would be alike but for chance; groups may differ from each other.
        statistic: A smooth function of items and their weights; those left of a stratum stand for the one left out.

    Example:
        >>> mean = lambda items, weights: sum(x * w for x, w in zip(items, weights)) / sum(weights)
        >>> stratified_error([[1.0, 1.0], [9.0, 9.0]], mean)  # Alike within, so the mean has no error.
        0.0
        >>> round(stratified_error([[0.0, 1.0, 2.0]], mean), 3)
        0.577
        >>> round(stratified_error([[0.0, 1.0], [8.0, 9.0]], mean), 3)
        0.354

    Source: Shao and Tu 1995, The Jackknife and Bootstrap, section 6.2 (jackknife for stratified samples).
    """
    variance = 0.0
    for stratum in strata:
        rest = [item for items in strata if items is not stratum for item in items]
        weights = [1.0] * len(rest) + [len(stratum) / (len(stratum) - 1)] * (len(stratum) - 1)
        values = [statistic([*rest, *stratum[:i], *stratum[i + 1 :]], weights) for i in range(len(stratum))]
        if not all(math.isfinite(value) for value in values):
            return math.inf
        middle = sum(values) / len(values)
        variance += (len(values) - 1) / len(values) * sum((value - middle) ** 2 for value in values)
    return math.sqrt(variance)
