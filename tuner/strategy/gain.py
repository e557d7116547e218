"""What a run is expected to bring: by how much the seconds to the goal fall when its outcome is known.

A run is worth what it can change. If its outcome would leave the choice as it is, it brings nothing, however uncertain
it is. The gain is the mean, over what the run may show, of how far the best setting then lies ahead of what would be
chosen now; it takes into account what the run says of its neighbours. (Knowledge gradient: Frazier et al. 2009; here
for ln T.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .worth import Worth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MOST_SURPRISE = 2.0
"""In standard deviations: a setting that would be chosen only after a greater surprise is not worth a full run.

How rare such outcomes are, the surrogate cannot know, and where little is known they are all that speaks for a run.
"""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def gains(worth: Worth, ln_full: Array, curves: Array, shifts: Array, target: float) -> Array:
    """Return the expected gain in ln T of each run.

    Args:
        worth: What losses are worth.
        ln_full: Logarithm of what a full run costs, for each setting that may be chosen.
        curves: Expected compressed gaps of each of them along a full run, (settings, `CURVE`).
        shifts: By how much these move for a standard deviation of what a run shows, (runs, settings, `CURVE`).
        target: The gap that counts as reached.
    """
    now = int(np.argmin(worth.ln_time(ln_full, curves, target)))
    times = _times(worth, ln_full, curves, shifts, target)
    return np.asarray((times[:, :, now] - times.min(axis=2)) @ _WEIGHTS, dtype=np.float64)


def gains_of_confirming(
    worth: Worth,
    ln_full: Array,
    curves: Array,
    shifts: Array,
    target: float,
    confirmed: NDArray[np.bool_],
    each: NDArray[np.intp],
) -> Array:
    """Return the expected gain of running each setting on a fresh seed, where only confirmed settings may be chosen.

    Args:
        worth: As for `gains`, like the next four.
        ln_full: See there.
        curves: See there.
        shifts: Row i is the run of the setting `each[i]`.
        target: See there.
        confirmed: Whether each setting was run on a fresh seed; at least one was.
        each: The settings that would be run.
    """
    times = _times(worth, ln_full, curves, shifts, target)
    now = int(np.argmin(np.where(confirmed, worth.ln_time(ln_full, curves, target), np.inf)))
    among = np.where(confirmed[None, None, :], times, np.inf).min(axis=2)
    own = np.take_along_axis(times, each[:, None, None], axis=2)[:, :, 0]
    gain = np.asarray((times[:, :, now] - np.minimum(among, own)) @ _WEIGHTS, dtype=np.float64)
    surprise = MOST_SURPRISE * np.abs(shifts[np.arange(len(each)), each])
    hoped = worth.ln_time(ln_full[each], curves[each] - surprise, target)
    gain[~confirmed[each] & (hoped > worth.ln_time(ln_full[now], curves[now], target))] = 0.0
    return gain


def _times(worth: Worth, ln_full: Array, curves: Array, shifts: Array, target: float) -> Array:
    """Return ln T for each run, each outcome of it, and each setting."""
    outcomes = curves[None, None] + _NODES[None, :, None, None] * shifts[:, None]
    return worth.ln_time(ln_full[None, None, :], outcomes, target)
