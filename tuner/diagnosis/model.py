"""Claims about what the model is made of: BatchNorm, curvature, layers, pretrained weights. Judged by looks at it."""

from __future__ import annotations

import math
import statistics

from ..core.diagnosis import Judgement
from .known import Known, Ruling, below, beyond, ratio_ruling, unknown, unmeasured, usual_rate
from .noise import mean_interval

GOOD_STATISTICS = 0.1
"""Deviations that the mean of a batch may be off in a channel."""
USUAL_LEAST = 32 / math.sqrt(2)
SAME_LOSS = 0.02
"""Of the loss: less is the same."""
AT_THE_LIMIT = 0.5
"""A rate of more than this share of what the curvature allows is held back by it."""
SPREAD = 100.0
"""Between layers, of |weight| / |gradient|, from which they need rates of their own."""
LATE = 2
"""Looks, of the last ones, that tell where a run has come to."""
FINE_TUNED = 0.5
"""Share of the weights that are the same in two fresh models."""
NO_NORM = Ruling("not applicable", "the model has no BatchNorm layer")


def has_norms(known: Known) -> bool | None:
    """Return whether the model has BatchNorm layers; None where nobody knows."""
    looks = known.looked("structure")
    if looks:
        return looks[0].values["batch_norms"][0] > 0
    return None if known.facts is None else known.facts.batch_norm


def batch_norm_size(known: Known) -> Ruling:
    """BatchNorm needs batches of 32 or more."""
    if has_norms(known) is False:
        return NO_NORM
    looks = known.looked("batch_norm")
    if len(looks) < 2:
        return unmeasured(known, "batch_norm")
    needed: dict[str, list[float]] = {}
    for look in looks:
        sizes = look.values["size"]
        for i, name in enumerate(look.texts["layer"]):
            errors = look.values[f"error_{i}"]
            # By the law of the mean: error = first / sqrt(batch).
            found = [2 * math.log(e) + math.log(n) for n, e in zip(sizes, errors, strict=True) if e > 0]
            if found:
                needed.setdefault(name, []).append(sum(found) / len(found) - 2 * math.log(GOOD_STATISTICS))
    whole = {name: found for name, found in needed.items() if len(found) >= 2}
    if not whole:
        return unknown("no layer's statistics could be told")
    worst = max(whole, key=lambda name: sum(whole[name]) / len(whole[name]))
    mean, low, high = mean_interval(whole[worst], least_sd=0.1)
    verdict = beyond(low, high, math.log(USUAL_LEAST))
    figure, micro = (
        math.exp(mean),
        known.batch if known.probe is None else min(known.batch, known.probe.micro_batch_size),
    )
    off = GOOD_STATISTICS * math.sqrt(figure / micro)
    said = (
        f"in layer {worst} the mean of a batch is off by {off:.2g} deviations at {micro}; {figure:.0f} samples bring "
        f"that to {GOOD_STATISTICS:g}"
    )
    if micro >= figure:
        advice = f"Micro-batches of {micro} are enough for its statistics."
    else:
        advice = (
            "Use larger micro-batches, SyncBatchNorm over devices, GroupNorm, or frozen statistics; accumulation does "
            "not help BatchNorm."
        )
    sizes = looks[-1].values["size"]
    index = looks[-1].texts["layer"].index(worst)
    data = {"batch_size": sizes, "error": looks[-1].values[f"error_{index}"]}
    return ratio_ruling(verdict, said, advice, (mean, low, high), "samples", data)


def running_statistics(known: Known) -> Ruling:
    """BatchNorm's running statistics are right when it comes to evaluation."""
    if has_norms(known) is False:
        return NO_NORM
    looks = known.looked("running_statistics")
    if not looks:
        return unmeasured(known, "running_statistics")
    last = looks[-1].values
    pairs = list(zip(last["running"], last["precise"], strict=True))
    level = abs(sum(b for _, b in pairs) / len(pairs))
    if len(pairs) < 3 or level == 0:
        return unknown("the validation data are too few", "")
    mean, low, high = mean_interval([(a - b) / level for a, b in pairs])
    verdict: Judgement = "cannot tell"
    if low > -SAME_LOSS and high < SAME_LOSS:
        verdict = "holds"
    elif low > SAME_LOSS or high < -SAME_LOSS:
        verdict = "does not hold"
    updates = int(last["updates"][0])
    said = (
        f"after {updates:,} updates the validation loss is {mean:+.1%} with the running statistics, against ones made "
        "afresh from training samples"
    )
    advice = {
        "holds": "Evaluate as you do.",
        "does not hold": "Before each evaluation reset the statistics and make them afresh from 1,000 training samples "
        "(torch.optim.swa_utils.update_bn); the fewer updates, the more it matters.",
    }.get(verdict, "Compare once at the end of a full run, with torch.optim.swa_utils.update_bn.")
    return Ruling(verdict, said, advice, 100 * mean, "% loss", 100 * low, 100 * high)


def last_batch(known: Known) -> Ruling:
    """The last, smaller batch of an epoch does no harm."""
    if has_norms(known) is False:
        return NO_NORM
    assert known.facts is not None
    micro = known.batch if known.probe is None else min(known.batch, known.probe.micro_batch_size)
    rest = known.facts.n_samples % micro
    if rest == 0:
        return Ruling("holds", f"{known.facts.n_samples:,} samples make whole batches of {micro}", "", 0.0, "samples")
    said = f"{known.facts.n_samples:,} samples in batches of {micro} leave a last one of {rest}"
    if rest == 1:
        return Ruling(
            "does not hold",
            f"{said}, and BatchNorm cannot train on a single sample",
            "Use drop_last=True, as bstune does.",
            1.0,
            "samples",
        )
    worse = math.sqrt(micro / rest)
    said += f", whose statistics are {worse:.2g} times as far off"
    if worse < 2:
        return Ruling("holds", said, "Leave it as it is.", float(rest), "samples")
    return Ruling("does not hold", said, "Use drop_last=True, as bstune does.", float(rest), "samples")


def bias_before_norm(known: Known) -> Ruling:
    """A bias right before BatchNorm has no effect."""
    looks = known.looked("structure")
    if not looks:
        return unmeasured(known, "structure")
    if not looks[0].values["batch_norms"][0]:
        return NO_NORM
    names = looks[0].texts["useless"]
    if not names:
        return Ruling("not applicable", "no layer with a bias stands right before a BatchNorm")
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    n = looks[0].values["useless_biases"][0]
    said = f"BatchNorm takes the mean away that these biases add: {shown}"
    return Ruling("holds", said, f"Give them bias=False: {n:,.0f} parameters less.", n, "parameters")


def norm_on_output(known: Known) -> Ruling:
    """No BatchNorm on the output layer."""
    looks = known.looked("structure")
    if not looks:
        return unmeasured(known, "structure")
    if not looks[0].values["batch_norms"][0]:
        return NO_NORM
    if looks[0].values["on_output"][0]:
        return Ruling(
            "does not hold",
            "the output of your model comes out of a BatchNorm: its scale is bound to the batch",
            "Take the last BatchNorm out, and look whether the validation loss falls.",
        )
    return Ruling("holds", "your model keeps to it: its output comes out of another layer", "Leave it as it is.")


def curvature_limit(known: Known) -> Ruling:
    """The learning rate is limited by the curvature of the loss."""
    if known.facts is not None and known.facts.optimizer_family == "adam":
        return Ruling(
            "not applicable", "the bound of 2 / curvature is that of SGD; Adam rescales each weight's step itself"
        )
    looks = known.looked("curvature")
    if known.facts is None or known.facts.optimizer_family != "sgd":
        return unknown("the bound of 2 / curvature is known for SGD alone", "")
    found: list[float] = []
    limits: list[float] = []
    for look in looks:
        values = [value for value in look.values["eigenvalue"] if value > 0]
        allowed = [2 * (1 + look.values["momentum"][0]) / value for value in values]
        limits += [statistics.mean(allowed)] if allowed else []
        if look in looks[-LATE:]:  # It moves at first, and what counts is where it comes to stand.
            found += [math.log(look.values["learning_rate"][0] / limit) for limit in allowed]
    if len(found) < 2:
        return (
            unknown("the curvature was not above zero") if known.looked("curvature") else unmeasured(known, "curvature")
        )
    mean, low, high = mean_interval(found, least_sd=0.1)
    verdict = beyond(low, high, math.log(AT_THE_LIMIT))
    tuned = "recommended" if known.best is not None else "usual"
    said = (
        f"the {tuned} rate of {known.setting.learning_rate:.3g} is {math.exp(mean):.2g} of the largest that the "
        f"curvature allows, which was {limits[0]:.3g} first and is {limits[-1]:.3g} later"
    )
    advice = {
        "holds": "A larger batch will not allow a larger rate; warm-up, momentum or a better conditioned model may.",
        "does not hold": "Noise, not curvature, bounds the rate: a larger batch allows a larger one.",
    }.get(verdict, "Let a search try rates around it.")
    data = {"at_samples": [look.at_samples for look in looks], "largest_rate": limits}
    return ratio_ruling(verdict, said, advice, (mean, low, high), "of the largest stable rate", data)


def layers_differ(known: Known) -> Ruling:
    """Layers need learning rates of their own (LARS, LAMB)."""
    if known.facts is not None and known.facts.optimizer_family == "adam":
        return Ruling("not applicable", "Adam rescales the step of each weight already")
    spreads, names = [], ("", "")
    for look in known.looked("layers"):
        ratios = sorted(zip(look.values["ratio"], look.texts["layer"], strict=False))
        if len(ratios) >= 2:
            spreads.append(math.log(ratios[-1][0] / ratios[0][0]))
            names = ratios[0][1], ratios[-1][1]
    if len(spreads) < 2:
        single = unknown("the model has a single layer with weights")
        return single if known.looked("layers") else unmeasured(known, "layers")
    mean, low, high = (max(x, 0.0) for x in mean_interval(spreads, least_sd=0.1))
    verdict = beyond(low, high, math.log(SPREAD))
    said = (
        f"|weight| / |gradient| differs {math.exp(mean):.3g} times between layers (most in {names[1]}, least in "
        f"{names[0]})"
    )
    advice = {
        "holds": "Try LARS or LAMB, or param groups with rates of their own, once the batch is several times critical.",
        "does not hold": "One rate for all layers is fine.",
    }.get(verdict, "One rate for all layers is the simpler start.")
    return ratio_ruling(verdict, said, advice, (mean, low, high), "times between layers", {"spread": spreads})


def fine_tuning(known: Known) -> Ruling:
    """Fine-tuning wants a low rate and a small batch."""
    looks = known.looked("structure")
    if not looks:
        return unmeasured(known, "structure")
    same, frozen = looks[0].values["same_share"][0], looks[0].values["frozen_share"][0]
    if same < FINE_TUNED and frozen < FINE_TUNED:
        return Ruling(
            "not applicable",
            f"the model is trained from scratch: {same:.0%} of its weights are the same in two fresh models, "
            f"{frozen:.0%} are frozen",
        )
    said = f"{same:.0%} of the weights are the same in two fresh models, and {frozen:.0%} are frozen"
    if known.best is None or known.facts is None:
        return unknown(f"{said}; which rate is best is not known", "Search first: bstune search MODEL")
    family = known.facts.optimizer_family
    ratio = known.best.learning_rate / usual_rate(family, known.best.global_batch_size)
    # A search finds the best rate to within about an octave.
    verdict = below(ratio / 2, ratio * 2, 1 / 3)
    batch = known.best.global_batch_size
    said += f"; the recommended rate is {ratio:.2g} times a usual one from scratch at its batch of {batch}"
    advice = {
        "holds": "Keep the rate low, and let the search try small batches.",
        "does not hold": "Your data want a rate as from scratch.",
    }.get(verdict, "")
    return Ruling(verdict, said, advice, ratio, "times a usual rate", ratio / 2, ratio * 2)
