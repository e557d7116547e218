"""Whether the runs of a search say anything at all: losses that no rate changes, that never fall, or that rise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ..core.remarks import Caution
from .ledger import Run

SAME = 1e-9
"""Relative: losses nearer to each other than this are the same number."""
RATES, RATE_FACTOR = 3, 16.0
"""So many rates, so far apart, that give the same losses are no accident."""
FALL = 0.02
"""A loss that has not fallen by this share has not fallen."""
CURVES, STRETCH = 2, 9.0
"""So many runs, over so many times the samples of their first report, show whether losses fall."""
RISING, RISE, FALLING = 3, 0.2, 0.15
"""So many runs that end above their first report by the second, where none ends below its own by the third, look like
those of a score: an accuracy rises, and moves by some percent at chance level. A rate that is too large makes a loss
rise as well, but then there are others at which it falls."""


def nothing_learned(runs: Iterable[Run]) -> Caution | None:
    """Return why the runs say nothing of how to train, or None: a setting chosen by them is then no answer."""
    known = [run for run in runs if run.values]
    return _rate_ignored(known) or _never_fell(known)


def score_like(runs: Iterable[Run]) -> Caution | None:
    """Return a caution if what is reported rises in training and never falls, as a score does; else None."""
    curves = [[loss for _, loss in sorted(run.values.items())] for run in runs if len(run.values) > 1]
    finite = [curve for curve in curves if all(map(math.isfinite, curve)) and curve[0] > 0]
    rising = [curve for curve in finite if curve[-1] > (1 + RISE) * curve[0]]
    if len(rising) < RISING or any(curve[-1] < (1 - FALLING) * curve[0] for curve in finite):
        return None
    first, last = max(((curve[0], curve[-1]) for curve in rising), key=lambda ends: ends[1])
    return Caution("score_like", {"n": len(rising), "first": first, "last": last, "percent": 100 * FALLING})


def _rate_ignored(runs: Sequence[Run]) -> Caution | None:
    """Return a caution if the losses at equal batch, samples and seed are the same at all learning rates."""
    groups: dict[tuple[object, ...], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        batch, _, *params = run.key
        for samples, loss in run.values.items():
            # Where a schedule is scaled to the end of a run, runs of other ends differ for another reason.
            cell = (batch, *params, run.seed, run.end_samples, samples)
            groups[cell][run.setting.learning_rate].append(loss)
    widest: list[float] = []
    for by_rate in groups.values():
        losses = [loss for each in by_rate.values() for loss in each]
        if len(by_rate) < 2 or not any(map(math.isfinite, losses)):
            continue
        if not all(map(math.isfinite, losses)) or max(losses) - min(losses) > SAME * max(map(abs, losses)):
            return None
        rates = sorted(by_rate)
        if len(rates) >= RATES and rates[-1] / rates[0] >= RATE_FACTOR * (1 - SAME) and len(rates) > len(widest):
            widest = rates
    return Caution("rate_ignored", {"rates": len(widest), "low": widest[0], "high": widest[-1]}) if widest else None


def _never_fell(runs: Sequence[Run]) -> Caution | None:
    """Return a caution if no run ends below the first losses of all, and none below its own."""
    curves = []
    for run in runs:
        finite = [(samples, loss) for samples, loss in sorted(run.values.items()) if math.isfinite(loss)]
        if finite:
            curves.append(finite)
    if sum(curve[-1][0] >= STRETCH * curve[0][0] for curve in curves) < CURVES:
        return None
    first_at = min(curve[0][0] for curve in curves)
    first = min(curve[0][1] for curve in curves if curve[0][0] == first_at)
    lowest = min(curve[-1][1] for curve in curves)
    fell = any(_below(min(loss for _, loss in curve), curve[0][1]) for curve in curves)
    if fell or _below(lowest, first):
        return None
    longest = max(curve[-1][0] for curve in curves)
    return Caution("nothing_learned", {"first": first, "percent": 100 * FALL, "longest": longest})


def _below(loss: float, first: float) -> bool:
    return loss < first - FALL * abs(first)
