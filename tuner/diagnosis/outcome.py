"""Claims about what comes out: which batch size learns most from the same samples or seconds. From the trials."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

from ..core.results import USUAL_BATCH
from ..core.trial_record import TrialRecord
from ..report.units import duration, number
from ..strategy.cost import Cost
from ..theory.intervals import student_quantile
from .known import Known, Ruling, below, beyond, percent_above, ratio_ruling, sizes_of, unknown
from .learning_rate import equal_samples, search_again
from .tables import EqualSamples, loss_after, seed_error, seed_sd, slope_of

WORSE = 0.03
"""ln of the loss for each doubling of the batch that counts as worse."""
MISLED = 1.25
"""A loss so many times as high is a wrong answer."""
FAR_ABOVE = 1000.0
"""Times a loss: what a run that diverged counts for."""
FEW_UPDATES = 200
"""With fewer updates a run is decided by their number."""
SCATTER = 0.1
"""Relative scatter of samples to a target between seeds (MLPerf: 3.7 % in the median, 18 % in one of ten)."""


def large_is_worse(known: Known) -> Ruling:
    """A larger batch reaches a worse loss, even with its own best learning rate."""
    table = equal_samples(known)
    if table is None or len(table.tuned) < 3:
        n = 0 if table is None else len(table.tuned)
        return unknown(
            f"{n} batch sizes were tried with enough rates to know the best of each; 3 are needed", search_again(known)
        )
    sizes = list(table.tuned)
    losses = [loss for _, loss in table.tuned.values()]
    if min(losses) <= 0:
        return unknown("losses of 0 and below cannot be compared as ratios", "")
    sd = seed_sd(known.records)
    slope = slope_of([math.log2(n) for n in sizes], [math.log(loss) for loss in losses], [sd] * len(sizes))
    assert slope is not None
    verdict = beyond(slope.low, slope.high, WORSE)
    each = ", ".join(f"{number(loss)} at {n}" for n, loss in zip(sizes, losses, strict=True))
    found = f"lowest losses {table.when}: {each}; {100 * math.expm1(slope.value):+.1f} % for each doubling"
    short = (
        "" if table.samples > 0.97 * table.full_samples else " These runs were short, which is hard on large batches."
    )
    advice = {
        "holds": "A larger batch must earn its speed: compare at equal seconds." + short,
        "does not hold": "Choose the batch for speed: with its own rate, a large one learns as much." + short,
    }.get(verdict, search_again(known))
    logs, data = (slope.value, slope.low, slope.high), {"batch_size": sizes, "loss": losses}
    return ratio_ruling(verdict, found, advice, logs, "% loss a doubling", data, shown=percent_above)


def shared_rate(known: Known) -> Ruling:
    """Batch sizes can be compared at one learning rate."""
    table = equal_samples(known)
    shared = None if table is None else _most_shared(table)
    if table is None or shared is None:
        return unknown(
            "no learning rate was tried at three batch sizes whose best rates are known", search_again(known)
        )
    rate, sizes = shared
    ratios = {n: table.losses[n][rate] / table.tuned[n][1] for n in sizes if table.tuned[n][1] > 0}
    if len(ratios) < 3:
        return unknown("losses of 0 and below cannot be compared as ratios", "")
    # What the table at one rate says is best, against what is best.
    chosen = min(ratios, key=lambda n: table.losses[n][rate])
    really = min(ratios, key=lambda n: table.tuned[n][1])
    worst = max(ratios, key=lambda n: ratios[n])
    regret = math.log(table.tuned[chosen][1] / table.tuned[really][1])
    middle = math.log(min(ratios[worst], FAR_ABOVE))
    half = math.sqrt(2) * seed_error(known.records)
    verdict = below(middle - half, middle + half, math.log(MISLED))
    named = f"at rate {rate:.3g} batch {worst} ends at {_ratio(ratios[worst])} the loss of its own best rate"
    picked = (
        f"; that rate makes batch {chosen} look best, and with their own rates {really} is, by {math.expm1(regret):.0%}"
        if chosen != really and regret > 0
        else f"; batch {chosen} comes first either way"
    )
    advice = {
        "does not hold": "Compare batch sizes with a rate of their own each; distrust tables made with one rate.",
        "holds": "Over these sizes one rate does.",
    }.get(verdict, search_again(known))
    data = {
        "batch_size": list(ratios),
        "shared_rate_loss": [table.losses[n][rate] for n in ratios],
        "own_rate_loss": [table.tuned[n][1] for n in ratios],
        "own_rate": [table.tuned[n][0] for n in ratios],
    }
    found = f"{named}, {table.when}{picked}"
    logs = middle, middle - half, middle + half
    return ratio_ruling(verdict, found, advice, logs, "times the loss of its own rate", data)


def _ratio(value: float) -> str:
    return f"{value:.3g} times" if math.isfinite(value) else "far above"


def _most_shared(table: EqualSamples) -> tuple[float, list[int]] | None:
    """Return the rate that most tuned batch sizes were tried with, of several the one nearest to their best rates."""
    sizes: dict[float, list[int]] = defaultdict(list)
    for batch in table.tuned:
        for rate in table.losses[batch]:
            sizes[rate].append(batch)
    enough = {rate: found for rate, found in sizes.items() if len(found) >= 3}
    if not enough:
        return None
    middle = statistics.median(math.log2(rate) for rate, _ in table.tuned.values())
    return max(enough.items(), key=lambda item: (len(item[1]), -abs(math.log2(item[0]) - middle)))


def four_or_4096(known: Known) -> Ruling:
    """A batch of 4096 makes 1024 times fewer updates than one of 4, and learns less from the same samples."""
    assert known.facts is not None
    updates = {batch: known.facts.full_run_steps(batch) for batch in (4, known.batch, 4096)}
    found = f"a full run of {known.facts.full_run_samples:,.0f} samples is " + ", ".join(
        f"{n:,} updates at batch {batch}" for batch, n in sorted(updates.items())
    )
    most = int(known.facts.full_run_samples // FEW_UPDATES)
    holds = updates[4096] < FEW_UPDATES
    advice = (
        f"Batches far above {most:,} make fewer than {FEW_UPDATES} updates: they need more epochs."
        if holds
        else f"Even 4096 makes {FEW_UPDATES} updates and more: here their number does not forbid it."
    )
    return Ruling("holds" if holds else "does not hold", found, advice, float(updates[4096]), "updates at 4096")


def _seconds_by_batch(known: Known) -> dict[int, float]:
    """Return, by batch size, the fewest seconds in which any of its runs reached the target."""
    assert known.facts is not None
    target = None if known.result is None else known.result.target
    cost = Cost.of(known.facts, known.probe)
    found: dict[int, float] = {}
    if target is None or not cost.known:
        return found
    for record in known.records:
        reached = _samples_to(record, target)
        batch = record.global_batch_size
        if reached is not None and (seconds := cost.seconds(batch, reached)) is not None:
            found[batch] = min(found.get(batch, math.inf), seconds)
    return dict(sorted(found.items()))


def _samples_to(record: TrialRecord, target: float) -> float | None:
    """Return the samples at which a run first reached a loss, between its reports on a line; None where it did not."""
    before: tuple[int, float] | None = None
    for samples, loss in record.values:
        if loss is None:
            return None
        if loss <= target:
            if before is None or before[1] == loss:
                return float(samples)
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (samples - before[0])
        before = (samples, loss)
    return None


def largest_is_fastest(known: Known) -> Ruling:
    """The largest batch reaches the target first."""
    assert known.result is not None
    seconds = _seconds_by_batch(known)
    target = number(known.result.target)
    if len(seconds) < 2:
        n = sizes_of(list(seconds)) or "none"
        return unknown(
            f"batch sizes that were seen to reach the target loss of {target}: {n}; two are needed", search_again(known)
        )
    largest = max(seconds)
    other = min((n for n in seconds if n != largest), key=lambda n: seconds[n])
    figure = math.log(seconds[largest] / seconds[other])
    half = student_quantile(1e6) * math.sqrt(2) * SCATTER
    verdict = below(figure - half, figure + half, 0.0)
    each = ", ".join(f"{duration(value)} at {n}" for n, value in seconds.items())
    found = f"seconds to the target loss of {target}, without validation: {each}"
    advice = {
        "holds": f"Train with {largest}; try larger ones, as far as they fit and make enough updates.",
        "does not hold": f"Train with {other}: {largest} takes {math.exp(figure):.2f} times as long.",
    }.get(verdict, f"Take {other}: it is as soon there, and needs less memory.")
    short = sorted({r.global_batch_size for r in known.records if r.global_batch_size > largest})
    if verdict == "holds" and short:
        verdict = "cannot tell"
        found += f"; no run of {sizes_of(short)} was there"
        sizes = ",".join(map(str, [largest, *short]))
        advice = f"Compare these alone: bstune search MODEL --space batch_size={sizes} --fresh"
    logs = figure, figure - half, figure + half
    data = {"batch_size": list(seconds), "seconds": list(seconds.values())}
    return ratio_ruling(verdict, found, advice, logs, "times the seconds of the best other", data)


def small_at_equal_seconds(known: Known) -> Ruling:
    """After the same seconds a smaller batch may have the lower loss."""
    assert known.facts is not None
    cost = Cost.of(known.facts, known.probe)
    ended = [r for r in known.records if r.state == "complete" and r.val_loss is not None and len(r.values) > 1]
    ended = [r for r in ended if r.samples > 0.9 * known.facts.full_run_samples]
    sizes = sorted({record.global_batch_size for record in ended})
    if not cost.known or len(sizes) < 2:
        return unknown(
            f"full runs of {sizes_of(sizes) or 'no batch size'} are recorded, and two sizes are needed",
            search_again(known),
        )
    whole = [cost.seconds(batch, known.facts.full_run_samples) or math.inf for batch in sizes]
    seconds = min(whole)  # So long every one of them has trained.
    best: dict[int, float] = {}
    for record in ended:
        loss = loss_after(record, seconds / (cost.seconds(record.global_batch_size, 1.0) or math.inf))
        if loss is not None and loss > 0:
            best[record.global_batch_size] = min(best.get(record.global_batch_size, math.inf), loss)
    if len(best) < 2:
        return unknown("the full runs did not report early enough", search_again(known))
    largest = max(best)
    smaller = min((n for n in best if n != largest), key=lambda n: best[n])
    figure = math.log(best[smaller] / best[largest])
    half = math.sqrt(2) * seed_error(known.records)
    verdict = beyond(-figure - half, -figure + half, 0.0)
    each = ", ".join(f"{number(loss)} at {n}" for n, loss in sorted(best.items()))
    advice = {
        "holds": f"With little time, train with {smaller}.",
        "does not hold": f"With little time, still train with {largest}.",
    }.get(verdict, "Either will do for a short run.")
    found = f"losses after {duration(seconds)}: {each}"
    logs = figure, figure - half, figure + half
    data = {"batch_size": list(best), "loss": list(best.values())}
    return ratio_ruling(verdict, found, advice, logs, f"times the loss of {largest}", data)


def fill_memory(known: Known) -> Ruling:
    """Take the largest batch that fits in memory."""
    assert known.result is not None
    assert known.probe is not None
    assert known.best is not None
    fits, best = known.probe.micro_batch_size, known.best.global_batch_size
    low, high = known.best.batch_interval[0], known.best.batch_interval[-1]
    more = "" if known.probe.limited_by == "memory" else " or more"
    found = f"{fits:,}{more} fit; the search recommends {best:,}, and {low:,} to {high:,} cannot be told from it"
    data = {"fits": [fits], "recommended": [best]}
    searched = max((record.global_batch_size for record in known.records), default=best)
    most = fits if known.probe.limited_by != "max_batch" else known.probe.n_train_samples
    if known.probe.cut_short and fits <= high:
        verdict = "cannot tell"
        found += "; larger sizes were not probed"
        advice = (
            "See how many fit: bstune probe MODEL. Then search up to that many, N: "
            f"bstune search MODEL --space batch_size={best}:N --fresh"
        )
    elif low <= fits <= high:
        verdict, advice = "holds", "Fill the memory."
    elif high < fits and high < searched:
        verdict, advice = "does not hold", f"Use {best:,}; the memory that is left is free for a larger model."
    elif high < fits:
        verdict = "cannot tell"
        advice = (
            f"The search went no further than {searched:,}. Let it try larger ones: "
            f"bstune search MODEL --space batch_size={best}:{min(most, 4 * searched)} --fresh"
        )
    else:
        verdict, advice = "does not hold", f"Accumulate gradients to {best:,}: more than fits at once is better here."
    return Ruling(verdict, found, advice, float(best), "samples", low, high, data)  # type: ignore[arg-type]


def start_with_32(known: Known) -> Ruling:
    """Start with a batch of 32."""
    assert known.best is not None
    if known.best.global_batch_size == USUAL_BATCH:
        return Ruling("holds", "the search recommends 32 itself", "Train with 32.", 1.0, "times as soon with 32")
    beside = next((c for c in known.best.compared if c.name == f"batch {USUAL_BATCH}"), None)
    low, high = known.best.batch_interval[0], known.best.batch_interval[-1]
    ran = beside is not None and beside.setting.val_loss.mean is not None
    if beside is not None and beside.times_sooner is None and ran and known.best.seconds_to_target is not None:
        return Ruling(
            "does not hold",
            f"batch {known.best.global_batch_size} reaches the target; batch 32 at its best rate is expected to "
            "take more than two full runs to it",
            f"Train with {known.best.global_batch_size}.",
        )
    if beside is None or beside.times_sooner is None:
        return unknown(
            f"batch 32 was not run to its end; {low} to {high} cannot be told from the best",
            "Have it run: bstune search MODEL --baseline 32,LR with your rate for LR",
        )
    if beside.setting.val_loss.mean is None:
        return unknown(
            f"no run at batch 32 went to its end; {known.best.global_batch_size} is expected to be "
            f"{beside.times_sooner:.3g} times as soon",
            f"Have it run: bstune search MODEL --baseline 32,{beside.setting.learning_rate:.3g} --fresh",
        )
    half = student_quantile(1e6) * math.sqrt(2) * SCATTER
    figure = math.log(beside.times_sooner)
    verdict = below(figure - half, figure + half, math.log(1.25))
    best = known.best.global_batch_size
    advice = {
        "does not hold": f"Train with {best}: it is there {beside.times_sooner:.3g} times as soon.",
        "holds": "32 is as good a start as any here.",
    }.get(verdict, f"Train with {best}; 32 may be as good.")
    found = f"batch {best} reaches the target {beside.times_sooner:.3g} times as soon as batch 32 at its best rate"
    return Ruling(
        verdict,
        found,
        advice,
        beside.times_sooner,
        "times as soon as 32",
        math.exp(figure - half),
        math.exp(figure + half),
    )


def escapes_minima(known: Known) -> Ruling:
    """Small batches escape from poor minima, in which large ones get stuck."""
    return unknown(
        "which minimum a run is in, and what would have become of it elsewhere, cannot be seen",
        "Look at what it would lead to: large-is-worse compares losses, generalization-gap those on new data.",
    )
