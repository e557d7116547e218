"""Claims about the course of a run: its best point, its first rise, and what its beginning tells. From the trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.trial_record import TrialRecord
from ..theory.intervals import student_quantile
from .known import Known, Ruling, beyond, percent_above, ratio_ruling, unknown
from .learning_rate import search_again
from .tables import loss_after, spearman, wilson

RISES = 0.02
"""A loss that rises by this share and falls by it again has oscillated."""
LEAST_RUNS = 4


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
            "Ask for more: bstune search MODEL --budget 40",
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
