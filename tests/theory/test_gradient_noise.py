"""Gradient noise: the estimator on problems whose noise is known.

Its honesty about its error, and a measurement that leaves no trace.
"""

from __future__ import annotations

import math

import bstune
import numpy as np
import pytest
from bstune.tuner.core.trials import NoisePoint
from bstune.tuner.theory.gradient_noise import NoiseSums, design, estimate, noise_scale

RNG = np.random.default_rng


def regression(n_features: int = 20, noise: float = 2.0) -> tuple[np.ndarray, float, float]:
    """Return what a linear regression is made of: the offset of its weights, |G|^2 and tr(Sigma), known in closed form.

    With x ~ N(0, I), y = noise * e and weights w off by d, a sample's gradient of (x.w - y)^2 / 2 is
    x (x.d - noise * e). So G = d and, by the fourth moments of a Gaussian, tr(Sigma) = (n + 1) |d|^2 + n * noise^2.
    """
    offset = np.full(n_features, 0.3)
    squared = float(offset @ offset)
    return offset, squared, (n_features + 1) * squared + n_features * noise**2


def gradients(offset: np.ndarray, n: int, rng: np.random.Generator, noise: float = 2.0) -> np.ndarray:
    """Return the gradients of n samples, one a row."""
    x = rng.standard_normal((n, len(offset)))
    rows: np.ndarray = x * (x @ offset - noise * rng.standard_normal(n))[:, None]
    return rows


def measured(rows: np.ndarray, size: int, at: int, population: int | None = None) -> NoisePoint:
    """Return the measurement that consecutive micro-batches of these gradients give."""
    micro = rows.reshape(-1, size, rows.shape[1]).mean(1)
    mean = micro.mean(0)
    gradient, trace = estimate([float(g @ g) for g in micro], float(mean @ mean), size, population)
    return NoisePoint(at, len(micro), size, gradient, trace)


def test_both_parts_are_unbiased_on_a_regression_whose_noise_is_known() -> None:
    """The means over 2000 measurements of 4 x 8 samples are the closed forms, within four standard errors."""
    offset, squared, trace = regression()
    rng = RNG(0)
    points = [measured(gradients(offset, 32, rng), 8, i) for i in range(2000)]

    for values, truth in (
        ([point.gradient_squared or 0.0 for point in points], squared),
        ([point.covariance_trace or 0.0 for point in points], trace),
    ):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(len(values))


def test_samples_drawn_from_a_small_data_set_without_repeats_are_corrected_for() -> None:
    """Half of 64 samples at a time: without the factor (N - B) / (N - 1) the gradient would be 30 errors too small."""
    rng = RNG(1)
    rows = gradients(regression()[0], 64, rng)
    mean = rows.mean(0)
    truth = float(mean @ mean)

    def average(population: int | None) -> tuple[float, float]:
        found = [measured(rng.permutation(rows)[:32], 8, i, population).gradient_squared or 0.0 for i in range(2000)]
        return float(np.mean(found)), float(np.std(found)) / math.sqrt(len(found))

    right, error = average(64)
    wrong, _ = average(None)
    assert abs(right - truth) < 4 * error
    assert truth - wrong > 20 * error


def test_the_interval_covers_the_truth_nine_times_in_ten() -> None:
    """Over 300 runs of 8 measurements, the 90 % interval contains the true scale in 84 to 98 % of the numbers."""
    offset, squared, trace = regression(noise=0.5)
    rng = RNG(2)
    scales = [noise_scale([measured(gradients(offset, 128, rng, 0.5), 8, i) for i in range(8)]) for _ in range(300)]

    found = [scale for scale in scales if scale is not None and scale.value is not None]
    hits = sum(scale.low <= trace / squared <= (scale.high or math.inf) for scale in found)
    assert len(found) > 250
    assert 0.84 < hits / len(found) < 0.98


def test_a_gradient_lost_in_noise_gives_a_bound_and_no_number() -> None:
    """At a scale of 10 000 samples, 4 measurements of 16 samples give no number, but a bound below the truth."""
    rng = RNG(3)
    offset = regression()[0] / 30
    squared = float(offset @ offset)
    truth = (21 * squared + 80) / squared
    scales = [noise_scale([measured(gradients(offset, 16, rng), 4, i) for i in range(4)]) for _ in range(200)]

    dominated = [scale for scale in scales if scale is not None and scale.value is None]
    assert len(dominated) > 160
    assert all(scale.high is None for scale in dominated)
    assert sum(scale.low <= truth for scale in dominated) > 0.9 * len(dominated)


def test_the_drift_along_a_run_is_not_taken_for_error() -> None:
    """A gradient that falls a hundredfold along the run, in two runs that agree, is known well."""
    points = [NoisePoint(i, 4, 8, 10.0 / 2**i * wobble, 500.0) for i in range(7) for wobble in (0.95, 1.05)]

    scale = noise_scale(points)

    assert scale is not None
    assert scale.value == pytest.approx(14 * 500 / sum(point.gradient_squared or 0.0 for point in points))
    assert (scale.high or 0.0) / scale.low < 1.3


def test_a_ratio_of_sums_survives_a_measurement_below_zero() -> None:
    """One negative estimate of |G|^2 among five is chance: it is added, not thrown away and not divided by."""
    sums = NoiseSums.of([NoisePoint(i, 4, 8, g, 30.0) for i, g in enumerate((1.0, 1.2, -0.2, 0.9, 1.1))])

    assert sums.ratio == pytest.approx(150 / 4.0)
    assert sums + NoiseSums() == sums


def test_too_few_measurements_give_nothing() -> None:
    """Three points say nothing about their own error."""
    assert noise_scale([NoisePoint(i, 4, 8, 1.0, 30.0) for i in range(3)]) is None
    with pytest.raises(bstune.BstuneError, match="on 1 micro-batch"):
        estimate([1.0], 1.0, 8)


@pytest.mark.parametrize("allowance", [15, 16, 40, 511, 512, 900, 2000, 10**6])
@pytest.mark.parametrize("micro", [1, 8, 300])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_design_stays_within_its_allowance(allowance: int, micro: int, batch_norm: bool) -> None:
    """No more samples than allowed, none twice in one measurement, none too large to fit; BatchNorm sees 32 or none."""
    plan = design(allowance, micro, 1500, batch_norm=batch_norm)

    if plan is None:
        assert allowance < 16 or batch_norm
        return
    assert plan.n_points * plan.n_samples <= allowance
    assert plan.n_samples <= 1500
    assert plan.n_microbatches >= 2
    assert plan.microbatch_size <= micro
    assert not batch_norm or plan.microbatch_size == min(32, micro)
