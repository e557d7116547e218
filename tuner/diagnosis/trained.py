"""Claims that take some training to judge: odd sizes, warm-up, a batch that grows, all samples in one batch."""

from __future__ import annotations

import math
import statistics

from ..report.units import number
from .known import Known, Ruling, below, beyond, percent_above, ratio_ruling, unknown, unmeasured
from .measured import FULL_BATCH_MOST, odd_sizes
from .noise import mean_interval
from .tables import seed_error

MATTERS = 0.03
"""Of the throughput: less does not matter."""
SPIKE = 1.5
"""Times the first loss, smoothed, that counts as a spike."""
AS_GOOD = 0.1
"""ln of a loss ratio: less is as good."""
SMOOTH = 5


def _gain(known: Known, centre: int) -> tuple[float, float, float, int] | None:
    """Return by how much a size is faster for each sample than its neighbours, with a 90 % interval by ranks."""
    looks = known.looked("step_times")
    if not looks:
        return None
    values = looks[0].values
    rows = zip(*(values[f"s_{n}"] for n in (centre - 1, centre, centre + 1)), strict=False)
    ratios = sorted(
        math.log(0.5 * (before / (centre - 1) + after / (centre + 1)) / (its / centre)) for before, its, after in rows
    )
    n = len(ratios)
    if n < 6:
        return None
    # The median lies between these ranks in 9 of 10 cases: a binomial with one half, by its normal limit.
    off = 1.645 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - off)), min(n - 1, math.ceil(n / 2 + off))
    return statistics.median(ratios), ratios[low], ratios[high], n


def powers_of_two(known: Known) -> Ruling:
    """Batch sizes should be powers of two."""
    return _odd(known, 0, "power of two", "powers-of-two")


def multiples_of_eight(known: Known) -> Ruling:
    """Batch sizes should be multiples of 8."""
    return _odd(known, 1, "multiple of 8", "multiples-of-8")


def _odd(known: Known, which: int, what: str, name: str) -> Ruling:
    sizes = odd_sizes(known)
    if not sizes:
        return unknown("micro-batches of 25 and more do not fit", "")
    centre = sizes[1 + 3 * which]
    found = _gain(known, centre)
    if found is None:
        return unmeasured(known, "step_times")
    mean, low, high, n = found
    verdict = beyond(low, high, math.log(1 + MATTERS))
    more = "less" if mean > 0 else "more"
    said = (
        f"a sample takes {abs(math.expm1(-mean)):.1%} {more} time in batches of {centre} ({what}) than in those of "
        f"{centre - 1} and {centre + 1}"
    )
    advice = {
        "holds": f"Keep to a {what}.",
        "does not hold": "Any size will do: take the one that the loss asks for.",
    }.get(verdict, f"Keep to a {what} until an idle machine says otherwise: bstune diagnose MODEL --only {name}")
    data = {"batch_size": [centre - 1, centre, centre + 1], "rounds": [n]}
    return ratio_ruling(verdict, said, advice, (mean, low, high), "% faster a sample", data, shown=percent_above)


def warm_up(known: Known) -> Ruling:
    """Training needs a warm-up, or its start is unstable."""
    looks = known.looked("early_losses")
    if len(looks) < 2:
        return unmeasured(known, "early_losses")
    spikes = [_spike(look.values["loss"]) for look in looks]
    batch, rate = known.setting.global_batch_size, known.setting.learning_rate
    shown = {"loss": [list(look.values["loss"]) for look in looks]}
    if lost := sum(map(math.isinf, spikes)):
        said = (
            f"without warm-up the first steps at batch {batch} and rate {rate:.3g} diverge with {lost} of "
            f"{len(spikes)} seeds"
        )
        advice = "Warm up, or take a smaller rate."
        return Ruling("holds" if lost == len(spikes) else "cannot tell", said, advice, data=shown)
    mean, low, high = mean_interval(spikes, least_sd=0.05)
    verdict = beyond(low, high, math.log(SPIKE))
    said = (
        f"without warm-up, at batch {batch} and rate {rate:.3g}, the loss peaks at {math.exp(mean):.2f} times its "
        f"first value within {len(looks[0].values['loss'])} steps"
    )
    tenth = 0 if known.facts is None else round(known.facts.full_run_samples * 0.05)
    advice = {
        "holds": f"Let the rate rise over the first {tenth:,} samples (5 % of a run), as LinearLR of PyTorch does.",
        "does not hold": "Start at the full rate: no warm-up is needed for stability.",
    }.get(verdict, f"A warm-up of {tenth:,} samples does no harm.")
    return ratio_ruling(verdict, said, advice, (mean, low, high), "times the first loss", shown)


def _spike(losses: tuple[float, ...]) -> float:
    """Return ln of the highest smoothed loss over the first; infinite where training diverged."""
    if not all(map(math.isfinite, losses)) or min(losses) <= 0:
        return math.inf
    smooth = [statistics.median(losses[max(0, i - SMOOTH + 1) : i + 1]) for i in range(len(losses))]
    return math.log(max(smooth) / smooth[0])


def grow_the_batch(known: Known) -> Ruling:
    """Do not decay the learning rate, grow the batch."""
    looks = known.looked("grown_batch")
    if len(looks) < 2:
        return unmeasured(known, "grown_batch")
    decay, grown = ([look.values[name][0] for look in looks] for name in ("decay", "grown"))
    updates, fewer = (looks[0].values[f"{name}_updates"][0] for name in ("decay", "grown"))
    if not all(math.isfinite(x) and x > 0 for x in (*decay, *grown)):
        return unknown("one of the trainings diverged, or ended at a loss of zero", "Search for a rate first.")
    ratios = [math.log(b / a) for a, b in zip(decay, grown, strict=True)]
    mean, low, high = mean_interval(ratios, least_sd=math.sqrt(2) * 0.02)
    verdict = below(low, high, AS_GOOD)
    said = (
        f"over {len(looks)} seeds of a quarter of a full run, a batch that grows up to 8 times ends at "
        f"{number(statistics.mean(grown))} after {fewer:,.0f} updates, a rate that decays by a cosine at "
        f"{number(statistics.mean(decay))} after {updates:,.0f}"
    )
    advice = {
        "holds": f"Let the batch grow with bstune.BatchRamp: {1 - fewer / updates:.0%} fewer updates, where larger "
        "batches are faster a sample.",
        "does not hold": "Let the rate decay: the growing batch costs loss here.",
    }.get(verdict, "Either will do: the growing batch makes fewer updates, the decaying rate is the simpler.")
    data = {"decay": decay, "grown": grown}
    return ratio_ruling(verdict, said, advice, (mean, low, high), "times the loss of decay", data)


def full_batch(known: Known) -> Ruling:
    """With 2,000 samples or fewer, use all of them in each step."""
    assert known.facts is not None
    n = known.facts.n_samples
    if n > FULL_BATCH_MOST:
        return Ruling("not applicable", f"there are {n:,} samples, and the advice is for small data sets")
    looks = known.looked("at_full_batch")
    if not looks:
        return unmeasured(known, "at_full_batch")
    values = looks[0].values
    own = values["own"][0]
    best, rate = min(zip(values["loss"], values["rate"], strict=True), key=lambda pair: (not pair[0] > 0, pair[0]))
    if not (math.isfinite(own) and own > 0 and math.isfinite(best) and best > 0):
        return unknown("no training at full batch reached a finite loss")
    figure = math.log(best / own)
    half = math.sqrt(2) * seed_error(known.records)
    verdict = below(figure - half, figure + half, AS_GOOD)
    said = (
        f"after as many seconds, all {n:,} samples in each step end at {number(best)} (best of {len(values['rate'])} "
        f"rates, {rate:.3g}), batches of {known.batch} at {number(own)}"
    )
    advice = {
        "holds": "Use all samples in each step; then an optimizer such as L-BFGS may do better still.",
        "does not hold": f"Keep to batches of {known.batch}: they learn more in the same time, few samples or not.",
    }.get(verdict, f"Either will do; batches of {known.batch} need less memory.")
    logs = figure, figure - half, figure + half
    data = {"learning_rate": list(values["rate"]), "loss": list(values["loss"]), "own_loss": [own]}
    return ratio_ruling(verdict, said, advice, logs, f"times the loss of {known.batch}", data)
