"""Predicted peaks of sizes that were not run: lines through measured peaks, their errors, and the noise.

Arithmetic only. `MemoryFit` is frozen and decides nothing; `size_search` chooses the next size by it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..core.probe_results import Outcome

PROVEN_OF_PEAK, PROVEN_OF_INCREMENT = 0.01, 0.05
"""A prediction has come true when it was off by less than both: of the peak, and of the increment that it predicted."""
NEIGHBOURS = 1.25
"""Sizes whose ratio is at most this show scatter rather than shape."""
SIGNIFICANT = 4.0
"""An increment counts as a slope when it is this many times the noise."""
SETTLED_OF_INCREMENT = 0.1
"""What libraries take once may be this share of a rise; more is another slope."""
OWN_SCALE = 1.0
"""The slope of a predictor that is right as it stands."""


@dataclass(frozen=True)
class SizeTried:
    """The outcome of one attempt at a size."""

    size: int
    fits: bool
    """The outcome is `ok`, the peak stayed within the budget, and the allocator did not have to retry."""
    peak_bytes: int | None
    """The measured peak, also of an attempt that ran and was over the budget; None if it died before its peak."""
    outcome: Outcome


class PeakLine(NamedTuple):
    """Predicted peak: `peak + slope * (shape(size) - shape(anchor))`."""

    anchor: int
    peak: float
    shape: Callable[[int], float]
    slope: float
    """To choose the next size by: never gentler than what was measured."""
    floor: float
    """To exclude a size by: never steeper than what was measured."""
    from_predictor: bool
    proven: bool
    error: float
    """Relative error of the slope, as far as this run can tell."""
    rise: float
    """How far the peak rose over the sizes that the slope was measured on; 0 where it was not."""

    def at(self, size: int) -> float:
        """Return the predicted peak at a size, to choose by."""
        return self.peak + self.slope * (self.shape(size) - self.shape(self.anchor))

    def at_least(self, size: int) -> float:
        """Return what the peak at a size surely exceeds, to exclude it by."""
        return self.peak + self.floor * (self.shape(size) - self.shape(self.anchor))


@dataclass(frozen=True)
class MemoryFit:
    """What is known after some attempts."""

    history: tuple[SizeTried, ...]
    budget_bytes: int
    predictor: Callable[[int], float] | None
    given_noise_bytes: float
    settling_bytes: float
    lowest: int
    """The smallest size that may be tried."""

    @property
    def largest_fit(self) -> int | None:
        """The largest size at which every attempt fitted."""
        return max((m.size for m in self.history if self.fits(m.size)), default=None)

    @property
    def smallest_failure(self) -> int | None:
        """The smallest size above `largest_fit` that failed. Smaller ones may have too: memory need not be monotone."""
        low = self.largest_fit or 0
        return min((m.size for m in self.history if m.size > low and m.size >= self.lowest), default=None)

    @property
    def noise_bytes(self) -> float:
        """How far two peaks must differ to count as different.

        As given, or twice the standard deviation of repeats, or what peaks fall by where there are no repeats.

        Where some noise was given, also as neighbouring sizes scatter about the predictor: on CPU, malloc keeps more or
        less of what was freed, the same in each run but another way at each size.
        """
        seen = 2 * self.repeat_noise_bytes if self.repeats else self._fall_bytes
        return max(self.given_noise_bytes, seen, self._scatter_bytes if self.given_noise_bytes > 0 else 0.0)

    @property
    def repeats(self) -> int:
        """Measured peaks beyond the first of each size."""
        return sum(m.peak_bytes is not None for m in self.history) - len(self.points())

    @property
    def repeat_noise_bytes(self) -> float:
        """Standard deviation of peaks that were measured more than once, over all such sizes; 0 without any."""
        if not self.repeats:
            return 0.0
        squares = sum(
            (m.peak_bytes - (self.peak(m.size) or 0.0)) ** 2 for m in self.history if m.peak_bytes is not None
        )
        return math.sqrt(squares / self.repeats)

    @property
    def _fall_bytes(self) -> float:
        """Return the largest fall of the peak with a growing size; more than 5 % is a change of kernel, not noise."""
        falls = [(before - after, before) for (_, before), (_, after) in itertools.pairwise(self.points())]
        return max([fall / math.sqrt(2) for fall, peak in falls if 0 < fall < 0.05 * peak], default=0.0)

    @property
    def _scatter_bytes(self) -> float:
        """Return how far rises between neighbouring sizes are from what the predictor, fitted to all of them, says."""
        if self.predictor is None:
            return 0.0
        points = [(size, self.predictor(size), peak) for size, peak in self.points()]
        points = [point for point in points if math.isfinite(point[1])]
        if len(points) < 4 or points[-1][1] <= points[0][1]:
            return 0.0
        slope = (points[-1][2] - points[0][2]) / (points[-1][1] - points[0][1])
        close = [(a, b) for a, b in itertools.pairwise(points) if b[0] <= NEIGHBOURS * a[0]]
        squares = [((b[2] - a[2]) - slope * (b[1] - a[1])) ** 2 / 2 for a, b in close]
        return math.sqrt(sum(squares) / len(squares)) if squares else 0.0

    @property
    def flat(self) -> bool:
        """Whether the two largest sizes that fit need the same memory within noise, so that no line can be drawn."""
        fitting = [(size, peak) for size, peak in self.points() if self.fits(size)]
        return len(fitting) >= 2 and fitting[-1][1] - fitting[-2][1] <= max(self.noise_bytes, 0.002 * fitting[-1][1])

    def line(self) -> PeakLine | None:
        """Return the line through the largest fit, or None where too little was measured for one."""
        low, high = self.largest_fit, self.smallest_failure
        if low is None or (peak := self.peak(low)) is None:
            return None
        by_size: Callable[[int], float] = float
        if self.predictor is not None:
            line = self._line_in(self.predictor, True, low, peak, high)
            if line is not None:
                return line
        return self._line_in(by_size, False, low, peak, high)

    def _line_in(
        self, shape: Callable[[int], float], from_predictor: bool, low: int, peak: float, high: int | None
    ) -> PeakLine | None:
        base = shape(low)
        below = [(shape(size), p) for size, p in self.points() if size < low]
        below = [(x, p) for x, p in below if math.isfinite(x)]
        if not math.isfinite(base) or (not below and not from_predictor):
            return None
        noise = self.noise_bytes
        slope, error, measured_rise = self._slope((base, peak), below, from_predictor)
        if slope is None:
            return None  # Measured memory grows where the predictor says that it does not: it is no guide.
        predictions = _predictions((base, peak), below, from_predictor)
        misses = [(abs(expected - peak), peak - start) for expected, start in predictions]
        true = [
            miss / rise
            for miss, rise in misses
            if rise > SIGNIFICANT * noise and miss <= PROVEN_OF_PEAK * peak and miss <= PROVEN_OF_INCREMENT * rise
        ]
        proven, floor = bool(true), slope
        if true and slope != OWN_SCALE:
            error = max(min(true), error)
        if high is not None and math.isfinite(top := shape(high)) and top > base:
            measured = self.peak(high)
            over = self.budget_bytes if measured is None else measured
            upper = (over - peak) / (top - base)
            if measured is None:  # It died somewhere above the budget.
                proven = proven and peak + slope * (top - base) > self.budget_bytes
                slope = max(slope, 1.02 * upper)
            elif upper > 0:
                rise = measured - peak
                came_true = abs(slope - upper) * (top - base) <= min(
                    PROVEN_OF_PEAK * measured, PROVEN_OF_INCREMENT * rise
                )
                proven = (proven and peak + slope * (top - base) > self.budget_bytes) or (
                    came_true and rise > SIGNIFICANT * noise
                )
                slope, floor = upper, min(slope, upper)
        return PeakLine(low, peak, shape, slope, floor, from_predictor, proven, error, measured_rise)

    def _slope(
        self, at: tuple[float, float], below: list[tuple[float, float]], from_predictor: bool
    ) -> tuple[float | None, float, float]:
        """Return bytes per unit of shape, relative error and rise, from the nearest point below that surely differs."""
        (base, peak), noise = at, self.noise_bytes
        for x, p in reversed(below):
            if peak - p > SIGNIFICANT * noise and peak > p:
                if base <= x:
                    return None, 0.0, 0.0
                if from_predictor and self._settled_in(peak - p, base - x):
                    return OWN_SCALE, 0.0, peak - p
                if from_predictor and base - x < (peak - p) / 100:
                    return None, 0.0, 0.0
                return (peak - p) / (base - x), noise / (peak - p), peak - p
        x, p = below[0] if below else (base, peak)
        steepest = max(0.0, peak - p + SIGNIFICANT * noise) / (base - x) if base > x else math.inf
        return (
            min(OWN_SCALE, steepest) if from_predictor else steepest,
            0.0,
            0.0,
        )  # Flat so far: at most as steep as the noise allows.

    def _settled_in(self, rise: float, expected: float) -> bool:
        """Whether a rise is what the predictor expects but for what libraries take once."""
        return abs(rise - expected) <= self.settling_bytes and (
            rise <= self.settling_bytes or abs(rise - expected) <= SETTLED_OF_INCREMENT * rise
        )

    def fits(self, size: int) -> bool:
        """Tell whether every attempt at a size fitted, and there was one."""
        here = [m for m in self.history if m.size == size]
        return bool(here) and all(m.fits and (m.peak_bytes is None or m.peak_bytes <= self.budget_bytes) for m in here)

    def peak(self, size: int) -> float | None:
        """Return the mean of the peaks measured at a size."""
        peaks = [m.peak_bytes for m in self.history if m.size == size and m.peak_bytes is not None]
        return sum(peaks) / len(peaks) if peaks else None

    def points(self) -> list[tuple[int, float]]:
        """Return (size, mean peak) of what was measured, by size."""
        sizes = sorted({m.size for m in self.history if m.peak_bytes is not None})
        return [(size, peak) for size in sizes if (peak := self.peak(size)) is not None]

    def needed(self, smallest: SizeTried | None) -> int | None:
        """Return what the smallest size tried was measured or predicted to need, where that is known."""
        if smallest is None or smallest.outcome == "limit":
            return None
        if smallest.peak_bytes is not None:
            return smallest.peak_bytes
        expected = self.predictor(smallest.size) if self.predictor is not None else math.inf
        return round(expected) if math.isfinite(expected) and expected > self.budget_bytes else None


def _predictions(
    at: tuple[float, float], below: list[tuple[float, float]], from_predictor: bool
) -> list[tuple[float, float]]:
    """Return what the points below would have predicted for `at`: (expected peak, peak it was predicted from)."""
    if not below:
        return []
    (x, p), made = below[-1], []
    if from_predictor:
        made.append((p + at[0] - x, p))
    if len(below) >= 2:
        x0, p0 = below[-2]
        if x > x0 and p > p0:
            made.append((p + (p - p0) / (x - x0) * (at[0] - x), p))
    return made
