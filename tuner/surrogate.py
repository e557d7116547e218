"""A Gaussian process over settings and fidelity: what a full run of an untried setting would reach, and how surely.

Losses enter as gaps to the best loss seen anywhere, relative and compressed (linear near the best, logarithmic far from
it), so that 2 % near the best counts as much as a factor of 2 far away. The process is a sum of

- a curve over the integrated learning rate, log2(learning rate / batch size * samples): runs that are not done learning
  fall on one curve whatever their batch size, learning rate and length, so a short run tells of long ones;
- the landscape at the end of a full run, smooth over octaves of batch size and of learning rate off the centre line;
- a level for each fidelity, and a landscape that fades in with it;
- the luck of a cell, which stays, and that of a single run, which another seed does not share.

What is far from the best is believed less, so that the cliffs do not shape the valley. The centre and slope of the valley, the
height of the landscape and the noise of runs are chosen by marginal likelihood.

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
VALLEYS = tuple(0.5 * k for k in range(-16, 17))
"""Octaves off the centre line at which the bottom of the valley is looked for."""
DIVERGED_BEYOND = 0.3
"""A diverged run counts as this much worse than the worst finite one, in compressed gaps."""


@dataclass(frozen=True)
class Hyper:
    """Standard deviations (of compressed gaps) and lengths (octaves) of the parts of the process."""

    slope: float = 0.6
    landscape: float = 2.0
    length_batch: float = 3.0
    length_lr: float = 2.5
    length_extra: float = 0.7
    learning: float = 1.0
    """Of the curve over the integrated learning rate."""
    length_learning: float = 2.0
    level: float = 3.0
    length_level: float = 2.0
    early: float = 1.0
    length_early: float = 2.0
    cell: float = 0.15
    run: float = 0.5
    length_run: float = 3.0
    white: float = 0.05
    far: float = 0.3
    """Growth of the noise per compressed gap beyond `near`."""
    near: float = 0.5
    rise: float = 0.6
    """Prior rise per octave of learning rate off the valley, rounded at its bottom."""
    valley: float = 0.0
    """Octaves by which the bottom of the valley lies above the centre line."""
    valley_sd: float = 3.0
    typical: float = 0.5
    """Prior mean at the bottom of the valley."""


@dataclass(frozen=True)
class Observations:
    """Rows that were seen: coordinates, octaves of a full run trained (0 at the end, negative before), cell, run, compressed gap."""

    x: Array
    octaves: Array
    cell: Array
    run: Array
    y: Array


def compress(losses: Array) -> Array:
    """Return relative gaps to the best, linear when small and logarithmic when large; what is not finite lies beyond the worst."""
    finite = np.isfinite(losses)
    best = float(losses[finite].min())
    spread = float(np.median(losses[finite])) - best
    scale = max(abs(best), 0.05 * spread, 1e-12)  # A best loss of zero has no relative gaps.
    y = np.log1p(np.where(finite, losses - best, 0.0) / scale / KNEE)
    return np.where(finite, y, float(y[finite].max()) + DIVERGED_BEYOND)


class Surrogate:
    """The process, conditioned on what was seen."""

    def __init__(self, seen: Observations, slope: float, slope_sd: float, hyper: Hyper | None = None) -> None:
        """Condition on the observations, choosing slope, height and noise by marginal likelihood, one after the other."""
        self._seen = seen
        base = replace(hyper or Hyper(), slope=slope)
        best = self._fit(base, 0.0)
        groups: tuple[list[tuple[dict[str, float], float]], ...] = (
            [({"slope": slope + k * slope_sd}, -0.5 * k**2) for k in (-1.5, 1.5)],
            [({"run": base.run * k, "cell": base.cell * k}, 0.0) for k in (0.5, 2.0, 3.0)],
            [({"landscape": base.landscape * k, "early": base.early * k}, 0.0) for k in (0.5, 2.0)],
        )
        for group in groups:
            found = [self._fit(replace(best.hyper, **change), prior) for change, prior in group]
            best = max([best, *found], key=lambda fitted: fitted.evidence)
        self._fitted = best
        self.hyper = best.hyper

    def predict(self, x: Array, cell: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the compressed gap at the end of a full run, the luck of the seed left out.

        The deviation is that of the difference from the setting with the lowest mean: what all runs have in common does not count.
        """
        mean, solved = self._at_the_end(x, cell)
        n, h = len(x), self.hyper
        i = int(np.argmin(mean))
        end, none = np.zeros(n), np.full(n, -1.0)
        to_best = _kernel(h, x, end, cell, none, x[i : i + 1], end[:1], cell[i : i + 1], none[:1])[:, 0] - solved.T @ solved[:, i]
        variance = _variance(h) - (solved**2).sum(0)
        return mean, np.sqrt(np.maximum(variance + variance[i] - 2 * to_best, 1e-9))

    def knowledge_gain(self, targets: tuple[Array, Array], actions: Observations) -> Array:
        """Return by how much the lowest mean at the end of a full run is expected to fall once each action has been observed.

        Args:
            targets: Coordinates and cells of the settings that could be chosen in the end.
            actions: What could be observed, `y` left out of account; a negative run is a new one.

        Source: the knowledge gradient, Frazier et al. 2009, INFORMS J. Computing 21:599; the normal is integrated at a few nodes.
        """
        h, seen = self.hyper, self._seen
        x, cell = targets
        mean, solved = self._at_the_end(x, cell)
        back = _kernel(h, actions.x, actions.octaves, actions.cell, actions.run, seen.x, seen.octaves, seen.cell, seen.run)
        solved_actions = np.asarray(np.linalg.solve(self._fitted.chol, back.T), dtype=np.float64)
        end, none = np.zeros(len(x)), np.full(len(x), -1.0)
        cross = _kernel(h, actions.x, actions.octaves, actions.cell, np.full(len(actions.x), -2.0), x, end, cell, none)
        cross -= solved_actions.T @ solved
        expected = _mean(h, actions.x) + solved_actions.T @ self._fitted.half
        noise = h.white**2 + (h.far * np.maximum(expected - h.near, 0.0)) ** 2
        variance = np.maximum(_variance(h) + h.run**2 - (solved_actions**2).sum(0), 1e-9) + noise
        moves = cross / np.sqrt(variance)[:, None]
        nodes, weights = np.polynomial.hermite_e.hermegauss(9)
        weights = weights / weights.sum()
        lowest = np.stack([(mean[None, :] + moves * z).min(1) for z in nodes], axis=1)
        return np.asarray(np.maximum(mean.min() - lowest @ weights, 0.0), dtype=np.float64)

    def _at_the_end(self, x: Array, cell: Array) -> tuple[Array, Array]:
        seen, n = self._seen, len(x)
        cross = _kernel(self.hyper, x, np.zeros(n), cell, np.full(n, -1.0), seen.x, seen.octaves, seen.cell, seen.run)
        solved = np.asarray(np.linalg.solve(self._fitted.chol, cross.T), dtype=np.float64)
        return np.asarray(_mean(self.hyper, x) + solved.T @ self._fitted.half, dtype=np.float64), solved

    def _fit(self, hyper: Hyper, prior: float) -> _Fitted:
        seen = self._seen
        k = _kernel(hyper, seen.x, seen.octaves, seen.cell, seen.run, seen.x, seen.octaves, seen.cell, seen.run)
        k[np.diag_indices_from(k)] += hyper.white**2 + (hyper.far * np.maximum(seen.y - hyper.near, 0.0)) ** 2
        chol = np.asarray(np.linalg.cholesky(k), dtype=np.float64)
        valleys = [replace(hyper, valley=valley) for valley in VALLEYS]
        residuals = np.stack([seen.y - _mean(option, seen.x) for option in valleys], axis=1)
        halves = np.asarray(np.linalg.solve(chol, residuals), dtype=np.float64)
        fits = -0.5 * (halves**2).sum(0) - 0.5 * (np.array(VALLEYS) / hyper.valley_sd) ** 2
        i = int(np.argmax(fits))
        evidence = prior + float(fits[i]) - float(np.log(np.diag(chol)).sum())
        return _Fitted(evidence, valleys[i], chol, halves[:, i])


@dataclass(frozen=True)
class _Fitted:
    evidence: float
    hyper: Hyper
    chol: Array
    half: Array


def _variance(h: Hyper) -> float:
    """Return the prior variance of any setting at any fidelity, the luck of a run left out."""
    return h.level**2 + h.learning**2 + h.landscape**2 + h.early**2 + h.cell**2


def _mean(h: Hyper, x: Array) -> Array:
    off = x[:, 1] - h.slope * x[:, 0] - h.valley
    return np.asarray(h.typical + h.rise * (np.sqrt(1 + off**2) - 1), dtype=np.float64)


def _kernel(h: Hyper, x: Array, s: Array, c: Array, r: Array, x2: Array, s2: Array, c2: Array, r2: Array) -> Array:
    """Return the covariance of rows with columns: coordinates, octaves of a full run, cell, run."""
    lengths = np.concatenate([[h.length_batch, h.length_lr], np.full(x.shape[1] - 2, h.length_extra)])
    tilted, tilted2 = _tilt(x, h.slope) / lengths, _tilt(x2, h.slope) / lengths
    where = (tilted**2).sum(1)[:, None] + (tilted2**2).sum(1)[None, :] - 2 * tilted @ tilted2.T
    fidelity = (s[:, None] - s2[None, :]) ** 2
    done, done2 = x[:, 1] - x[:, 0] + s, x2[:, 1] - x2[:, 0] + s2  # Octaves of the integrated learning rate.
    total = h.level**2 * np.exp(-0.5 * fidelity / h.length_level**2)
    total += h.learning**2 * np.exp(-0.5 * ((done[:, None] - done2[None, :]) / h.length_learning) ** 2)
    total += np.exp(-0.5 * where) * (h.landscape**2 + h.early**2 * np.exp(-0.5 * fidelity / h.length_early**2))
    total += h.cell**2 * (c[:, None] == c2[None, :])
    same = (r[:, None] == r2[None, :]) & (r[:, None] >= 0)
    total += h.run**2 * same * np.exp(-np.sqrt(fidelity) / h.length_run)
    return np.asarray(total, dtype=np.float64)


def _tilt(x: Array, slope: float) -> Array:
    tilted = x.copy()
    tilted[:, 1] -= slope * x[:, 0]
    return np.asarray(tilted, dtype=np.float64)


def expected_improvement(mean: Array, sd: Array, best: float) -> Array:
    """Return the expected gain below `best` of a normal with this mean and standard deviation."""
    z = (best - mean) / sd
    return np.asarray((best - mean) * normal_cdf(z) + sd * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), dtype=np.float64)


def normal_cdf(z: Array) -> Array:
    """Return the standard normal distribution function, to 1e-7. Source: Abramowitz and Stegun 1964, 26.2.17."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    tail = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    tail = tail * t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    return np.asarray(np.where(z >= 0, 1 - tail, tail), dtype=np.float64)
