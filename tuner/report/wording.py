"""The facts of an answer in words, in one place: terminal, page, card and notebook say them alike.

A function returns a phrase or a sentence about one fact. How much of that is shown, and where, is up to who calls.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist
from typing import NamedTuple

from ..core.plain_text import one_line
from ..core.probe_results import ProbeResult
from ..core.results import Candidate, Comparison, LossEstimate, OnDevice, Recommendation, SearchResult
from ..core.trial_record import TrialRecord
from .charts.frame import candidates, full_samples, only_stopped, ran_in_full
from .reasons import PAST_THE_END, no_advice, tells_nothing
from .units import duration, number, per_second, setting_text
from .view import even

_ENDS = {
    "interrupted": "not finished",
    "converged": "ended as more runs would hardly pay",
    "budget": "too little of the budget is left for another run",
    "timeout": "ended by timeout",
    "n_trials": "ended by n_trials",
    "no_signal": "no trial has a finite validation loss",
}
PROBE_SHARE, PROBE_S = 0.5, 10.0
"""A probe that took at least this share of the seconds of training, and so many, is told beside them."""


def title(best: Recommendation) -> str:
    """Return what to train with; what is not confirmed is the best so far, or no advice where nothing was learned."""
    batch, rate = best.global_batch_size, f"{best.learning_rate:.3g}"
    if tells_nothing(best.warnings):
        return "Nothing to train with yet"
    if no_advice(best.warnings) is not None:
        return f"Nothing to train with yet (best: batch {batch}, lr {rate})"
    if best.verified:
        return f"Train with batch {batch} and learning rate {rate}"
    return f"Best so far: batch {batch}, learning rate {rate}"


def confirmed(best: Recommendation) -> str:
    """Return on how many fresh seeds the answer was run to its end: that it is proven best is not said."""
    if not best.verified:
        return "not confirmed yet"
    return f"checked by {_runs(best.val_loss.n_seeds)}"


def _runs(n: int) -> str:
    return "one run" if n == 1 else f"{n} runs"


def split_text(best: Recommendation, times: str = "x") -> str:
    """Return how a step is made of micro-batches."""
    steps = f"{best.accumulation_steps} accumulation step{'s' if best.accumulation_steps != 1 else ''}"
    devices = "1 device" if best.world_size == 1 else f"{best.world_size} ranks"
    return f"micro-batch {best.micro_batch_size} {times} {steps} {times} {devices}"


def speed_text(probe: ProbeResult | None, setting: Recommendation | OnDevice, world_size: int = 1) -> str:
    """Return the samples per second of a setting: as measured, or by the line through what was measured."""
    if setting.samples_per_s is None:
        return "speed unknown"
    rows = () if probe is None else probe.throughput
    trained_at_once = setting.micro_batch_size * world_size if setting.accumulation_steps == 1 else None
    measured = next((row.samples_per_s for row in rows if row.batch_size == trained_at_once), None)
    if measured is not None:
        return per_second(measured)
    return f"{per_second(setting.samples_per_s)}{' by the step-time line' if rows else ''}"


# --- how soon -----------------------------------------------------------------------------------------------------


def past_end(result: SearchResult, setting: Candidate | Recommendation) -> bool:
    """Tell whether the samples to the target of a setting are more than its runs have trained."""
    return setting.samples_to_target is not None and 0 < full_samples(result) < setting.samples_to_target


def to_target(result: SearchResult, setting: Candidate | Recommendation) -> str:
    """Return the seconds to the target; where no run of the setting came so far, it is said that they are foreseen."""
    seconds = duration(setting.seconds_to_target)
    return f"about {seconds}, {PAST_THE_END}" if past_end(result, setting) else seconds


def times_sooner(factor: float) -> str:
    """Return by what factor something is sooner, in two digits; next to 1 there is none.

    Example:
        >>> times_sooner(3.12), times_sooner(0.5), times_sooner(1.02)
        ('3.1 times sooner', '2 times later', 'as soon')
    """
    if 0.95 <= factor <= 1.05:
        return "as soon"
    return f"{factor:.2g} times sooner" if factor > 1 else f"{1 / factor:.2g} times later"


def loss_change(ratio: float) -> str:
    """Return how one loss compares with another.

    Example:
        >>> loss_change(0.9), loss_change(1.25), loss_change(1.001)
        ('10.0% lower', '25.0% higher', 'the same')
    """
    if abs(ratio - 1) < 0.005:
        return "the same"
    return f"{abs(ratio - 1):.1%} {'lower' if ratio < 1 else 'higher'}"


class Compared(NamedTuple):
    """How the answer compares with the user's setting or with batch 32, by all that is known of both."""

    short: str
    whole: str
    loss: str
    """At the end of a full run, where `whole` is of the time."""


def compared(result: SearchResult, each: Comparison) -> Compared | None:
    """Return how the answer compares; None where neither time nor loss is known."""
    name, factor, ratio = one_line(each.name, 60), each.times_sooner, each.loss_ratio
    setting = setting_text(each.setting)
    if name.startswith("batch"):
        setting = setting.partition(", ")[2]
    far = "" if each.setting.val_loss.n_seeds else f", {how_far(result, each.setting)}"
    other = f"{name} ({setting}{far})"
    loss = None if ratio is None else f"loss {loss_change(ratio)}"
    if result.goal == "time" and factor is None and result.recommendation.seconds_to_target is not None:
        end = "" if loss is None else f"expected {loss} than there, at the end of a full run"
        short = f"{_first_upper(name)} takes more than two full runs"
        return Compared(short, f"{other} is expected to take more than two full runs to the target", end)
    if result.goal == "time" and factor is not None and factor > 0:
        how = times_sooner(factor)
        if how.endswith("later") and not each.setting.val_loss.n_seeds:
            sooner = times_sooner(1 / factor)
            return Compared(f"{_first_upper(name)} may be sooner", f"{other} may be {sooner}", "")
        than = "as" if how == "as soon" else "than"
        than_it = "as" if loss is not None and loss.endswith("same") else "than"
        end = "" if loss is None else f"expected {loss} {than_it} there, at the end of a full run"
        short = f"expected {how}" if not each.setting.val_loss.n_seeds else how
        return Compared(
            f"{_first_upper(short)} {than} {name}", f"expected to reach the target {how} {than} {other}", end
        )
    if loss is None:
        return None
    than = "as" if loss.endswith("same") else "than"
    took = "" if not factor else f", in {1 / factor:.0%} of its time"
    return Compared(f"{_first_upper(loss)} {than} {name}", f"expected {loss} {than} {other}{took}", "")


def how_far(result: SearchResult, setting: Candidate) -> str:
    """Return how far a setting was run that has no full run."""
    runs = [record for record in result.records if _same(record, setting) and record.samples]
    if not runs:
        return "a rate that was not run"
    return f"run to {max(record.samples for record in runs):,} of {full_samples(result):,} samples"


def _same(record: TrialRecord, setting: Candidate | Recommendation) -> bool:
    return (record.global_batch_size, record.learning_rate, record.params) == (
        setting.global_batch_size,
        setting.learning_rate,
        setting.params,
    )


def _first_upper(text: str) -> str:
    return text[0].upper() + text[1:]


# --- why not larger -----------------------------------------------------------------------------------------------


def larger(result: SearchResult) -> tuple[str, str]:
    """Return why the batch is not larger, and how the best of the larger ones did that were run to the end."""
    best = result.recommendation
    batch, goal = best.global_batch_size, result.goal
    ran = [each for each in candidates(result) if each.global_batch_size > batch and each.val_loss.mean is not None]
    tried = [record.global_batch_size for record in result.records]
    if tried and batch >= max(tried):
        return f"{batch} is the largest that was tried", ""
    if not ran:
        if result.stopped_by == "interrupted" or not tried_larger(result):
            return "No larger batch has been run to its end", ""
        return "No larger batch promised enough for a full run", next_larger(result)
    timed = [each for each in ran if each.seconds_to_target is not None]
    lowest = min(ran, key=lambda each: each.val_loss.mean or 0.0)
    ended = f"batch {lowest.global_batch_size} ended at a loss of {number(lowest.val_loss.mean)}"
    if goal != "time" or best.seconds_to_target is None:
        short = {"loss": "Larger batches end no lower", "largest": "Larger batches end higher"}
        return short.get(goal, "Not known yet"), ended
    if not timed:
        return "No larger batch has come near the target", ended
    first = min(timed, key=lambda each: each.seconds_to_target or 0.0)
    if (first.seconds_to_target or 0.0) < best.seconds_to_target:
        short_said = "A larger batch may be sooner"
    elif best.batch_interval and best.batch_interval[-1] > batch:
        short_said = "Larger ones are expected later, perhaps by chance"
    else:
        short_said = "Larger batches reach the target later"
    reached = f"batch {first.global_batch_size} is expected to reach {_the_target(result)} after "
    reached += to_target(result, first)
    return short_said, f"{reached}; this one after {to_target(result, best)}"


def _the_target(result: SearchResult) -> str:
    return "the target" if result.target is None else f"the target loss of {number(result.target)}"


def next_larger(result: SearchResult) -> str:
    """Return what is expected of the next larger batch that was tried; nothing where that is not known."""
    each = result.recommendation.larger
    if each is None:
        return ""
    samples = max((record.samples for record in result.records if _same(record, each.setting)), default=0)
    setting = f"{each.name}, tried to {samples:,} samples,"
    if result.goal == "time" and result.recommendation.seconds_to_target is not None:
        if each.times_sooner is None:
            return f"{setting} is expected to take more than two full runs to the target"
        if each.times_sooner > 1.05:
            return f"{setting} is expected to take {each.times_sooner:.2g} times as long to the target"
        if each.times_sooner > 0:
            how = times_sooner(1 / each.times_sooner)
            return f"{setting} may be {how}{' to the target' if how == 'as soon' else ''}"
    if each.loss_ratio is None or each.loss_ratio <= 0:
        return ""
    return f"{setting} is expected to end at a loss {loss_change(1 / each.loss_ratio)}".replace("a loss the", "the")


def tried_larger(result: SearchResult) -> str:
    """Return how far the best of the larger batches came that were stopped; nothing where none has a loss."""
    batch = result.recommendation.global_batch_size
    known = [r for r in result.records if r.global_batch_size > batch and r.val_loss is not None]
    if not known:
        return ""
    best = min(known, key=lambda r: (-r.samples, r.val_loss))
    return (
        f"batch {best.global_batch_size} was stopped at {best.samples:,} samples, at a loss of {number(best.val_loss)}"
    )


class Limit(NamedTuple):
    """What one of memory, hardware and gradient noise says of the batch size."""

    name: str
    short: str
    sentence: str


def limits(result: SearchResult) -> list[Limit]:
    """Return what memory, hardware and gradient noise each point to; what was not measured is left out."""
    known, found, answer = result.limits, [], result.batch_answer
    if known.memory is not None:
        found.append(_memory_limit(result, known.memory))
    if known.hardware is not None:
        at = f"{known.hardware:.0f}" if known.hardware >= 1 else "below 1"
        said = f"The hardware reaches half of its top speed at batch {at}; beyond it, gains shrink."
        found.append(Limit("hardware", f"half speed at {at}", said))
    at_least = None if answer is None else answer.noise_scale_low
    if known.noise is not None:
        low, high = (None, None) if answer is None else (answer.b_crit_low, answer.b_crit_high)
        ends = "" if low is None else f" ({low:.0f} or more)" if high is None else f" ({low:.0f} to {high:.0f})"
        said = f"At batch {known.noise:.0f}{ends} training needs twice as many samples as at very small batches."
        found.append(Limit("noise", f"twice the samples at {known.noise:.0f}", said))
    elif at_least is not None:
        said = f"At batch {at_least:.0f} or above, training needs twice as many samples as at very small batches."
        found.append(Limit("noise", f"twice the samples at {at_least:.0f} or above", said))
    return found


def _memory_limit(result: SearchResult, fits: int) -> Limit:
    """Return what memory allows; where all that there is or that was tried fits, that is no figure of the memory."""
    limited_by = "memory" if result.probe is None else result.probe.limited_by
    if limited_by == "dataset":
        return Limit("memory", "memory is no limit", f"Memory is not the limit: all {fits} samples fit at once.")
    if limited_by == "max_batch" and all(record.global_batch_size <= fits for record in result.records):
        return Limit(
            "memory", "memory is no limit", "Memory is not the limit: all batches that were tried fit at once."
        )
    many = f"{fits}{'' if limited_by == 'memory' else ' or more'}"
    least = result.recommendation.global_batch_size < fits
    said = f"Memory is not the limit: {many} fit." if least else f"Memory fits {many} at once."
    return Limit("memory", f"memory fits {many}", said)


# --- how sure -----------------------------------------------------------------------------------------------------


def measured_loss(best: Recommendation) -> str:
    """Return the loss, and in what runs it was measured."""
    loss = best.val_loss
    if loss.n_seeds == 0 or loss.mean is None:
        return "no full run yet: chosen by the beginnings of runs"
    spread = "" if loss.sd is None else f" ± {loss.sd:.2g}"
    runs = _runs(loss.n_seeds)
    if best.verified:
        runs = "one fresh run" if loss.n_seeds == 1 else f"{loss.n_seeds} fresh runs"
    elif loss.n_seeds == 1 and no_advice(best.warnings) is None:
        runs = "the run it was chosen by, so likely too low"
    return f"{even([loss.mean])[0]}{spread} in {runs}"


def ends_of_runs(result: SearchResult) -> str:
    """Return at which losses the runs ended, where these tell nothing of the one that was chosen."""
    losses = [record.val_loss for record in result.records if record.val_loss is not None]
    low, high = number(min(losses, default=None)), number(max(losses, default=None))
    where = f"at the end{'s' if len(losses) != 1 else ''} of {_runs(len(losses))}"
    return f"{low} {where}" if low == high else f"{low} to {high} {where}"


def new_runs(best: Recommendation) -> str:
    """Return where new runs end; nothing where no interval is known."""
    loss = best.val_loss
    if loss.low is None or loss.high is None:
        return ""
    return "9 of 10 new runs end at {} to {}".format(*even([loss.low, loss.high]))


def interval_source(result: SearchResult) -> str:
    """Return how much runs are taken to differ, where a single one gives an interval; nothing where there are more."""
    loss = result.recommendation.val_loss
    if loss.n_seeds != 1 or loss.low is None:
        return ""
    samples = full_samples(result)
    ends = Counter(
        (record.global_batch_size, record.learning_rate, repr(record.params))
        for record in result.records
        if record.state == "complete" and ran_in_full(record, samples)
    )
    if any(n > 1 for n in ends.values()):
        return "as runs, or losses within one, did here"
    return "as is usual, or as losses within a run did"


def target_source(result: SearchResult) -> str:
    """Return where the target is from; nothing where there is none, it is not the goal, or that is not known."""
    if result.goal != "time" or result.target is None or result.target_source is None:
        return ""
    return result.target_source


def chance(result: SearchResult) -> str:
    """Return how many new runs reach the target; nothing where that is not known, or not the goal."""
    many = reached_by(result.recommendation.val_loss, result.target) if result.goal == "time" else None
    return "" if many is None else f"{many} new runs reach the target"


def reached_by(loss: LossEstimate, target: float | None) -> str | None:
    """Return how many of new full runs end at or below a loss, by the interval of such runs; None where it is unknown.

    Example:
        >>> reached_by(LossEstimate(0.0354, None, 1, 0.0288, 0.0435), 0.03935)
        'about 8 of 10'
    """
    if loss.low is None or loss.high is None or loss.mean is None or target is None or loss.low >= loss.high:
        return None
    scale = math.log if loss.low > 0 and target > 0 else float
    middle, half = scale(loss.mean), (scale(loss.high) - scale(loss.low)) / 2
    tenths = round(10 * NormalDist().cdf(1.645 * (scale(target) - middle) / half))
    return {0: "hardly any", 10: "nearly all"}.get(tenths, f"about {tenths} of 10")


def as_good(result: SearchResult) -> tuple[str, str]:
    """Return which other batch sizes may be as good, and what that rests on; two empty texts where it is not known."""
    best = result.recommendation
    if not best.batch_interval:
        return "", ""
    low, high = best.batch_interval[0], best.batch_interval[-1]
    if len({record.global_batch_size for record in result.records}) == 1:
        return "", "no other batch size was tried"
    if low == high:
        return "", "no other batch size that was run is as good"
    rests_on = "the runs do not tell them apart for certain"
    if short := only_stopped(result):
        sizes = f"{', '.join(map(str, short[:-1]))} or {short[-1]}" if len(short) > 1 else str(short[0])
        rests_on += f", and no run at batch {sizes} went to its end"
    return f"batch sizes {low} to {high} may be as good", rests_on


# --- what it cost -------------------------------------------------------------------------------------------------


def spent_text(result: SearchResult) -> str:
    """Return what the search has trained."""
    spent, n = result.spent, len(result.records)
    trained = f"{duration(spent.seconds)} of training" if spent.seconds else f"{spent.samples:,} samples of training"
    return f"{trained} in {n:,} trial{'s' if n != 1 else ''}"


def tells_probe(probe_s: float, training_s: float | None) -> bool:
    """Whether a probe took so long that what it took belongs beside the seconds of training."""
    return probe_s >= PROBE_SHARE * (training_s or 0.0) and probe_s >= PROBE_S


def _probe_text(result: SearchResult) -> str:
    """Return how long the probe took, where it took long beside training; else nothing."""
    if result.probe is None or not tells_probe(result.probe.seconds, result.spent.seconds):
        return ""
    return f", after a probe of {duration(result.probe.seconds)}"


def diverged_text(result: SearchResult) -> str:
    """Return how many trials diverged, from how many samples on, and how many of them on a fresh seed; else nothing."""
    bad = [record for record in result.records if record.diverged_at is not None]
    if not bad:
        return ""
    first = min(record.diverged_at or 0 for record in bad)
    fresh = sum(record.stage == "confirm" for record in bad)
    at = f"at {first:,} samples" if len(bad) == 1 else f"from {first:,} samples on"
    on = "" if not fresh else " (1 of them on a fresh seed)" if fresh == 1 else f" ({fresh} of them on fresh seeds)"
    return f"{len(bad)} diverged {at}{on}"


def cost_text(result: SearchResult) -> str:
    """Return what the search has trained and why it ended, in less words where trials diverged."""
    spent, bad, why = spent_text(result) + _probe_text(result), diverged_text(result), why_ended(result)
    if not bad:
        return f"{spent}; {why}"
    return f"{spent.replace(' of training', '')}; {bad}; {why.replace('ended as more runs', 'more')}"


def why_ended(result: SearchResult) -> str:
    """Return why the search has ended."""
    return ended(result.stopped_by)


def ended(stopped_by: str) -> str:
    """Return what ended a search, in words.

    Example:
        >>> ended("converged"), ended("a signal")
        ('ended as more runs would hardly pay', 'ended by a signal')
    """
    return _ENDS.get(stopped_by, f"ended by {stopped_by}")
