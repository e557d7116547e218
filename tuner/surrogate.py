"""A Gaussian process over settings and fidelity: what a full run of an untried setting would reach, and how surely.

Losses enter as gaps to the best at the same rung, relative and compressed, so that a difference of 2 % near the best
counts as much as a factor of 2 far from it. The process is a sum of

- the landscape at the end of a full run, smooth over octaves of batch size and learning rate;
- how the picture at an early rung differs from it, which fades towards the end: a level, a slope in the batch size
  and one in the learning rate (early rungs favour small batches and large rates), and a smooth part;
- the luck of a cell, which stays, and that of a single run, which another seed does not share.

Source of the idea: freeze-thaw Bayesian optimization, Swersky et al. 2014, arXiv:1406.3896.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

KNEE = 0.08
"""Relative gap at which the compression passes from linear to logarithmic."""
WORST = 1.0
"""Compressed gap given to a run that diverged, at least."""


@dataclass(frozen=True)
class Hyper:
    """Standard deviations (of compressed gaps) and lengths (octaves) of the parts of the process."""

    landscape: float = 0.15
    length_batch: float = 3.0
    length_lr: float = 2.0
    length_extra: float = 0.7
    level: float = 0.3
    early: float = 0.08
    early_batch: float = 0.03
    early_lr: float = 0.03
    cell: float = 0.012
    run: float = 0.02
    white: float = 0.004
    bowl: float = 0.012
    """Prior rise of the compressed gap per octave squared from the centre line, levelling off."""


@dataclass(frozen=True)
class Observations:
    """Rows that were seen: coordinates, fidelity (0 at the full run, 1 at the first rung), cell, run, compressed gap."""

    x: Array
    early: Array
    cell: NDArray[np.int64]
    run: NDArray[np.int64]
    y: Array


def compress(losses: Array, best: float) -> Array:
    """Return relative gaps to the best, linear when small and logarithmic when large; a loss that is not finite becomes the worst."""
    finite = np.isfinite(losses)
    scale = max(abs(best), 1e-12)
    gap = np.where(finite, losses, best) - best
    y = KNEE * np.log1p(np.maximum(gap, 0.0) / scale / KNEE)
    worst = max(WORST * 0.5, float(y[finite].max(initial=0.0)))
    return np.where(finite, y, worst)


class Surrogate:
    """The process, conditioned on what was seen."""

    def __init__(self, seen: Observations, slope: float, hyper: Hyper | None = None) -> None:
        """Condition on the observations; the scale of the landscape is chosen among a few by marginal likelihood."""
        self._seen = seen
        self._slope = slope
        base = hyper or Hyper()
        options = [replace(base, landscape=base.landscape * k, length_lr=base.length_lr * r) for k in (0.5, 1.0, 2.0) for r in (0.75, 1.25)]
        self._fits = max((self._fit(option) for option in options), key=lambda fit: fit[0])
        self.hyper = self._fits[1]

    def _mean(self, x: Array, hyper: Hyper) -> Array:
        u = x[:, 1] - self._slope * x[:, 0]
        return np.asarray(KNEE * np.log1p(hyper.bowl * u**2 / KNEE), dtype=np.float64)

    def _kernel(self, x: Array, e: Array, c: Array, r: Array, x2: Array, e2: Array, c2: Array, r2: Array, hyper: Hyper) -> Array:
        scaled, scaled2 = self._scale(x, hyper), self._scale(x2, hyper)
        squared = np.maximum((scaled**2).sum(1)[:, None] + (scaled2**2).sum(1)[None, :] - 2 * scaled @ scaled2.T, 0.0)
        smooth = np.exp(-0.5 * squared)
        fade = e[:, None] * e2[None, :]
        near = np.exp(-np.abs(e[:, None] - e2[None, :]) / 0.7)
        total = hyper.landscape**2 * smooth + hyper.level**2 * near + hyper.early**2 * fade * smooth
        total += fade * (hyper.early_batch**2 * np.outer(x[:, 0], x2[:, 0]) + hyper.early_lr**2 * np.outer(x[:, 1], x2[:, 1]))
        total += hyper.cell**2 * (c[:, None] == c2[None, :])
        total += hyper.run**2 * near * ((r[:, None] == r2[None, :]) & (r[:, None] >= 0))
        return np.asarray(total, dtype=np.float64)

    def _scale(self, x: Array, hyper: Hyper) -> Array:
        lengths = np.full(x.shape[1], hyper.length_extra)
        lengths[:2] = hyper.length_batch, hyper.length_lr
        tilted = x.copy()
        tilted[:, 1] -= self._slope * x[:, 0]
        return np.asarray(tilted / lengths, dtype=np.float64)

    def _fit(self, hyper: Hyper) -> tuple[float, Hyper, Array, Array]:
        seen = self._seen
        cell, run = seen.cell.astype(np.float64), seen.run.astype(np.float64)
        k = self._kernel(seen.x, seen.early, cell, run, seen.x, seen.early, cell, run, hyper)
        k[np.diag_indices_from(k)] += hyper.white**2
        chol = np.asarray(np.linalg.cholesky(k), dtype=np.float64)
        residual = seen.y - self._mean(seen.x, hyper)
        half = np.asarray(np.linalg.solve(chol, residual), dtype=np.float64)
        likelihood = -0.5 * float(half @ half) - float(np.log(np.diag(chol)).sum())
        return likelihood, hyper, chol, half

    def predict(self, x: Array, cell: NDArray[np.int64]) -> tuple[Array, Array]:
        """Return mean and standard deviation of the compressed gap at the end of a full run on a seed yet unseen, its own luck left out."""
        _, hyper, chol, half = self._fits
        seen = self._seen
        zero, none = np.zeros(len(x)), np.full(len(x), -1.0)
        cross = self._kernel(
            x, zero, cell.astype(np.float64), none, seen.x, seen.early, seen.cell.astype(np.float64), seen.run.astype(np.float64), hyper
        )
        solved = np.linalg.solve(chol, cross.T)
        mean = self._mean(x, hyper) + solved.T @ half
        prior = hyper.landscape**2 + hyper.level**2 + hyper.cell**2
        variance = np.maximum(prior - (solved**2).sum(0), 1e-12)
        return mean, np.sqrt(variance)


def expected_improvement(mean: Array, sd: Array, best: float) -> Array:
    """Return the expected gain below `best` of a normal with this mean and standard deviation."""
    z = (best - mean) / sd
    return np.asarray((best - mean) * normal_cdf(z) + sd * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), dtype=np.float64)


def normal_cdf(z: Array) -> Array:
    """Return the standard normal distribution function, to 2e-7. Source: Abramowitz and Stegun 1964, 26.2.17."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    tail = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    tail = tail * t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    return np.asarray(np.where(z >= 0, 1 - tail, tail), dtype=np.float64)
