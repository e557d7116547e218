"""Losses of settings at equal samples, as the trials of a search left them; and arithmetic on such tables."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..core.trial_record import TrialRecord
from ..theory.intervals import student_quantile

SEED_SD = (0.05, 2.0)
"""Relative scatter of a loss between seeds to begin with, and how many degrees of freedom that guess is worth.

MLPerf's reference runs: median 3.7 %, nine in ten below 18 % (of samples to target; mlcommons/logging).
"""
LEAST_RATES = 3
"""Learning rates of a batch size from which its best can be told."""
RATE_ERROR = 0.35
"""Octaves: a best learning rate is known no better than this (noise, and what early points of a run favour)."""


@dataclass(frozen=True)
class EqualSamples:
    """Losses at equal samples by batch size and learning rate; a run that has diverged by then counts as infinite."""

    samples: int
    full_samples: float
    losses: dict[int, dict[float, float]]

    @property
    def when(self) -> str:
        """Return at what part of a full run these losses were read."""
        share = self.samples / self.full_samples if self.full_samples else 1.0
        return "after a full run" if share > 0.97 else f"after {self.samples:,} samples ({share:.0%} of a full run)"

    @cached_property
    def best(self) -> dict[int, tuple[float, float]]:
        """By batch size, the best learning rate and its loss."""
        found = {}
        for batch, row in sorted(self.losses.items()):
            rate, loss = min(row.items(), key=lambda item: item[1])
            if math.isfinite(loss):
                found[batch] = (rate, loss)
        return found

    @cached_property
    def tuned(self) -> dict[int, tuple[float, float]]:
        """The same, of batch sizes whose best rate lies between worse ones, or has three rates within reach."""
        found = {}
        for batch, (rate, loss) in self.best.items():
            row = self.losses[batch]
            if len(row) >= LEAST_RATES and min(row) < rate < max(row):
                found[batch] = (rate, loss)
        return found

    def best_rate(self, batch: int) -> tuple[float, float]:
        """Return log2 of the best rate of a tuned batch size and its error in octaves, by a parabola where one fits."""
        rate = self.tuned[batch][0]
        row = sorted((math.log2(each), value) for each, value in self.losses[batch].items())
        i = next(i for i, (each, _) in enumerate(row) if each == math.log2(rate))
        (x0, y0), (x1, y1), (x2, y2) = row[i - 1], row[i], row[i + 1]
        error = max(RATE_ERROR, (x2 - x0) / 4)
        if min(y0, y1, y2) <= 0 or not (math.isfinite(y0) and math.isfinite(y2)):
            return x1, error
        y0, y1, y2 = math.log(y0), math.log(y1), math.log(y2)
        # The vertex of the parabola through three points.
        top = (x1 - x0) ** 2 * (y1 - y2) - (x1 - x2) ** 2 * (y1 - y0)
        below = (x1 - x0) * (y1 - y2) - (x1 - x2) * (y1 - y0)
        vertex = x1 if below == 0 else x1 - top / (2 * below)
        return min(max(vertex, (x0 + x1) / 2), (x1 + x2) / 2), error


def table_of(records: Sequence[TrialRecord], full_samples: float, *, least_batches: int = 3) -> EqualSamples | None:
    """Return losses at the latest samples at which enough batch sizes have a best rate between worse ones.

    Where no such moment is, the one with the most tuned batch sizes; None where no two batch sizes can be compared.
    """
    usable = [table for table in tables_of(records, full_samples) if len(table.best) >= 2]
    if not usable:
        return None
    enough = [table for table in usable if len(table.tuned) >= least_batches]
    if enough:
        return max(enough, key=lambda table: table.samples)
    return max(usable, key=lambda table: (len(table.tuned), table.samples))


def tables_of(records: Sequence[TrialRecord], full_samples: float) -> list[EqualSamples]:
    """Return losses at each number of samples at which one was recorded, the mean of those of one setting."""
    at: dict[int, dict[int, dict[float, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    points = sorted({samples for record in records for samples, _ in record.values})
    for record in records:
        known = {samples: math.inf if loss is None else loss for samples, loss in record.values}
        lost = min((samples for samples, loss in known.items() if not math.isfinite(loss)), default=math.inf)
        for point in points:
            if point >= lost:
                at[point][record.global_batch_size][record.learning_rate].append(math.inf)
            elif point in known:
                at[point][record.global_batch_size][record.learning_rate].append(known[point])
    return [
        EqualSamples(
            point,
            full_samples,
            {batch: {rate: _mean(values) for rate, values in row.items()} for batch, row in rows.items()},
        )
        for point, rows in at.items()
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def seed_sd(records: Sequence[TrialRecord]) -> float:
    """Return the relative standard deviation of a loss between seeds at equal samples, joined with a usual one."""
    return _seed_scatter(records)[0]


def seed_error(records: Sequence[TrialRecord]) -> float:
    """Return half the 90 % interval of ln of one loss: only runs that repeat a setting tell how much seeds differ.

    Example:
        >>> round(seed_error([]), 3)
        0.146
    """
    sd, freedom = _seed_scatter(records)
    return student_quantile(freedom) * sd


def _seed_scatter(records: Sequence[TrialRecord]) -> tuple[float, float]:
    """Return the relative standard deviation between seeds, and its degrees of freedom."""
    prior, weight = SEED_SD
    total, freedom = weight * prior**2, weight
    groups: dict[tuple[int, float, str, int], dict[int, float]] = defaultdict(dict)
    for record in records:
        if record.state == "complete" and record.val_loss is not None:
            key = (record.global_batch_size, record.learning_rate, repr(sorted(record.params.items())), record.samples)
            groups[key][record.seed] = record.val_loss
    for by_seed in groups.values():
        values = list(by_seed.values())
        mean = _mean(values)
        if len(values) > 1 and mean > 0:
            total += sum((value / mean - 1) ** 2 for value in values)
            freedom += len(values) - 1
    return math.sqrt(total / freedom), freedom


@dataclass(frozen=True)
class Slope:
    """The slope of a straight line with its 90 % interval."""

    value: float
    low: float
    high: float
    n: int


def slope_of(xs: Sequence[float], ys: Sequence[float], errors: Sequence[float]) -> Slope | None:
    """Fit a line by weighted least squares; the error is the stated one, or the scatter where that is larger.

    Example:
        >>> slope_of([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.1, 0.1, 0.1]).value
        1.0
    """
    if len(set(xs)) < 2:
        return None
    weights = [1 / error**2 for error in errors]
    total = sum(weights)
    mx = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    my = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    sxx = sum(w * (x - mx) ** 2 for w, x in zip(weights, xs, strict=True))
    slope = sum(w * (x - mx) * (y - my) for w, x, y in zip(weights, xs, ys, strict=True)) / sxx
    freedom = len(xs) - 2
    stated = student_quantile(1e6) / math.sqrt(sxx)
    if freedom < 1:
        return Slope(slope, slope - stated, slope + stated, len(xs))
    chi = sum(w * (y - my - slope * (x - mx)) ** 2 for w, x, y in zip(weights, xs, ys, strict=True))
    # A guess worth as much as the stated errors, so that three points that happen to lie on a line claim no certainty.
    scatter = math.sqrt((chi + 2.0) / (freedom + 2.0))
    half = student_quantile(freedom + 2.0) * max(scatter, 0.5) / math.sqrt(sxx)
    return Slope(slope, slope - half, slope + half, len(xs))


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return the rank correlation of two lists, or None where one of them does not vary.

    Example:
        >>> spearman([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
        0.5
    """
    a, b = _ranks(xs), _ranks(ys)
    ma, mb = _mean(a), _mean(b)
    sa, sb = sum((x - ma) ** 2 for x in a), sum((y - mb) ** 2 for y in b)
    if sa == 0 or sb == 0:
        return None
    return sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True)) / math.sqrt(sa * sb)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 90 % interval of a share.

    Example:
        >>> low, high = wilson(5, 10)
        >>> round(low, 2), round(high, 2)
        (0.27, 0.73)

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """
    z, p = 1.6448536, hits / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def loss_after(record: TrialRecord, samples: float) -> float | None:
    """Return the loss of a run after so many samples, between its reports if need be; None where it is not known."""
    points = [(at, loss) for at, loss in record.values if loss is not None]
    for (at, loss), (later, its) in itertools.pairwise(points):
        if at <= samples <= later:
            return loss + (samples - at) / (later - at) * (its - loss)
    return points[-1][1] if points and samples >= points[-1][0] else None
