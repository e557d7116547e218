"""The batch size that reaches a target first. Pure arithmetic.

Samples to a target are a line in the batch size, E(B) = E_min + S_min * B, and so is the time of a step,
t(B) = a + c * B. The seconds to the target, E(B) / B * t(B), are then fewest at B* = sqrt(B_crit * B_sat), with the
critical batch size B_crit = E_min / S_min (statistics) and the saturation batch B_sat = a / c (hardware). Memory caps
the micro-batch: beyond it a larger batch only accumulates, which brings no speed.

Source: E(B) is equation 2.11 of McCandlish et al. 2018, arXiv:1812.06162, rewritten; it fits the reference runs of 15
MLPerf benchmarks to 0.1-13 %. B* follows by setting the derivative to zero.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.probe_results import ProbeResult, StepTimeLine
from ..core.results import BatchAnswer, BatchReach, Decider
from .gradient_noise import NoiseScale
from .step_time import relative_line

LEAST_BATCHES = 3
"""Fewer batch sizes than this always lie on a line."""
LEAST_SPAN = 4
"""The largest batch size over the smallest.

Over less, learning rates that are not quite the best outweigh the batch.
"""
MOST_RESIDUAL = 2.5
"""A line that misses a batch size by more than this factor says nothing."""
SCATTER_PRIOR = (0.2, 2.0)
"""Relative scatter about the line, and how many degrees of freedom that guess is worth.

Samples to target scatter by 3.7 % between seeds in the median of MLPerf's reference runs, and by 18 % in one of ten;
the rest is for learning rates that were searched at a few values only.
"""
CRITICAL_PRIOR = (400.0, 4.0)
"""Critical batch size to begin with, and the factor that one standard deviation is.

Gradient noise scales along a run: 50 to 1,400 for a small network on MNIST; 290 to 25,000 on CIFAR-10 in the traces
of Pollux (Qiao et al., OSDI 2021). McCandlish et al. 2018 find them over three orders of magnitude.
"""
SCALE_FACTOR = 3.0
"""Critical batch size and measured gradient noise scale may differ by this factor: one standard deviation."""
CRITICALS = tuple(2.0 ** (k / 8) for k in range(161))
"""Critical batch sizes that are weighed, from 1 to a million."""
FLAT_LOSS = 1.35
"""Log likelihood that a line without growth may lack and still be possible.

Half the 90 % point of chi-squared with one degree.
"""
DRAWS = 200
INTERVAL = (0.05, 0.95)

_CAPS: dict[str, Decider] = {"memory": "memory", "plateau": "hardware", "dataset": "data set"}
"""What a cap of the probe means for the batch size."""


@dataclass(frozen=True)
class Reach:
    """How many samples a batch size needed to the target; at least so many where it was not reached."""

    batch: int
    samples: float
    reached: bool = True


@dataclass(frozen=True)
class BatchLine:
    """E(B) = E_min + S_min * B, with what else its critical batch size might be."""

    e_min_samples: float
    s_min_steps: float
    n_batches: int
    worst_residual: float
    b_crits: tuple[float, ...]
    """Critical batch sizes, ascending, each as probable as the next."""
    bounded: bool
    """Whether samples to target clearly grow with the batch.

    Otherwise only the prior bounds the critical batch size from above.
    """
    reaches: tuple[Reach, ...]
    """What the line was fitted to."""

    @property
    def b_crit(self) -> float:
        """The critical batch size."""
        return self.e_min_samples / self.s_min_steps


def enough(reaches: Sequence[Reach]) -> bool:
    """Return whether enough batch sizes, far enough apart, have reached the target for a line."""
    sizes = {reach.batch for reach in reaches if reach.reached}
    return len(sizes) >= LEAST_BATCHES and max(sizes) >= LEAST_SPAN * min(sizes)


def fit_batch_line(reaches: Sequence[Reach], scale: NoiseScale | None = None) -> BatchLine | None:
    """Fit samples to target over three or more batch sizes that span a factor of four; None where no line fits.

    Bayes' rule over the critical batch size: the relative scatter and the level of the line are integrated out, and its
    median is taken. A batch size that did not reach the target counts where the line runs below what it trained. The
    prior is centred on the gradient noise scale where that was measured.

    Example:
        >>> line = fit_batch_line([Reach(b, 20_000 + 100 * b) for b in (16, 64, 256, 1024)])
        >>> 150 < line.b_crit < 250
        True
    """
    if not enough(reaches):
        return None
    reached = [reach for reach in reaches if reach.reached]
    sizes = {reach.batch for reach in reached}
    fits = [_fit_with(reaches, crit) for crit in CRITICALS]
    log_weights = [likelihood + _log_prior(crit, scale) for crit, (likelihood, _) in zip(CRITICALS, fits, strict=True)]
    weights = [math.exp(x - max(log_weights)) for x in log_weights]
    cumulated = list(itertools.accumulate(weights))
    b_crits = tuple(CRITICALS[bisect.bisect(cumulated, (i + 0.5) / DRAWS * cumulated[-1])] for i in range(DRAWS))
    crit = b_crits[DRAWS // 2]
    e_min = math.exp(_fit_with(reaches, crit)[1])
    residuals = [e_min * (1 + reach.batch / crit) / reach.samples for reach in reached]
    if max(max(r, 1 / r) for r in residuals) > MOST_RESIDUAL:
        return None
    bounded = max(likelihood for likelihood, _ in fits) - fits[-1][0] > FLAT_LOSS
    worst = max(abs(r - 1) for r in residuals)
    return BatchLine(e_min, e_min / crit, len(sizes), worst, b_crits, bounded, tuple(reaches))


def _fit_with(reaches: Sequence[Reach], crit: float) -> tuple[float, float]:
    """Return the log likelihood of a critical batch size, and log(E_min) of its line."""
    off = [(math.log(reach.samples / (1 + reach.batch / crit)), reach.reached) for reach in reaches]
    known = [x for x, reached in off if reached]
    level = sum(known) / len(known)
    prior, weight = SCATTER_PRIOR
    squares = sum((x - level) ** 2 for x in known) + sum(max(0.0, x - level) ** 2 for x, reached in off if not reached)
    return -(weight + len(known) - 1) / 2 * math.log(weight * prior**2 + squares), level


def _log_prior(crit: float, scale: NoiseScale | None) -> float:
    centre, factor = CRITICAL_PRIOR
    if scale is not None and scale.value is not None:
        centre, factor = scale.value, SCALE_FACTOR
    return -0.5 * (math.log(crit / centre) / math.log(factor)) ** 2


def answer_batch(
    line: BatchLine | None,
    scale: NoiseScale | None,
    probe: ProbeResult | None,
    batches: Sequence[int],
    *,
    step_s: Callable[[int], float | None],
    target: float | None,
    data_set_largest: int,
) -> BatchAnswer:
    """Return which batch size is fastest to the target, by the trials where they allow it, else by gradient noise.

    Args:
        line: Samples to target.
        scale: Gradient noise scale.
        probe: Step times and the micro-batch that fits; None where no step time is known.
        batches: The batch sizes that are searched, ascending.
        step_s: Seconds of a step with a batch size as it is run, accumulated where it does not fit; None where not
            known.
        target: Validation loss that the samples of the line were counted to.
        data_set_largest: Largest batch size that leaves enough steps in a full run.
    """
    crit, crit_draws = _critical(line, scale)
    star, low, high = _fastest(crit, crit_draws, probe)
    open_end = line is not None and not line.bounded
    fastest = decided_by = None
    step_times = tuple((batch, step) for batch in batches if (step := step_s(batch)) is not None)
    if star is not None and crit is not None and probe is not None:
        seconds = {batch: (1 + crit / batch) * step for batch, step in step_times}
        fastest = min(seconds, key=lambda batch: (seconds[batch], batch))
        decided_by = _decider(star, crit, probe, fastest, batches, data_set_largest)
    return BatchAnswer(
        source=None if crit is None else "trials" if line is not None else "noise scale",
        target=None if line is None else target,
        n_batches=0 if line is None else line.n_batches,
        e_min_samples=None if line is None else line.e_min_samples,
        s_min_steps=None if line is None else line.s_min_steps,
        worst_residual=None if line is None else line.worst_residual,
        b_crit=crit,
        b_crit_low=_quantile(crit_draws, INTERVAL[0]),
        b_crit_high=None if open_end else _quantile(crit_draws, INTERVAL[1]),
        noise_scale=None if scale is None else scale.value,
        noise_scale_low=None if scale is None else scale.low,
        noise_scale_high=None if scale is None else scale.high,
        b_star=star,
        b_star_low=low,
        b_star_high=None if open_end else high,
        fastest=fastest,
        decided_by=decided_by,
        reaches=() if line is None else tuple(BatchReach(r.batch, r.samples, r.reached) for r in line.reaches),
        step_times=step_times,
    )


def _critical(line: BatchLine | None, scale: NoiseScale | None) -> tuple[float | None, Sequence[float]]:
    """Return the critical batch size and draws of it."""
    if line is not None:
        return line.b_crit, line.b_crits
    if scale is None or scale.value is None or scale.high is None:
        return None, ()
    sd = math.log(scale.high / scale.low) / (2 * 1.645)
    rng = random.Random(0)
    return scale.value, [scale.value * math.exp(sd * rng.gauss(0, 1)) for _ in range(DRAWS)]


def _fastest(
    crit: float | None, draws: Sequence[float], probe: ProbeResult | None
) -> tuple[float | None, float | None, float | None]:
    """Return B* = sqrt(B_crit * a / c) with its interval; infinite where a step costs the same at any size."""
    if crit is None or probe is None or probe.step_time_line is None:
        return None, None, None
    saturation = _saturation(probe.step_time_line)
    rng = random.Random(1)
    drawn = [math.sqrt(value * _drawn_saturation(probe, rng)) for value in draws]
    return math.sqrt(crit * saturation), _quantile(drawn, INTERVAL[0]), _quantile(drawn, INTERVAL[1])


def _saturation(line: StepTimeLine) -> float:
    return line.a_s / line.c_s_per_sample if line.c_s_per_sample > 0 else math.inf


def _drawn_saturation(probe: ProbeResult, rng: random.Random) -> float:
    """Return a / c of the step times as they might have come out: each with the scatter that the line leaves."""
    line, rows = probe.step_time_line, probe.throughput
    assert line is not None
    if len({row.batch_size for row in rows}) < 2:
        return _saturation(line)
    residuals = [line.step_s(row.batch_size) / row.s_per_step - 1 for row in rows]
    scatter = math.sqrt(sum(r * r for r in residuals) / max(1, len(rows) - 2))
    fixed, slope = relative_line(
        [(row.batch_size, row.s_per_step * math.exp(scatter * rng.gauss(0, 1))) for row in rows]
    )
    return fixed / slope if slope > 0 else math.inf


def _decider(
    star: float, crit: float, probe: ProbeResult, fastest: int, batches: Sequence[int], data_set_largest: int
) -> Decider:
    """Return what keeps the fastest batch from being larger: a cap below B*, else the smaller of B*'s two parts."""
    larger = min((batch for batch in batches if batch > fastest), default=None)
    if star > probe.micro_batch_size and (larger is None or larger > probe.micro_batch_size):
        return _CAPS.get(probe.limited_by, "space")
    if larger is None and star > fastest * math.sqrt(2):
        return "data set" if 2 * fastest > data_set_largest else "space"
    assert probe.step_time_line is not None
    return "noise" if crit <= _saturation(probe.step_time_line) else "hardware"


def _quantile(values: Sequence[float], share: float) -> float | None:
    """Return a quantile of draws, some of which may be infinite; None where it is."""
    ordered = sorted(value for value in values if not math.isnan(value))
    if not ordered:
        return None
    value = ordered[min(int(share * len(ordered)), len(ordered) - 1)]
    return value if math.isfinite(value) else None
