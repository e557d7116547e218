"""Claims about a small and a large batch side by side: crossed with rates, at equal training loss, at their ends."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.diagnosis import Judgement
from ..core.examination import Look
from ..report.units import number
from .known import Known, Ruling, beyond, percent_above, ratio_ruling, unknown, unmeasured
from .learning_rate import DIVERGED, equal_samples
from .measured import CROSSED_SHARE, SHARE, TIMES_APART, ghost_size, own_split, two_sizes
from .model import NO_NORM, has_norms
from .noise import mean_interval
from .tables import EqualSamples, seed_error

BAD = 1.15
"""Crossed pairs that end at more than so many times the loss of the others are bad."""
WORSE = 0.03
"""ln of the validation loss for each doubling of the batch, at equal training loss, that counts as worse."""
SHARPER = 1.25
"""Times the curvature that counts as sharper."""
BETTER = 0.03
"""ln of a loss ratio: less is as good."""
LEAST_SD = 0.02
"""ln of a loss: two seeds differ by no less."""
TOO_SHORT = Ruling(
    "not applicable", f"a full run is too short, or the data too few, for two batch sizes {TIMES_APART} times apart"
)


def crossed_pairs(known: Known) -> Ruling:
    """A small batch wants a low rate and a large one a high rate; crossed they are bad."""
    looks = known.looked("crossed_pairs")
    if looks:
        return _crossed_with_seeds(looks[0])
    if (found := _crossed_trials(known)) is not None:
        return found
    if known.facts is not None and two_sizes(known, CROSSED_SHARE) is None:
        return TOO_SHORT
    return unmeasured(known, "crossed_pairs")


def _crossed_with_seeds(look: Look) -> Ruling:
    small, large = map(int, look.values["sizes"])
    names = ("small_low", "large_high", "small_high", "large_low")
    losses = {name: [x if math.isfinite(x) else math.inf for x in look.values[name]] for name in names}
    if any(loss <= 0 for found in losses.values() for loss in found):
        return unknown("losses of 0 and below cannot be compared as ratios", "")
    low, high = look.values["rates"]
    each = {name: middle(found) for name, found in losses.items()}
    said = (
        f"after {look.values['samples'][0]:,.0f} samples batch {small} at rate {low:.3g} ends at {each['small_low']} "
        f"and {large} at {high:.3g} at {each['large_high']}; crossed, {small} at {high:.3g} ends at "
        f"{each['small_high']} and {large} at {low:.3g} at {each['large_low']}"
    )
    if not look.values["between"][0]:
        return unknown(f"{said}; the best rates lie beyond both", "Search for a rate: bstune search MODEL")
    rows = list(zip(*losses.values(), strict=True))
    if any(math.isinf(a) or math.isinf(b) for a, b, _, _ in rows):
        return unknown(f"{said}; pairs that should be good diverged", "Search for a rate: bstune search MODEL")
    mean, low_end, high_end = mean_interval([_contrast(row) for row in rows], least_sd=LEAST_SD)
    data = {"batch_size": [small, large], "learning_rate": [low, high], **losses}
    return _crossed(said, (mean, low_end, high_end), data)


def middle(losses: Sequence[float]) -> str:
    """Return the middle of losses by ratios as text: their geometric mean.

    Example:
        >>> middle([1.0, 4.0]), middle([1.0, math.inf])
        ('2', 'no finite loss')
    """
    finite = all(math.isfinite(loss) and loss > 0 for loss in losses)
    return number(statistics.geometric_mean(losses)) if finite else "no finite loss"


def _contrast(losses: Sequence[float]) -> float:
    """Return ln of the loss of crossed pairs over that of the others: (small, large, small crossed, large crossed)."""
    small, large, *crossed = (math.log(loss) if math.isfinite(loss) else math.inf for loss in losses)
    return sum(min(DIVERGED, other - own) for other, own in zip(crossed, (small, large), strict=True)) / 2


def _crossed(said: str, logs: tuple[float, float, float], data: Mapping[str, Any]) -> Ruling:
    verdict = beyond(logs[1], logs[2], math.log(BAD))
    advice = {
        "holds": "Never change the batch alone: raise the rate with it. How far, a search tells (coupling): bstune "
        "search MODEL",
        "does not hold": "Keep the rate when you change the batch, within a factor of 8.",
    }.get(verdict, "Let a search tell: bstune search MODEL")
    return ratio_ruling(verdict, said, advice, logs, "times the loss, crossed", data)


def _crossed_trials(known: Known) -> Ruling | None:
    """Return what trials tell of it, at the best rates of the smallest and the largest batch; None if nothing."""
    table = equal_samples(known)
    if table is None or len(table.tuned) < 2 or min(loss for _, loss in table.tuned.values()) <= 0:
        return None
    small, large = min(table.tuned), max(table.tuned)
    if large < TIMES_APART / 2 * small:
        return None
    (low, _), (high, _) = table.tuned[small], table.tuned[large]
    own = [table.tuned[small][1], table.tuned[large][1]]
    crossed = [_loss_at(table, small, high), _loss_at(table, large, low)]
    mean = _contrast([*own, *crossed])
    half = seed_error(known.records)
    said = (
        f"{table.when} batch {small} at rate {low:.3g} ends at {number(own[0])} and {large} at {high:.3g} at "
        f"{number(own[1])}; crossed, {small} at {high:.3g} ends at {_shown(crossed[0])} and {large} at {low:.3g} at "
        f"{_shown(crossed[1])}"
    )
    data = {"batch_size": [small, large], "learning_rate": [low, high], "own": own, "crossed": crossed}
    found = _crossed(said, (mean, mean - half, mean + half), data)
    # Of rates beyond those that were tried only a bound is known.
    beyond_tried = high > 2 * max(table.losses[small]) or low < min(table.losses[large]) / 2
    return None if found.verdict == "cannot tell" or (beyond_tried and found.verdict != "holds") else found


def _shown(loss: float) -> str:
    return f"about {number(loss)}" if math.isfinite(loss) else "no finite loss"


def _loss_at(table: EqualSamples, batch: int, rate: float) -> float:
    """Return the loss at a rate, between those that were tried on a line in logarithms; beyond them, that of the last.

    Losses rise away from the best rate, so that of the last is too low.
    """
    row = sorted(table.losses[batch].items())
    if rate <= row[0][0] or rate >= row[-1][0]:
        return row[0][1] if rate <= row[0][0] else row[-1][1]
    for (left, its), (right, other) in itertools.pairwise(row):
        if left <= rate <= right and its > 0 and other > 0 and math.isfinite(other):
            share = math.log(rate / left) / math.log(right / left)
            return its if math.isinf(its) else math.exp((1 - share) * math.log(its) + share * math.log(other))
        if left <= rate <= right:
            return other if rate == right else its
    raise AssertionError("a rate between the first and the last lies in one of the gaps")


def _at_equal_training_loss(look: Look) -> float | None:
    """Return ln of the large batch's validation loss over the small one's, where both first had one training loss."""
    curves = [
        list(zip(look.values[f"{name}_train"], look.values[f"{name}_val"], strict=True)) for name in ("small", "large")
    ]
    if any(not (math.isfinite(x) and x > 0) for curve in curves for point in curve for x in point):
        return None
    level = max(min(train for train, _ in curve) for curve in curves)
    found = []
    for curve in curves:
        for (train, val), (later, its) in itertools.pairwise(curve):
            if train >= level >= later:
                share = 0.0 if later == train else math.log(train / level) / math.log(train / later)
                found.append((1 - share) * math.log(val) + share * math.log(its))
                break
    return found[1] - found[0] if len(found) == 2 else None


def _gap(known: Known) -> tuple[tuple[int, int], tuple[float, float, float], int] | Ruling:
    """Return the two batch sizes, ln of the validation loss for each doubling with its interval, and of how many seeds.

    Seeds whose trainings diverged, or had no training loss in common, are left out.
    """
    looks = known.looked("side_by_side")
    found = [ratio for look in looks if (ratio := _at_equal_training_loss(look)) is not None]
    if len(found) >= 2:
        small, large = map(int, looks[0].values["sizes"])
        mean, low, high = (x / math.log2(large / small) for x in mean_interval(found, least_sd=LEAST_SD))
        return (small, large), (mean, low, high), len(found)
    if looks:
        return unknown("the trainings diverged, or ended at losses of zero", "Search for a rate: bstune search MODEL")
    if known.facts is not None and two_sizes(known, SHARE) is None:
        return TOO_SHORT
    return unmeasured(known, "side_by_side")


def generalization_gap(known: Known) -> Ruling:
    """At the same training loss a larger batch is worse on new data: the noise of small ones regularises."""
    found = _gap(known)
    if isinstance(found, Ruling):
        return found
    (small, large), logs, n = found
    verdict = beyond(logs[1], logs[2], WORSE)
    looks = known.looked("side_by_side")
    said = (
        f"at the same training loss, within a quarter of a full run, the validation loss of batch {large} is "
        f"{math.expm1(logs[0] * math.log2(large / small)):+.1%} against that of {small}, over {n} seeds"
    )
    advice = {
        "holds": "Try weight decay, dropout or label smoothing with the large batch before you go back to a small one.",
        "does not hold": "A large batch generalises as well. Where it ends worse it is trained less: give it more "
        "updates, or its own rate.",
    }.get(verdict, "Choose by validation losses at the end of full runs, as a search does: bstune search MODEL")
    names = ("small_train", "small_val", "large_train", "large_val")
    data: dict[str, Any] = {name: [list(look.values[name]) for look in looks] for name in names}
    data["batch_size"] = [small, large]
    return ratio_ruling(verdict, said, advice, logs, "% loss a doubling", data, shown=percent_above)


def sharp_minima(known: Known) -> Ruling:
    """Large batches end in sharp minima, which generalise worse."""
    gap = _gap(known)
    if isinstance(gap, Ruling):
        return gap
    (small, large), worse, _ = gap
    ratios = []
    for look in known.looked("side_by_side"):
        at = [look.values[f"{name}_curvature"] for name in ("small", "large")]
        if all(at) and min(*at[0], *at[1]) > 0:
            ratios.append(math.log(at[1][0] / at[0][0]))
    if len(ratios) < 2:
        return unknown("the curvature at the end could not be measured, or was not above zero", "")
    logs = mean_interval(ratios, least_sd=0.05)
    sharper, hurts = beyond(logs[1], logs[2], math.log(SHARPER)), beyond(worse[1], worse[2], WORSE)
    verdict: Judgement = "cannot tell"
    if "does not hold" in (sharper, hurts):
        verdict = "does not hold"
    elif sharper == hurts == "holds":
        verdict = "holds"
    said = (
        f"after a quarter of a full run the largest curvature at batch {large} is {math.exp(logs[0]):.2f} times that "
        f"at {small}, and at the same training loss its validation loss is {math.expm1(worse[0]):+.1%} a doubling"
    )
    advice = "A large batch is no worse on new data here, sharp or not. " if hurts == "does not hold" else ""
    advice += (
        "Take sharpness as a hint only: it depends on how weights are scaled (Dinh et al. 2017), and on how far a run "
        "is. Choose by losses."
    )
    return ratio_ruling(verdict, said, advice, logs, f"times the curvature at {small}", {"log_ratio": ratios})


def ghost_batches(known: Known) -> Ruling:
    """BatchNorm is better off with small parts of a large batch (ghost batches)."""
    if has_norms(known) is False:
        return NO_NORM
    micro, _ = own_split(known)
    part = ghost_size(micro)
    if part is None:
        return Ruling(
            "not applicable",
            f"batch {known.batch} runs in micro-batches of {micro}: as small as a ghost batch, or they cannot be cut",
        )
    looks = known.looked("ghost_batches")
    ratios = []
    for look in looks:
        whole, parts = look.values["whole"][0], look.values["parts"][0]
        if all(math.isfinite(x) and x > 0 for x in (whole, parts)):
            ratios.append(math.log(parts / whole))
    if len(ratios) < 2:
        return unknown("the trainings diverged") if looks else unmeasured(known, "ghost_batches")
    mean, low, high = mean_interval(ratios, least_sd=LEAST_SD / math.sqrt(2))
    verdict = beyond(-high, -low, BETTER)
    said = (
        f"with statistics of {part} samples at a time batch {known.batch} ends at {math.exp(mean):.3g} times the loss "
        f"with those of the micro-batch of {micro}, over {len(ratios)} seeds of an eighth of a full run"
    )
    advice = {
        "holds": f"Keep the statistics at {part} samples whatever the batch: accumulate micro-batches of {part}, or "
        "split the batch inside the layer.",
        "does not hold": "Let BatchNorm see the whole micro-batch.",
    }.get(verdict, "Let BatchNorm see the whole micro-batch, which is faster.")
    data = {"log_ratio": ratios}
    return ratio_ruling(verdict, said, advice, (mean, low, high), f"times the loss with {micro}", data)
