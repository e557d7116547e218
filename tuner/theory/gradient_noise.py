"""Gradient noise scale: how large a batch can be before a larger one hardly improves its gradient. Pure arithmetic.

With the true gradient G and the covariance Sigma of the gradients of single samples, a batch of B samples has
E|g_B|^2 = |G|^2 + tr(Sigma) / B, so that noise and signal are even at the noise scale tr(Sigma) / |G|^2, in samples.
Both parts are estimated from the gradients of K micro-batches at the same weights, without bias; their sums over many
measurements are kept apart and divided only at the end, because the mean of ratios is not the ratio of means.

The noise scale grows while a model trains, by ten times and more, and a sum over a run is led by its beginning, where
gradients are large: read it as the lower end of the critical batch size.

Source: McCandlish et al. 2018, arXiv:1812.06162, section 2.2 and appendix A.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import BstuneError
from ..core.trials import NoisePoint
from .intervals import stratified_error, student_quantile

SHARE = 0.03
"""Of a full run's samples, at most, for all measurements along it."""
POINTS = (8, 6, 4)
"""Measurements along a run: as many as leave each enough micro-batches."""
LEAST_MICROBATCHES, MOST_MICROBATCHES = 4, 16
MICROBATCH = 32
"""Samples in one; with BatchNorm never fewer, because its statistics are those of the micro-batch."""
LEAST_POINTS = 4
"""Fewer measurements than this say nothing about their own error."""


@dataclass(frozen=True)
class NoiseDesign:
    """How the noise of a run is measured: at how many points, and from what."""

    n_points: int
    n_microbatches: int
    """At each point."""
    microbatch_size: int
    """Samples."""

    @property
    def n_samples(self) -> int:
        """Samples drawn at one point."""
        return self.n_microbatches * self.microbatch_size


def design(
    allowance: int, micro_batch_size: int, n_train_samples: int, *, batch_norm: bool = False
) -> NoiseDesign | None:
    """Return what to measure within an allowance, or None when it is too small to tell anything.

    Args:
        allowance: Samples that may be drawn along the whole run.
        micro_batch_size: Samples that fit; no micro-batch of a measurement is larger.
        n_train_samples: Samples of the data set; those of one point are drawn from it without repeating any.
        batch_norm: The model has BatchNorm layers.

    Example:
        >>> design(900, 64, 1500)
        NoiseDesign(n_points=6, n_microbatches=4, microbatch_size=32)
        >>> design(40, 64, 1500)
        NoiseDesign(n_points=4, n_microbatches=5, microbatch_size=2)
    """
    size = min(MICROBATCH, micro_batch_size)
    for n_points in POINTS:
        each = min(allowance // n_points, n_train_samples)
        if each // size >= LEAST_MICROBATCHES:
            return NoiseDesign(n_points, min(each // size, MOST_MICROBATCHES), size)
    each = min(allowance // POINTS[-1], n_train_samples)
    size = each // LEAST_MICROBATCHES
    if size < 1 or (batch_norm and size < MICROBATCH):
        return None
    return NoiseDesign(POINTS[-1], each // size, size)


def estimate(
    squared_norms: Sequence[float], squared_norm_of_mean: float, microbatch_size: int, population: int | None = None
) -> tuple[float, float]:
    """Return unbiased estimates of |G|^2 and tr(Sigma) from the gradients of K micro-batches at the same weights.

    Args:
        squared_norms: |g_k|^2 of each micro-batch's mean gradient.
        squared_norm_of_mean: |mean of g_k|^2.
        microbatch_size: Samples in each micro-batch, b.
        population: N, when the samples were drawn without repeating any of N. A batch of B then varies by only
            tr(Sigma) / B * (N - B) / (N - 1), which makes the plain estimate of |G|^2 too small by tr(Sigma) / N.

    Raises:
        BstuneError: There are fewer than two micro-batches, which cannot be compared.

    Example:
        >>> estimate([5.0, 5.0], 3.0, microbatch_size=8)  # Two of 8: |g|^2 is 5 at 8 samples and 3 at 16.
        (1.0, 32.0)
        >>> estimate([5.0, 5.0], 3.0, microbatch_size=8, population=16)
        (3.0, 32.0)

    Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1, with B_small = b and B_big = K b.
    """
    k = len(squared_norms)
    if k < 2:
        raise BstuneError(
            f"Gradient noise was measured on {k} micro-batch(es): expected at least 2, which can be compared."
        )
    mean_square = sum(squared_norms) / k
    covariance_trace = microbatch_size * k * (mean_square - squared_norm_of_mean) / (k - 1)
    gradient_squared = (k * squared_norm_of_mean - mean_square) / (k - 1)
    return gradient_squared + (covariance_trace / population if population else 0.0), covariance_trace


@dataclass(frozen=True)
class NoiseSums:
    """Sums over measurements, kept apart; they add up.

    Example:
        >>> (NoiseSums(2.0, 100.0, 1) + NoiseSums(-1.0, 120.0, 1)).ratio
        220.0
    """

    gradient_squared: float = 0.0
    covariance_trace: float = 0.0
    n: int = 0
    """Measurements."""

    @classmethod
    def of(cls, points: Sequence[NoisePoint], weights: Sequence[float] | None = None) -> NoiseSums:
        """Add up measurements, each times its weight where weights are given."""
        factors = weights or [1.0] * len(points)
        gradient = math.fsum(
            factor * (point.gradient_squared or 0.0) for factor, point in zip(factors, points, strict=True)
        )
        trace = math.fsum(
            factor * (point.covariance_trace or 0.0) for factor, point in zip(factors, points, strict=True)
        )
        return cls(gradient, trace, len(points))

    def __add__(self, other: NoiseSums) -> NoiseSums:
        """Return the sums over both."""
        gradient, trace = self.gradient_squared + other.gradient_squared, self.covariance_trace + other.covariance_trace
        return NoiseSums(gradient, trace, self.n + other.n)

    @property
    def ratio(self) -> float:
        """The noise scale, in samples; infinite where no gradient is seen through the noise."""
        return max(0.0, self.covariance_trace) / self.gradient_squared if self.gradient_squared > 0 else math.inf


@dataclass(frozen=True)
class NoiseScale:
    """A noise scale with what is known of its error, in samples."""

    value: float | None
    """None when noise dominates: the gradient could not be told from zero, and only `low` is known."""
    low: float
    high: float | None
    """With `low` a 90 % interval; None when noise dominates."""
    n: int
    """Measurements."""


def noise_scale(points: Sequence[NoisePoint]) -> NoiseScale | None:
    """Return the noise scale of all measurements together, or None when there are too few.

    The error is a jackknife over measurements within pairs of neighbours along the run, so that the drift from one end
    of a run to the other does not count as error. Where the 90 % interval of the sum of |G|^2 reaches zero the ratio
    could be anything above a bound, and no number is given.

    Args:
        points: Measurements of one run, or of several at comparable learning rates.

    Example:
        >>> scale = noise_scale([NoisePoint(i, 4, 8, g, 100.0) for i, g in enumerate((0.9, 1.1, 1.0, 1.0))])
        >>> scale.value
        100.0
        >>> noise_scale([NoisePoint(i, 4, 8, g, 100.0) for i, g in enumerate((0.9, -1.1, 1.0, -0.5))]).value is None
        True
    """
    ordered = sorted(
        (point for point in points if point.gradient_squared is not None), key=lambda point: point.at_samples
    )
    if len(ordered) < LEAST_POINTS:
        return None
    pairs = [ordered[i : i + 2] for i in range(0, len(ordered) - len(ordered) % 2, 2)]
    if len(ordered) % 2:
        pairs[-1].append(ordered[-1])
    quantile = student_quantile(len(ordered) - len(pairs))
    sums = NoiseSums.of(ordered)
    error = quantile * stratified_error(pairs, lambda items, weights: NoiseSums.of(items, weights).gradient_squared)
    if sums.gradient_squared - error <= 0 or sums.covariance_trace <= 0:
        bound = NoiseSums(sums.gradient_squared + error, sums.covariance_trace, sums.n).ratio
        return NoiseScale(None, bound if math.isfinite(bound) else 0.0, None, sums.n)
    spread = quantile * stratified_error(
        pairs, lambda items, weights: math.log(max(NoiseSums.of(items, weights).ratio, 1e-12))
    )
    if not math.isfinite(spread):  # Without one of its measurements nothing would be left of the gradient.
        return NoiseScale(None, sums.covariance_trace / (sums.gradient_squared + error), None, sums.n)
    return NoiseScale(sums.ratio, sums.ratio * math.exp(-spread), sums.ratio * math.exp(spread), sums.n)
