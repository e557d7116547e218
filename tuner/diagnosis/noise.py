"""Claims about gradient noise: judged by gradients of micro-batches along a run, and by what a search has measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.diagnosis import Judgement
from ..core.trials import NoisePoint
from ..theory.gradient_noise import noise_scale
from ..theory.intervals import student_quantile
from .known import Known, Ruling, below, beyond, unknown, unmeasured

LAW, NEAR_LAW = -0.5, 0.15
"""The power of the batch by which the error of a gradient falls, and how far off it may be."""
HALF = 0.6
"""A doubled batch that needs up to this share of the steps needs about half of them."""
NOISY = 0.05
"""Relative scatter of a batch's loss that counts as noisy."""
TAILS = 1.5
"""By so much a standard deviation of losses is less sure than that of normal numbers."""
BETWEEN = 0.2
"""Share of the gradient noise that is between classes, from which equal mixes are worth it."""
AGREES = 0.9
"""Cosine from which two gradients point the same way."""


def mean_interval(values: Sequence[float], *, least_sd: float = 0.0) -> tuple[float, float, float]:
    """Return the mean of repeated measurements with its 90 % interval; `least_sd`: they scatter by no less.

    Example:
        >>> [round(x, 2) for x in mean_interval([1.0, 2.0, 3.0])]
        [2.0, 0.31, 3.69]
    """
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, -math.inf, math.inf
    sd = max(least_sd, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)))
    half = student_quantile(n - 1) * sd / math.sqrt(n)
    return mean, mean - half, mean + half


def square_root_law(known: Known) -> Ruling:
    """The error of a gradient falls with the square root of the batch."""
    looks = [look for look in known.looked("gradients") if "whole" in look.values]
    slopes = []
    for look in looks:
        times, whole, joined = (look.values[name][0] for name in ("times", "whole", "joined"))
        # The mean of independent gradients follows the law; a batch does where it is as far off as its parts joined.
        if whole > 0 and joined > 0:
            slopes.append(LAW + 0.5 * math.log(whole / joined) / math.log(times))
    if len(slopes) < 2 and known.looked("gradients"):
        return unknown("batches large and many enough to see it fall do not fit, or the data set has too few", "")
    if len(slopes) < 2:
        return unmeasured(known, "gradients")
    mean, low, high = mean_interval(slopes, least_sd=0.02)
    verdict: Judgement = "cannot tell"
    if low > LAW - NEAR_LAW and high < LAW + NEAR_LAW:
        verdict = "holds"
    elif high < LAW - NEAR_LAW or low > LAW + NEAR_LAW:
        verdict = "does not hold"
    last = looks[-1].values
    found = (
        f"the error of a gradient falls with the power {mean:.2f} of the batch (the law says -0.5), at {len(slopes)} "
        "moments of a run"
    )
    advice = {
        "holds": "Four times the batch halves the error, at four times the cost: more batch buys ever less.",
        "does not hold": "Samples of a batch are not independent here (BatchNorm, a loss over pairs): distrust noise "
        "scales, and accumulation, which is not the same as a larger batch.",
    }.get(verdict, "Read noise scales with care: they rest on this law.")
    data = {"batch_size": last["size"], "relative_variance": last["variance"], "slope_by_moment": slopes}
    return Ruling(verdict, found, advice, mean, "(power of the batch)", low, high, data)


def _scale(known: Known) -> tuple[float | None, float, float | None, str] | None:
    """Return the critical batch or the noise scale with its interval, and where it is from; None if not known."""
    answer = None if known.result is None else known.result.batch_answer
    if answer is not None and answer.source == "trials" and answer.b_crit and answer.b_crit_low is not None:
        return answer.b_crit, answer.b_crit_low, answer.b_crit_high, "critical batch of the trials"
    if answer is not None and answer.noise_scale_low is not None:
        high = answer.noise_scale_high if answer.noise_scale is not None else None
        return answer.noise_scale, answer.noise_scale_low, high, "gradient noise scale along the trials"
    points = [
        NoisePoint(look.at_samples, int(look.values["microbatches"][0]), int(look.values["microbatches"][1]), *half)
        for look in known.looked("gradients")
        for half in zip(look.values["gradient_squared"], look.values["covariance_trace"], strict=True)
    ]
    found = noise_scale(points)
    return None if found is None else (found.value, found.low, found.high, "gradient noise scale, measured now")


def twice_is_half(known: Known) -> Ruling:
    """Twice the batch needs half the steps."""
    scale = _scale(known)
    if scale is None:
        return unmeasured(known, "gradients")
    value, low, high, where = scale
    batch = known.batch

    def share(critical: float | None) -> float:
        return 0.5 if critical is None else (1 + critical / (2 * batch)) / (1 + critical / batch)

    least, most = share(high), share(low)
    figure = share(value)
    verdict = below(least, most, HALF)
    size = f"at least {low:,.0f}" if value is None else f"{value:,.0f}"
    found = f"at batch {batch:,}, doubling it leaves {figure:.0%} of the steps; the {where} is {size} samples"
    advice = {
        "holds": "A larger batch saves nearly as many steps as it is larger: worth it where the device has room.",
        "does not hold": f"Beyond {batch:,} samples a larger batch costs more samples than it saves steps.",
    }.get(
        verdict,
        "Let a search compare: bstune search MODEL --budget 20"
        if known.result is None
        else "Let the search go on: bstune search MODEL --budget 40",
    )
    return Ruling(
        verdict,
        found,
        advice,
        100 * figure,
        "% of the steps after doubling",
        100 * least,
        100 * most,
        {"batch_size": [batch], "noise_scale": [value], "low": [low], "high": [high]},
    )


def noisy_loss(known: Known) -> Ruling:
    """The loss of a single mini-batch says little: there are easy and hard ones."""
    looks = known.looked("gradients")
    if not looks:
        return unmeasured(known, "gradients")
    batch = known.batch
    found = []
    for look in looks:
        # The variance of a single sample's loss, by differences of micro-batches.
        variance, size = look.values["loss_variance"][0], look.values["size"][0]
        loss = abs(look.values["loss"][0])
        if variance > 0 and loss > 0:
            found.append(0.5 * math.log(variance * size / batch) - math.log(loss))
    if not found:
        return unknown("the losses of all batches are the same, or zero", "")
    # It grows as the loss falls, so the last look counts; losses have longer tails than a normal distribution.
    mean = found[-1]
    half = student_quantile(1e6) * TAILS / math.sqrt(2 * looks[-1].values["pairs"][0])
    low, high = mean - half, mean + half
    verdict = beyond(low, high, math.log(NOISY))
    share = math.exp(mean)
    n = max(1, math.ceil((share / 0.02) ** 2))
    said = f"a quarter into a run the loss of a batch of {batch:,} scatters by {share:.1%} of itself"
    advice = {
        "holds": f"Judge progress by the mean of {n:,} batches or more (2 % error), never by one."
        if n <= 100
        else f"Judge progress on held-out data: for an error of 2 % it takes {n * batch:,} samples.",
        "does not hold": "One batch is enough to see where the loss stands.",
    }.get(verdict, f"Judge progress by the mean of {n:,} batches (2 % error).")
    data = {"at_samples": [look.at_samples for look in looks], "relative_sd": [math.exp(x) for x in found]}
    return Ruling(verdict, said, advice, 100 * share, "% of the loss", 100 * math.exp(low), 100 * math.exp(high), data)


def only_a_sample(known: Known) -> Ruling:
    """Even the full training set is only a sample: its gradient is not that of new data."""
    cosines = []
    for look in known.looked("agreement"):
        train, val = look.values["train"][0], look.values["val"][0]
        if train > 0 and val > 0:
            across = look.values["across"]
            cosines.append(sum(across) / len(across) / math.sqrt(train * val))
    if len(cosines) < 2:
        seen = known.looked("agreement")
        return unknown("gradients drown in noise") if seen else unmeasured(known, "agreement")
    mean, low, high = (min(x, 1.0) for x in mean_interval(cosines, least_sd=0.02))
    verdict = below(low, high, AGREES)
    found = (
        f"in the first quarter of a run the gradients of training and validation data have a cosine of {mean:.2f} (1: "
        "the same way)"
    )
    advice = {
        "holds": "A better estimate of the training gradient helps new data less and less: prefer more data to more "
        "batch.",
        "does not hold": "The two sets pull the same way: a better gradient helps new data as much.",
    }.get(verdict, "There is no reason here to prefer more data to more batch, nor the other way round.")
    return Ruling(verdict, found, advice, mean, "(cosine)", low, high, {"cosine": cosines})


def stratified_batches(known: Known) -> Ruling:
    """Batches with the same mix of classes have better gradients."""
    looks = known.looked("strata")
    shares = [look.values["between"][0] / look.values["whole"][0] for look in looks if look.values["whole"][0] > 0]
    if len(shares) < 2:
        why = known.why_not("strata")
        if "class" in why:
            return Ruling("not applicable", why)
        return unmeasured(known, "strata")
    mean, low, high = mean_interval(shares, least_sd=0.01)
    verdict = beyond(low, high, BETWEEN)
    found = f"{mean:.0%} of the gradient noise is between classes, and gone where all batches have the same mix"
    advice = {
        "holds": f"Sample each batch with the same mix of classes: as if it were {1 / max(0.05, 1 - mean):.2g} times "
        "as large.",
        "does not hold": "Shuffle as you do: an equal mix of classes would change little.",
    }.get(verdict, "An equal mix of classes in each batch does no harm, and may help a little.")
    return Ruling(
        verdict, found, advice, 100 * mean, "% of the noise", 100 * low, 100 * high, {"share_by_moment": shares}
    )
