"""Claims about the learning rate and how it moves with the batch: from the trials of a search."""

from __future__ import annotations

import math

from ..core.diagnosis import Judgement
from ..core.trial_record import TrialRecord
from ..theory.intervals import student_quantile
from .known import Known, Ruling, beyond, ratio_ruling, unknown
from .tables import EqualSamples, Slope, seed_sd, slope_of, table_of

LINEAR, ROOT = 1.0, 0.5
SAME = 0.25
"""Slopes closer than this to a rule follow it: over a factor of 8 in the batch, the rate is off by 1.7 at most."""
OTHER = 0.15
"""Slopes that are surely farther from a rule than this follow another one."""
GROWS, STAYS = 0.1, 0.3
"""A slope surely above the first is one; surely below the second, 8 times the batch move the rate by 1.9 at most."""
WORSE = 1.05
"""A loss more than so many times as high is worse."""
FAR, FARTHEST = 1.5, 3.5
"""Octaves between a rate and the best one that count as four times too large or too small."""


def search_again(known: Known) -> str:
    """Return the advice to search three batch sizes alone, so that each of them gets enough rates."""
    tried = sorted({record.global_batch_size for record in known.records}) or [max(1, known.batch // 2), known.batch]
    low, high = tried[0], max(tried[-1], 4 * tried[0])
    sizes = sorted({low, high, 2 ** round(math.log2(math.sqrt(low * high)))})
    listed = ",".join(map(str, sizes))
    return f"Search a few batch sizes, with more rates each: bstune search MODEL --space batch_size={listed} --fresh"


def comparable(known: Known) -> list[TrialRecord]:
    """Return the trials that differ from the best setting in nothing but batch size and learning rate."""
    params = {} if known.best is None else dict(known.best.params)
    return [record for record in known.records if dict(record.params) == params]


def equal_samples(known: Known) -> EqualSamples | None:
    """Return losses at equal samples of the trials that can be compared."""
    return None if known.facts is None else table_of(comparable(known), known.facts.full_run_samples)


def _slope(table: EqualSamples) -> Slope | None:
    found = [(math.log2(batch), *table.best_rate(batch)) for batch in table.tuned]
    return slope_of(*zip(*found, strict=True)) if len(found) >= 2 else None


def _measured_slope(known: Known) -> tuple[EqualSamples, Slope] | Ruling:
    table = equal_samples(known)
    if table is None or len(table.tuned) < 2:
        n = 0 if table is None else len(table.tuned)
        return unknown(
            f"the trials show the best rate of {n} batch size{'' if n == 1 else 's'} between worse ones, and two are "
            "needed",
            search_again(known),
        )
    slope = _slope(table)
    assert slope is not None
    rule = _rule_of_all(known, table)
    if rule is not None and not slope.low <= rule <= slope.high:
        said = f"{_said(table, slope)}, and all trials together say {2**rule:.2f}"
        figures = (slope.value, "(slope)", slope.low, slope.high)
        return Ruling("cannot tell", said, search_again(known), *figures, _data(table))
    return table, slope


def _rule_of_all(known: Known, table: EqualSamples) -> float | None:
    """Return the power of the batch that the answer of the search has, of all trials; None where full runs tell it."""
    rule = None if known.best is None else known.best.lr_rule
    return None if rule is None or table.samples >= 0.97 * table.full_samples else rule.alpha


def _said(table: EqualSamples, slope: Slope) -> str:
    best = ", ".join(f"{rate:.3g} at {batch}" for batch, (rate, _) in table.tuned.items())
    return f"best rates {table.when}: {best}; doubling the batch multiplies them by {2**slope.value:.2f}"


def _factor(known: Known, table: EqualSamples, slope: Slope) -> str:
    """Return by how much the rate moves with a doubled batch; of short runs as the answer of the search has it."""
    rule = _rule_of_all(known, table)
    if rule is not None:
        return f"{2**rule:.2f}, which all trials together say"
    return f"{2**slope.value:.2f} (from {min(table.tuned)} to {max(table.tuned)} samples)"


def _data(table: EqualSamples) -> dict[str, list[float]]:
    return {
        "batch_size": list(table.tuned),
        "best_learning_rate": [rate for rate, _ in table.tuned.values()],
        "loss": [loss for _, loss in table.tuned.values()],
    }


def coupling(known: Known) -> Ruling:
    """The best learning rate grows with the batch size."""
    found = _measured_slope(known)
    if isinstance(found, Ruling):
        return found
    table, slope = found
    verdict: Judgement = "holds" if slope.low > GROWS else "does not hold" if slope.high < STAYS else "cannot tell"
    if verdict == "cannot tell":
        advice = search_again(known)
    elif verdict == "holds":
        advice = f"When you double the batch, multiply the rate by {_factor(known, table, slope)}."
    else:
        advice = "Keep the rate when you change the batch."
    return Ruling(verdict, _said(table, slope), advice, slope.value, "(slope)", slope.low, slope.high, _data(table))


def linear_rule(known: Known) -> Ruling:
    """Multiply the learning rate by as much as the batch."""
    return _rule(known, LINEAR, "proportional to the batch")


def root_rule(known: Known) -> Ruling:
    """Multiply the learning rate by the square root of what the batch is multiplied by."""
    return _rule(known, ROOT, "with the square root of the batch")


def _rule(known: Known, wanted: float, words: str) -> Ruling:
    found = _measured_slope(known)
    if isinstance(found, Ruling):
        return found
    table, slope = found
    said = f"the best rate moves with the power {slope.value:.2f} of the batch, {table.when}; the rule says {wanted:g}"
    parts = (slope.value, "(slope)", slope.low, slope.high, _data(table))
    if slope.low > wanted + OTHER or slope.high < wanted - OTHER:
        advice = f"Do not scale {words}: for each doubling multiply the rate by {_factor(known, table, slope)}."
        return Ruling("does not hold", said, advice, *parts)
    if wanted - 2 * SAME < slope.low and slope.high < wanted + 2 * SAME and abs(slope.value - wanted) <= SAME:
        return Ruling("holds", said, f"Scale the rate {words}, from {min(table.tuned)} to {max(table.tuned)}.", *parts)
    return Ruling("cannot tell", said, search_again(known), *parts)


def too_large_too_small(known: Known) -> Ruling:
    """Too large a rate overshoots, and too small a one is slow."""
    table = equal_samples(known)
    if table is None or not table.tuned:
        return unknown("no batch size was tried with a best rate between worse ones", search_again(known))
    above, below = _penalties(table)
    if not above or not below:
        missing = "4 times too large" if not above else "4 times too small"
        return unknown(f"no trial had a rate {missing} for its batch", search_again(known))
    sd = seed_sd(known.records)
    up, down = _mean_of(above, sd), _mean_of(below, sd)
    said = f"4 times the best rate {_times(up[0])} of the best, and a quarter of it {_times(down[0])}, {table.when}"
    worse = math.log(WORSE)
    low, high = min(up[1], down[1]), min(up[2], down[2])
    verdict = beyond(low, high, worse)
    advice = {
        "holds": "Tune the rate to within a factor of 2; if you must err, err "
        + ("low." if up[0] > down[0] else "high."),
        "does not hold": "The rate matters little here over a factor of 4: spend the trials elsewhere.",
    }.get(verdict, search_again(known))
    logs = min(up[0], down[0], 50.0), min(low, 50.0), min(high, 50.0)
    data = {"octaves_off": [x for x, _ in (*below, *above)], "log_loss_ratio": [y for _, y in (*below, *above)]}
    return ratio_ruling(verdict, said, advice, logs, "times the best loss, at the better of the two", data)


DIVERGED = 3.0
"""ln of the loss ratio that a run which has diverged counts for."""


def _times(log_ratio: float) -> str:
    return "diverges" if log_ratio > 0.95 * DIVERGED else f"ends at {math.exp(log_ratio):.3g} times the loss"


def _penalties(table: EqualSamples) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return (octaves from the best rate, ln of the loss ratio) of rates far above, and far below."""
    above: list[tuple[float, float]] = []
    below: list[tuple[float, float]] = []
    for batch, (best, loss) in table.tuned.items():
        for rate, value in table.losses[batch].items():
            octaves = math.log2(rate / best)
            if FAR <= abs(octaves) <= FARTHEST and loss > 0 and value > 0:
                ratio = min(DIVERGED, math.log(value / loss)) if math.isfinite(value) else DIVERGED
                (above if octaves > 0 else below).append((octaves, ratio))
    return above, below


def _mean_of(found: list[tuple[float, float]], sd: float) -> tuple[float, float, float]:
    """Return the mean of ln loss ratios with its 90 % interval; each is two losses off by as much as seeds differ."""
    values = [value for _, value in found]
    n, mean = len(values), sum(value for value in values) / len(values)
    scatter = math.sqrt((2 * 2 * sd**2 + sum((value - mean) ** 2 for value in values)) / (n + 1))
    half = student_quantile(n + 1) * scatter / math.sqrt(n)
    return mean, mean - half, mean + half
