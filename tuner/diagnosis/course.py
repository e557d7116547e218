"""Claims about the course of a run: its best point, its rises, its shape, what its beginning tells. From the trials."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ..core.trial_record import TrialRecord
from ..theory.intervals import student_quantile
from .known import Known, Ruling, beyond, percent_above, ratio_ruling, unknown
from .learning_rate import FAR, FARTHEST, comparable, equal_samples, search_again
from .tables import loss_after, seed_error, spearman, wilson

RISES = 0.02
"""A loss that rises by this share and falls by it again has oscillated."""
LEAST_RUNS = 4
LOST = 1.5
"""Times the first loss: a run that ends above it has diverged."""
JUMPS = -0.3
"""Correlation of a loss's change with the one before, from which it jumps to and fro."""
CREEPS = 0.5
"""Of its first slope: a curve that falls as fast as this at its end creeps."""
LEAST_POINTS, LEAST_FAR = 5, 6
"""Points of a curve, and curves of rates far from the best, from which shapes can be told."""
TO_THEIR_ENDS = "Let all trials run to their ends: bstune search MODEL --pruner none --n-trials 20 --budget 30 --fresh"
LUCK = 1.02
"""A loss so many times as high on a fresh seed was luck."""


def _ended(known: Known) -> list[TrialRecord]:
    assert known.facts is not None
    whole = known.facts.full_run_samples
    ended = [r for r in known.records if r.state == "complete" and r.samples + r.global_batch_size > whole]
    return [r for r in ended if r.val_loss is not None]


def best_checkpoint(known: Known) -> Ruling:
    """Keep the best checkpoint, not the last."""
    ended = [r for r in _ended(known) if (r.best_val_loss or 0) > 0 and (r.val_loss or 0) > 0]
    if len(ended) < 2:
        return unknown(f"{len(ended)} full runs are recorded, and two are needed", search_again(known))
    ratios = [math.log((r.val_loss or 1.0) / (r.best_val_loss or 1.0)) for r in ended]
    n, mean = len(ratios), sum(ratios) / len(ratios)
    scatter = math.sqrt((2 * 0.02**2 + sum((x - mean) ** 2 for x in ratios)) / (n + 1))
    half = student_quantile(n + 1) * scatter / math.sqrt(n)
    verdict = beyond(mean - half, mean + half, math.log(1.02))
    best_later = sum(x < 1e-9 for x in ratios)
    found = (
        f"the last loss of {n} full runs is {100 * math.expm1(mean):.1f} % above the lowest on the way; in "
        f"{best_later} of them the last is the lowest"
    )
    advice = {
        "holds": "Keep the best checkpoint, and judge it on data that did not choose it: it looks better than it is.",
        "does not hold": "The last weights are as good: no need to keep others.",
    }.get(verdict, "Keeping the best checkpoint does no harm.")
    logs = mean, mean - half, mean + half
    return ratio_ruling(verdict, found, advice, logs, "%", {"log_ratio": ratios}, shown=percent_above)


def first_rise(known: Known) -> Ruling:
    """The loss oscillates: do not stop at its first rise."""
    ended = [r for r in _ended(known) if len(r.values) >= 5]
    if len(ended) < LEAST_RUNS:
        return unknown(
            f"{len(ended)} full runs with their curves are recorded, and {LEAST_RUNS} are needed", search_again(known)
        )
    hits = sum(_rises_and_falls([loss for _, loss in r.values if loss is not None]) for r in ended)
    low, high = wilson(hits, len(ended))
    verdict = beyond(low, high, 0.25)
    found = (
        f"in {hits} of {len(ended)} full runs the validation loss rose by over 2 %, and later fell well below "
        "the level before"
    )
    advice = {
        "holds": "Stop only after several validations without a new lowest loss.",
        "does not hold": "A first rise mostly is the end here: a patience of one or two validations is enough.",
    }.get(verdict, "Stop only after several validations without a new lowest loss.")
    return Ruling(verdict, found, advice, 100 * hits / len(ended), "% of runs", 100 * low, 100 * high)


def _rises_and_falls(losses: Sequence[float]) -> bool:
    lowest = math.inf
    for i, loss in enumerate(losses):
        if loss > lowest + RISES * abs(lowest):
            return any(later < lowest - RISES * abs(lowest) for later in losses[i:])
        lowest = min(lowest, loss)
    return False


def short_runs_tell(known: Known) -> Ruling:
    """Short runs on a part of the samples show which setting is best."""
    assert known.facts is not None
    ended = [r for r in _ended(known) if r.stage != "confirm" and len(r.values) >= 4]
    settings = {(r.global_batch_size, r.learning_rate): r for r in ended}
    if len(settings) < 6:
        return unknown(
            f"{len(settings)} settings were run to the end on the search's seed, and 6 are needed",
            TO_THEIR_ENDS,
        )
    at = known.facts.full_run_samples / 9
    pairs = [(loss_after(r, at), r.val_loss) for r in settings.values()]
    known_pairs = [(early, last) for early, last in pairs if early is not None and last is not None]
    rho = spearman([early for early, _ in known_pairs], [last for _, last in known_pairs])
    if rho is None or len(known_pairs) < 6:
        return unknown("the runs did not report early enough", "")
    # Fisher's transformation; 1.06: Fieller, Hartley and Pearson 1957, for ranks.
    z, error = math.atanh(min(max(rho, -0.999), 0.999)), 1.03 / math.sqrt(len(known_pairs) - 3)
    low, high = math.tanh(z - 1.645 * error), math.tanh(z + 1.645 * error)
    verdict = beyond(low, high, 0.5)
    found = (
        f"over {len(known_pairs)} settings that were run to the end, ranks after a ninth of a full run agree with the "
        f"last ones to {rho:.2f} (1: fully)"
    )
    advice = {
        "holds": "Rule settings out early; confirm the few that are left in full.",
        "does not hold": "Do not choose by short runs here.",
    }.get(verdict, "Confirm in full what short runs suggest.")
    return Ruling(verdict, found, advice, rho, "(rank correlation)", low, high)


def best_looks_better(known: Known) -> Ruling:
    """The best of many trials looks better than it is."""
    by_setting: dict[tuple[int, float, str], dict[bool, list[float]]] = {}
    for r in _ended(known):
        if (r.val_loss or 0) > 0:
            key = (r.global_batch_size, r.learning_rate, repr(sorted(r.params.items())))
            by_setting.setdefault(key, {}).setdefault(r.stage == "confirm", []).append(r.val_loss or 1.0)
    pairs = [(found[False][0], found[True]) for found in by_setting.values() if len(found) == 2]
    if not pairs:
        return unknown(
            "no setting was run in full both when it was chosen and on a fresh seed",
            "Have it confirmed: bstune search MODEL --budget 20",
        )
    ratios = [sum(math.log(x / own) for x in fresh) / len(fresh) for own, fresh in pairs]
    n_fresh = sum(len(fresh) for _, fresh in pairs)
    mean = sum(ratios) / len(ratios)
    half = seed_error(known.records) * math.sqrt(1 / len(pairs) + 1 / n_fresh)
    verdict = beyond(mean - half, mean + half, math.log(LUCK))
    what = "the setting that was chosen ends" if len(pairs) == 1 else f"the {len(pairs)} settings that were chosen end"
    than = "in the run that it was chosen by" if len(pairs) == 1 else "in the runs that they were chosen by"
    found = (
        f"{what} {100 * abs(math.expm1(mean)):.1f} % {'higher' if mean > 0 else 'lower'} on fresh seeds ({n_fresh} "
        f"run{'' if n_fresh == 1 else 's'}) than {than}"
    )
    advice = {
        "holds": "Expect the loss of the fresh seeds, and report it; final numbers belong to a test set of their own.",
        "does not hold": "The search's own loss can be believed here.",
    }.get(verdict, "Expect the loss of fresh seeds, not the lowest of the search.")
    logs = mean, mean - half, mean + half
    return ratio_ruling(verdict, found, advice, logs, "%", {"log_ratio": ratios}, shown=percent_above)


def curve_shapes(known: Known) -> Ruling:
    """The shape of a curve tells whether its rate is too high or too low."""
    sides = _shapes_far_off(known)
    n = sum(map(len, sides.values()))
    if n < LEAST_FAR or not all(sides.values()):
        return unknown(
            f"{n} curves of rates about 4 times too high or too low are long enough, and {LEAST_FAR} with some of both "
            "are needed",
            TO_THEIR_ENDS,
        )
    right = {
        "above": sum(shape in ("diverged", "jumping") for shape in sides["above"]),
        "below": sum(shape == "creeping" for shape in sides["below"]),
    }
    hits = sum(right.values())
    low, high = wilson(hits, n)
    verdict = beyond(low, high, 0.5)
    found = (
        f"of {len(sides['above'])} curves with about 4 times the best rate {right['above']} diverge or jump, and of "
        f"{len(sides['below'])} with about a quarter of it {right['below']} creep"
    )
    advice = {
        "holds": "Read curves: one that jumps wants a lower rate, one that falls as fast at its end a higher one.",
        "does not hold": "Do not judge a rate by the shape of its curve: compare losses at equal samples.",
    }.get(verdict, "Compare losses at equal samples, rather than shapes.")
    return Ruling(verdict, found, advice, 100 * hits / n, "% of curves", 100 * low, 100 * high, dict(sides))


def _shapes_far_off(known: Known) -> dict[str, list[str]]:
    """Return the shapes of curves of rates far above, and far below, the best of their batch sizes.

    Where some were stopped before they had a shape, those that diverged as early do not count either: they are left of
    many that have shown nothing yet. Of a run that another one continues that one counts alone.
    """
    table = equal_samples(known)
    best = {} if table is None else {batch: rate for batch, (rate, _) in table.tuned.items()}
    continued = {record.continues for record in known.records}
    found: list[tuple[str, bool, str | None]] = []
    for r in comparable(known):
        octaves = math.log2(r.learning_rate / best[r.global_batch_size]) if r.global_batch_size in best else 0.0
        if r.number not in continued and r.values and FAR <= abs(octaves) <= FARTHEST:
            shape = shape_of([(at, math.inf if loss is None else loss) for at, loss in r.values])
            found.append(("above" if octaves > 0 else "below", len(r.values) >= LEAST_POINTS, shape))
    stopped = any(shape is None for *_, shape in found)
    return {
        side: [shape for its, whole, shape in found if its == side and shape is not None and (whole or not stopped)]
        for side in ("above", "below")
    }


def shape_of(curve: Sequence[tuple[int, float]]) -> str | None:
    """Return whether a curve has `diverged`, is `jumping`, `creeping` or `healthy`; None where it is too short to tell.

    Example:
        >>> shape_of([(1, 1.0), (2, 9.0)])
        'diverged'
        >>> [shape_of(list(enumerate(found))) for found in ([9, 5, 8, 4, 7, 3], [9, 8, 7, 6, 5, 4], [9, 5, 3, 2, 2, 2])]
        ['jumping', 'creeping', 'healthy']
    """
    if not curve:
        return None
    losses = [loss for _, loss in curve]
    if not all(map(math.isfinite, losses)) or (len(losses) > 1 and losses[-1] > LOST * losses[0] > 0):
        return "diverged"
    if len(curve) < LEAST_POINTS:
        return None
    changes = [later - loss for loss, later in itertools.pairwise(losses)]
    total = sum(change * change for change in changes)
    if total > 0 and sum(a * b for a, b in itertools.pairwise(changes)) / total < JUMPS:
        return "jumping"
    slopes = [
        (loss - later) / (then - at)
        for (at, loss), (then, later) in ((curve[0], curve[1]), (curve[-2], curve[-1]))
        if then > at
    ]
    return "creeping" if len(slopes) == 2 and slopes[1] > CREEPS * slopes[0] > 0 else "healthy"
