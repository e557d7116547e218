"""A Gaussian process over settings and fidelity: what a full run of an untried setting would reach, and how surely.

Losses enter as gaps to the best loss seen anywhere, relative and compressed (linear near the best, logarithmic far from
it), so that 2 % near the best counts as much as a factor of 2 far away. The process is a sum of

- a curve over the integrated learning rate, log2(learning rate / batch size * samples): runs that are not done learning
  fall on one curve whatever their batch size, learning rate and length, so a short run tells of long ones;
- the landscape at the end of a full run, smooth over octaves of batch size and of learning rate off the centre line;
- a level for each fidelity, and a landscape that fades in with it;
- the luck of a cell, which stays, that of a seed, which all settings share that are run on it, and that of a run.

What is far from the best of its fidelity is believed less, so that the cliffs do not shape the valley. The centre and
slope of the valley, the height of the landscape and the noise of runs are chosen by marginal likelihood.

Source of the idea: freeze-thaw Bayesian optimization, Swersky et al. 2014, arXiv:1406.3896.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

KNEE = 0.04
"""Relative gap at which the compression passes from linear to logarithmic."""
VALLEYS = tuple(0.5 * k for k in range(-16, 17))
"""Octaves off the centre line at which the bottom of the valley is looked for."""
DIVERGED_BEYOND = 0.3
"""A diverged run counts as this much worse than the worst finite one, in compressed gaps."""


@dataclass(frozen=True)
class Hyper:
    """Standard deviations (of compressed gaps) and lengths (octaves) of the parts of the process.

    The figures were fitted to 47 recorded tables at once (three tasks on digits, two on MNIST, eight on tabular sets
    and text, 34 of LCBench's surrogate) by the density of the final losses given earlier rungs, and then rounded.
    """

    slope: float = 0.6
    landscape: float = 0.8
    length_batch: float = 3.0
    length_lr: float = 1.0
    length_extra: float = 0.7
    learning: float = 1.0
    """Of the curve over the integrated learning rate."""
    length_learning: float = 2.25
    level: float = 1.3
    length_level: float = 6.0
    early: float = 1.1
    length_early: float = 4.0
    cell: float = 0.33
    run: float = 0.37
    seed: float = 0.2
    """The same first weights, order of the data and draws: on 17 recorded tables about half of `run` (median)."""
    length_run: float = 2.0
    """Of the luck of a run, and of that of a seed."""
    white: float = 0.03
    far: float = 0.37
    """Growth of the noise per compressed gap beyond `near`."""
    near: float = 2.0
    rise: float = 0.35
    """Prior rise per octave of learning rate off the valley, rounded at its bottom."""
    valley: float = 0.0
    """Octaves by which the bottom of the valley lies above the centre line."""
    valley_sd: float = 3.0
    diverged: float = 2.0
    """That a run diverged says that it is bad, and not how bad: the valley may end in a cliff."""
    growth: float = 0.25
    """Prior rise per octave of batch: at equal samples larger ones made fewer steps (McCandlish et al. 2018, 2.11)."""
    typical: float = 0.2
    """Prior mean at the bottom of the valley."""


@dataclass(frozen=True)
class Observations:
    """Rows that were seen: coordinates, octaves of a full run (negative, 0 at its end), and so on."""

    x: Array
    octaves: Array
    cell: Array
    run: Array
    """The number of the run; negative: one of its own."""
    seed: Array
    """That it was run on; negative: one of its own."""
    y: Array
    """Compressed gaps."""
    diverged: Array
    """1 where the loss was not finite, else 0."""


@dataclass(frozen=True)
class Ends:
    """Settings at one fidelity: coordinates, cell, expected compressed gap, and covariance with what was seen."""

    x: Array
    cell: Array
    mean: Array
    solved: Array
    octaves: float
    """Of a full run: 0 at its end."""

    @property
    def rows(self) -> Observations:
        """The same as rows on a seed yet unseen."""
        return _unseen(self.x, self.cell, self.octaves)

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> Ends:
        """Return some of them."""
        return Ends(self.x[rows], self.cell[rows], self.mean[rows], self.solved[:, rows], self.octaves)

    def joined(self, other: Ends) -> Ends:
        """Return these and others of the same fidelity."""
        rows = (
            np.concatenate([self.x, other.x]),
            np.concatenate([self.cell, other.cell]),
            np.concatenate([self.mean, other.mean]),
        )
        return Ends(*rows, np.concatenate([self.solved, other.solved], axis=1), self.octaves)


def compress(losses: Array) -> Array:
    """Return relative gaps to the best, linear if small, logarithmic if large; the not finite are beyond the worst."""
    finite = np.isfinite(losses)
    best, scale = best_and_scale(losses)
    y = np.log1p(np.where(finite, losses - best, 0.0) / scale / KNEE)
    return np.where(finite, y, float(y[finite].max()) + DIVERGED_BEYOND)


def best_and_scale(losses: Array) -> tuple[float, float]:
    """Return the lowest loss, and what gaps to it are measured by."""
    finite = losses[np.isfinite(losses)]
    best = float(finite.min())
    spread = float(np.median(finite)) - best
    return best, max(abs(best), 0.05 * spread, 1e-12)  # A best loss of zero has no relative gaps.


def expand(compressed: Array) -> Array:
    """Return the relative gaps of compressed ones.

    Example:
        >>> expand(compress(np.array([1.0, 1.25])))
        array([0.  , 0.25])
    """
    return KNEE * np.expm1(compressed)


class Surrogate:
    """The process, conditioned on what was seen."""

    def __init__(self, seen: Observations, slope: float, slope_sd: float, hyper: Hyper | None = None) -> None:
        """Condition on the observations; slope, height and noise are chosen by marginal likelihood in turn."""
        self._seen = seen
        base = replace(hyper or Hyper(), slope=slope)
        self._noise = _noise(base, seen)  # The same with all that is chosen below.
        parts = _Parts.of(base, seen, seen)
        best = self._fit(base, parts, 0.0)
        for k in (-1.5, 1.5):
            option = replace(base, slope=slope + k * slope_sd)
            best = max(
                best,
                self._fit(option, parts.tilted(option, seen, seen), -0.5 * k**2),
                key=lambda fitted: fitted.evidence,
            )
        parts = parts if best.hyper.slope == base.slope else parts.tilted(best.hyper, seen, seen)
        scales: tuple[list[dict[str, float]], ...] = (
            [{name: getattr(base, name) * k for name in ("run", "cell", "seed")} for k in (0.5, 2.0, 3.0)],
            [{"landscape": base.landscape * k, "early": base.early * k} for k in (0.5, 2.0)],
        )
        for group in scales:
            found = [self._fit(replace(best.hyper, **change), parts, best.prior) for change in group]
            best = max([best, *found], key=lambda fitted: fitted.evidence)
        self._fitted = best
        self._root = np.asarray(np.linalg.inv(best.chol), dtype=np.float64)
        self.hyper = best.hyper

    def ends(self, x: Array, cell: Array, octaves: float = 0.0) -> Ends:
        """Return what is expected of these settings at a fidelity, the luck of the seed left out."""
        mean, solved = self._condition(_unseen(x, cell, octaves))
        return Ends(x, cell, mean, solved, octaves)

    def deviation(self, ends: Ends) -> Array:
        """Return the sd of each end's difference from the one of lowest mean: what all share does not count."""
        h, i = self.hyper, int(np.argmin(ends.mean))
        best = ends.take([i])
        to_best = _kernel(h, ends.rows, best.rows)[:, 0] - ends.solved.T @ best.solved[:, 0]
        variance = _variance(h) - (ends.solved**2).sum(0)
        return np.asarray(np.sqrt(np.maximum(variance + variance[i] - 2 * to_best, 1e-9)), dtype=np.float64)

    def shifts(self, rows: Observations, ends: Sequence[Ends]) -> list[Array]:
        """Return by how much what is expected would move for each standard deviation of what a row would show.

        Args:
            rows: Rows that may be seen next; a run that was seen so far bears its number there, a new one a number of
                its own.
            ends: What is asked for, fidelity by fidelity.

        Returns:
            For each of `ends` an array of (rows, settings).
        """
        h = self.hyper
        _, solved = self._condition(rows)
        variance = _variance(h) + h.run**2 + h.seed**2 + h.white**2 - (solved**2).sum(0)
        sd = np.sqrt(np.maximum(variance, h.white**2))[:, None]
        return [
            np.asarray((_kernel(h, rows, each.rows) - solved.T @ each.solved) / sd, dtype=np.float64) for each in ends
        ]

    def _condition(self, rows: Observations) -> tuple[Array, Array]:
        """Return the mean of rows, and their covariance with what was seen, solved by its root."""
        solved = np.asarray(self._root @ _kernel(self.hyper, self._seen, rows), dtype=np.float64)
        return np.asarray(_mean(self.hyper, rows.x) + solved.T @ self._fitted.half, dtype=np.float64), solved

    def _fit(self, hyper: Hyper, parts: _Parts, prior: float) -> _Fitted:
        seen = self._seen
        k = parts.kernel(hyper)
        k[np.diag_indices_from(k)] += self._noise
        chol = np.asarray(np.linalg.cholesky(k), dtype=np.float64)
        valleys = np.array(VALLEYS)
        residuals = (seen.y - hyper.growth * seen.x[:, 0])[:, None] - _rise(
            hyper, seen.x[:, 1:2] - hyper.slope * seen.x[:, :1] - valleys[None, :]
        )
        halves = np.asarray(np.linalg.solve(chol, residuals), dtype=np.float64)
        fits = -0.5 * (halves**2).sum(0) - 0.5 * (valleys / hyper.valley_sd) ** 2
        i = int(np.argmax(fits))
        evidence = prior + float(fits[i]) - float(np.log(np.diag(chol)).sum())
        return _Fitted(evidence, prior, replace(hyper, valley=VALLEYS[i]), chol, halves[:, i])


@dataclass(frozen=True)
class _Fitted:
    evidence: float
    prior: float
    hyper: Hyper
    chol: Array
    half: Array


def _noise(h: Hyper, seen: Observations) -> Array:
    """Return the variance of what was seen besides luck: what is far from the best of its fidelity is believed less."""
    beyond = seen.y.copy()
    for fidelity in np.unique(seen.octaves):
        same = seen.octaves == fidelity
        beyond[same] -= seen.y[same].min()
    far = h.far * np.maximum(beyond - h.near, 0.0)
    return np.asarray(h.white**2 + far**2 + (h.diverged * seen.diverged) ** 2, dtype=np.float64)


def _variance(h: Hyper) -> float:
    """Return the prior variance of any setting at any fidelity, the luck of runs and seeds left out."""
    return h.level**2 + h.learning**2 + h.landscape**2 + h.early**2 + h.cell**2


def _mean(h: Hyper, x: Array) -> Array:
    return _rise(h, x[:, 1] - h.slope * x[:, 0] - h.valley) + h.growth * x[:, 0]


def _rise(h: Hyper, off: Array) -> Array:
    return np.asarray(h.typical + h.rise * (np.sqrt(1 + off**2) - 1), dtype=np.float64)


@dataclass(frozen=True)
class _Parts:
    """The correlations that the kernel is a weighted sum of; only one of them depends on the slope."""

    level: Array
    learning: Array
    where: Array
    early: Array
    cell: Array
    run: Array
    seed: Array

    @classmethod
    def of(cls, h: Hyper, a: Observations, b: Observations) -> _Parts:
        """Return the parts between two sets of rows."""
        fidelity = np.abs(a.octaves[:, None] - b.octaves[None, :])
        done, done2 = (
            a.x[:, 1] - a.x[:, 0] + a.octaves,
            b.x[:, 1] - b.x[:, 0] + b.octaves,
        )  # Octaves of the integrated learning rate.
        fading = np.exp(-fidelity / h.length_run)
        return cls(
            level=np.exp(-0.5 * (fidelity / h.length_level) ** 2),
            learning=np.exp(-0.5 * ((done[:, None] - done2[None, :]) / h.length_learning) ** 2),
            where=_where(h, a.x, b.x),
            early=np.exp(-0.5 * (fidelity / h.length_early) ** 2),
            cell=np.asarray(a.cell[:, None] == b.cell[None, :], dtype=np.float64),
            run=np.where(_shared(a.run, b.run), fading, 0.0),
            seed=np.where(_shared(a.seed, b.seed), fading, 0.0),
        )

    def tilted(self, h: Hyper, a: Observations, b: Observations) -> _Parts:
        """Return the parts at another slope."""
        return replace(self, where=_where(h, a.x, b.x))

    def kernel(self, h: Hyper) -> Array:
        """Return the covariance."""
        total = h.level**2 * self.level + h.learning**2 * self.learning
        total += self.where * (h.landscape**2 + h.early**2 * self.early)
        total += h.cell**2 * self.cell + h.run**2 * self.run + h.seed**2 * self.seed
        return np.asarray(total, dtype=np.float64)


def _kernel(h: Hyper, a: Observations, b: Observations) -> Array:
    return _Parts.of(h, a, b).kernel(h)


def _where(h: Hyper, x: Array, x2: Array) -> Array:
    """Return how near two settings are: octaves of batch, octaves off the centre line, extras."""
    lengths = np.concatenate([[h.length_batch, h.length_lr], np.full(x.shape[1] - 2, h.length_extra)])
    tilted, tilted2 = _tilt(x, h.slope) / lengths, _tilt(x2, h.slope) / lengths
    squared = (tilted**2).sum(1)[:, None] + (tilted2**2).sum(1)[None, :] - 2 * tilted @ tilted2.T
    return np.asarray(np.exp(-0.5 * np.maximum(squared, 0.0)), dtype=np.float64)


def _tilt(x: Array, slope: float) -> Array:
    tilted = x.copy()
    tilted[:, 1] -= slope * x[:, 0]
    return np.asarray(tilted, dtype=np.float64)


def _unseen(x: Array, cell: Array, octaves: float) -> Observations:
    """Return rows at one fidelity on a seed yet unseen."""
    n = len(x)
    own = np.full(n, -1.0)
    return Observations(x, np.full(n, octaves), cell, own, own, np.zeros(n), np.zeros(n))


def _shared(a: Array, b: Array) -> NDArray[np.bool_]:
    """Return which have the same number, (a, b); a negative one is shared by none."""
    return np.asarray((a[:, None] == b[None, :]) & (a[:, None] >= 0))
