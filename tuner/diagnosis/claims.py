"""All claims that are diagnosed: a new one is a function in one of the groups, and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..core.checks import nearest
from ..core.diagnosis import Finding
from ..core.errors import ArgumentError
from . import course, dimensions, hardware, learning_rate, model, noise, outcome, sizes, trained
from .known import Known, Ruling, unknown

Need = Literal["facts", "probe", "search"]


@dataclass(frozen=True)
class Claim:
    """A claim, who makes it, and what judges it."""

    name: str
    text: str
    source: str
    judge: Callable[[Known], Ruling]
    needs: tuple[Need, ...] = ()
    """What must be recorded, or nothing can be told."""
    measurement: str | None = None
    """What must be measured on the model; None where the record is enough."""
    recorded: bool = False
    """A search may have recorded it, so that nothing needs to be measured."""
    names_samples: bool = False
    """It names a number of samples, so where sizes count tokens it says nothing."""


BLOG = "blogs on the batch size"
ANSWER = "answers on Q&A sites"
NG = "Ng, Deep Learning course"
GOODFELLOW = "Goodfellow et al. 2016, Deep Learning, 8.1.3"
GOYAL = "Goyal et al. 2017, arXiv:1706.02677"
MALLADI = "Malladi et al. 2022, arXiv:2205.10287"
KESKAR = "Keskar et al. 2017, arXiv:1609.04836"
MISHKIN = "Mishkin et al. 2017, arXiv:1606.02228"
MASTERS = "Masters and Luschi 2018, arXiv:1804.07612"
CLAIMS: tuple[Claim, ...] = (
    Claim("flat-step-time", "A step takes the same time at any batch size.", BLOG, hardware.flat_step_time, ("probe",)),
    Claim(
        "step-time-line",
        "The time of a step is a fixed part plus a part for each sample.",
        "Qiao et al. 2021 (Pollux), OSDI",
        hardware.step_time_line,
        ("probe",),
    ),
    Claim(
        "better-use",
        "The larger the batch, the better the use of the device.",
        "Tuning Playbook, Godbole et al. 2023",
        hardware.better_use,
        ("probe",),
    ),
    Claim(
        "below-32",
        "A batch below 32 wastes what the hardware can do.",
        ANSWER,
        hardware.below_32,
        ("probe",),
        names_samples=True,
    ),
    Claim("loader", "Reading the data costs training no time.", "assumed by most advice", hardware.loader, ("probe",)),
    Claim("which-memory", "Memory limits the batch size.", NG, hardware.which_memory, ("probe",)),
    Claim(
        "updates-per-epoch",
        "Twice the batch makes half the updates in an epoch.",
        BLOG,
        hardware.updates_per_epoch,
        ("facts",),
    ),
    Claim(
        "fill-memory",
        "Take the largest batch that fits in memory.",
        NG,
        outcome.fill_memory,
        ("probe", "search"),
    ),
    Claim(
        "start-with-32", "Start with a batch of 32.", MASTERS, outcome.start_with_32, ("search",), names_samples=True
    ),
    Claim("coupling", "The best learning rate grows with the batch size.", BLOG, learning_rate.coupling, ("search",)),
    Claim(
        "crossed-pairs",
        "A small batch wants a low rate and a large one a high rate; crossed, both are bad.",
        BLOG,
        sizes.crossed_pairs,
        ("facts",),
        "crossed_pairs",
        recorded=True,
    ),
    Claim(
        "linear-rule",
        "Multiply the learning rate by as much as the batch.",
        GOYAL,
        learning_rate.linear_rule,
        ("search",),
    ),
    Claim(
        "root-rule",
        "Multiply the learning rate by the square root of what the batch is multiplied by.",
        MALLADI,
        learning_rate.root_rule,
        ("search",),
    ),
    Claim(
        "rate-too-far",
        "Too large a rate overshoots, and too small a one is slow.",
        "Ng, Machine Learning course",
        learning_rate.too_large_too_small,
        ("search",),
    ),
    Claim(
        "curve-shapes",
        "The shape of a curve tells whether its rate is too high (it jumps) or too low (it creeps).",
        "Ng, Machine Learning course",
        course.curve_shapes,
        ("facts", "search"),
    ),
    Claim(
        "large-is-worse",
        "A larger batch reaches a worse loss, even with its own best learning rate.",
        f"{MISHKIN}; {KESKAR}",
        outcome.large_is_worse,
        ("search",),
    ),
    Claim(
        "shared-rate",
        "Batch sizes can be compared at one learning rate.",
        "the habit of many tables",
        outcome.shared_rate,
        ("search",),
    ),
    Claim(
        "4-or-4096",
        "A batch of 4096 makes 1024 times fewer updates than one of 4, and learns less from the same samples.",
        ANSWER,
        outcome.four_or_4096,
        ("facts",),
        names_samples=True,
    ),
    Claim(
        "largest-fastest",
        "The largest batch reaches the target first.",
        BLOG,
        outcome.largest_is_fastest,
        ("facts", "search"),
    ),
    Claim(
        "small-equal-seconds",
        "After the same seconds a smaller batch may have the lower loss.",
        ANSWER,
        outcome.small_at_equal_seconds,
        ("facts", "search"),
    ),
    Claim(
        "best-checkpoint",
        "Keep the best checkpoint, not the last.",
        ANSWER,
        course.best_checkpoint,
        ("facts", "search"),
    ),
    Claim(
        "best-looks-better",
        "The best of many trials looks better than it is.",
        "Tuning Playbook, Godbole et al. 2023",
        course.best_looks_better,
        ("facts", "search"),
    ),
    Claim(
        "first-rise",
        "The loss oscillates: do not stop at its first rise.",
        ANSWER,
        course.first_rise,
        ("facts", "search"),
    ),
    Claim(
        "short-runs-tell",
        "Short runs on a part of the samples show which setting is best.",
        ANSWER,
        course.short_runs_tell,
        ("facts", "search"),
    ),
    Claim(
        "square-root-law",
        "The error of a gradient falls with the square root of the batch.",
        GOODFELLOW,
        noise.square_root_law,
        ("facts",),
        "gradients",
    ),
    Claim(
        "twice-is-half",
        "Twice the batch needs half the steps.",
        "McCandlish et al. 2018, arXiv:1812.06162",
        noise.twice_is_half,
        ("facts",),
        "gradients",
        recorded=True,
    ),
    Claim(
        "noisy-loss",
        "The loss of a single mini-batch says little: there are easy and hard ones.",
        NG,
        noise.noisy_loss,
        ("facts",),
        "gradients",
    ),
    Claim(
        "only-a-sample",
        "Even the full training set is only a sample: its gradient is not that of new data.",
        ANSWER,
        noise.only_a_sample,
        ("facts",),
        "agreement",
    ),
    Claim(
        "stratified-batches",
        "Batches with the same mix of classes have better gradients.",
        ANSWER,
        noise.stratified_batches,
        ("facts",),
        "strata",
    ),
    Claim(
        "curvature-limit",
        "The learning rate is limited by the curvature of the loss.",
        GOODFELLOW,
        model.curvature_limit,
        ("facts",),
        "curvature",
    ),
    Claim(
        "layers-differ",
        "Layers need learning rates of their own (LARS, LAMB).",
        "You et al. 2017, arXiv:1708.03888",
        model.layers_differ,
        ("facts",),
        "layers",
    ),
    Claim(
        "fine-tuning",
        "Fine-tuning wants a low rate and a small batch.",
        "Kandel and Castelli 2020, ICT Express 6",
        model.fine_tuning,
        ("facts",),
        "structure",
    ),
    Claim(
        "batch-norm-32",
        "BatchNorm needs batches of 32 or more.",
        "Wu and Johnson 2021, arXiv:2105.07576",
        model.batch_norm_size,
        ("facts",),
        "batch_norm",
    ),
    Claim(
        "ghost-batches",
        "BatchNorm generalises better with small parts of a large batch (ghost batches).",
        "Hoffer et al. 2017, arXiv:1705.08741",
        sizes.ghost_batches,
        ("facts",),
        "ghost_batches",
    ),
    Claim(
        "running-statistics",
        "BatchNorm's running statistics are right when it comes to evaluation.",
        "assumed by most code; Wu and Johnson 2021",
        model.running_statistics,
        ("facts",),
        "running_statistics",
    ),
    Claim(
        "last-batch",
        "The last, smaller batch of an epoch does no harm.",
        "assumed by most code",
        model.last_batch,
        ("facts",),
        "structure",
    ),
    Claim(
        "bias-before-norm",
        "A bias right before BatchNorm has no effect.",
        "Ioffe and Szegedy 2015, arXiv:1502.03167",
        model.bias_before_norm,
        ("facts",),
        "structure",
    ),
    Claim("norm-on-output", "No BatchNorm on the output layer.", BLOG, model.norm_on_output, ("facts",), "structure"),
    Claim("powers-of-two", "Batch sizes should be powers of two.", NG, trained.powers_of_two, ("probe",), "step_times"),
    Claim(
        "multiples-of-8",
        "Batch sizes should be multiples of 8.",
        "NVIDIA, Deep Learning Performance Guide",
        trained.multiples_of_eight,
        ("probe",),
        "step_times",
    ),
    Claim(
        "warm-up",
        "Training needs a warm-up, or its start is unstable.",
        GOYAL,
        trained.warm_up,
        ("facts",),
        "early_losses",
    ),
    Claim(
        "grow-the-batch",
        "Do not decay the learning rate, grow the batch.",
        "Smith et al. 2018, arXiv:1711.00489",
        trained.grow_the_batch,
        ("facts",),
        "grown_batch",
    ),
    Claim(
        "full-batch",
        "With 2,000 samples or fewer, use all of them in each step.",
        NG,
        trained.full_batch,
        ("facts",),
        "at_full_batch",
    ),
    Claim(
        "adam-or-sgd",
        "Adam learns faster than SGD.",
        BLOG,
        dimensions.adam_or_sgd,
        ("facts",),
        "two_optimizers",
        recorded=True,
    ),
    Claim(
        "generalization-gap",
        "At the same training loss a larger batch is worse on new data: the noise of small ones regularises.",
        KESKAR,
        sizes.generalization_gap,
        ("facts",),
        "side_by_side",
    ),
    Claim(
        "sharp-minima",
        "Large batches end in sharp minima, which generalise worse.",
        KESKAR,
        sizes.sharp_minima,
        ("facts",),
        "side_by_side",
    ),
    Claim(
        "escapes-minima",
        "Small batches escape from poor minima, in which large ones get stuck.",
        ANSWER,
        outcome.escapes_minima,
        ("facts",),
    ),
    Claim(
        "momentum-for-batch",
        "More momentum does what a smaller batch would undo: keep the noise temperature.",
        "Smith et al. 2018, arXiv:1711.00489",
        dimensions.momentum_for_batch,
        ("facts",),
    ),
)
NAMES = tuple(claim.name for claim in CLAIMS)
OWN_LOOP = (
    "bstune sees no model of a command, a framework's Trainer or a loop of your own; give it as a bstune.Supervised"
)
BY_TOKENS = "it is measured by samples, and the sizes of this objective count tokens"
MISSING = {
    "facts": ("nothing is recorded of this objective", "Search first: bstune search MODEL"),
    "probe": ("no probe of this objective is recorded", "Probe it: bstune probe MODEL"),
    "search": ("no search of this objective is recorded", "Search first: bstune search MODEL"),
}


def chosen(only: Iterable[str] | None) -> tuple[Claim, ...]:
    """Return the claims of these names, in the usual order; None: all.

    Raises:
        ArgumentError: There is no such name.
    """
    if only is None:
        return CLAIMS
    wanted = list(only)
    wrong = [name for name in wanted if name not in NAMES]
    if wrong:
        meant = nearest(wrong[0], NAMES)
        hint = "" if meant is None else f" Did you mean {meant}?"
        raise ArgumentError(f"No finding is called {', '.join(map(repr, wrong))}. Names: {', '.join(NAMES)}.{hint}")
    return tuple(claim for claim in CLAIMS if claim.name in wanted)


def judged(claims: Sequence[Claim], known: Known) -> tuple[Finding, ...]:
    """Return what is found of each claim by all that is known."""
    return tuple(_finding(claim, known, _ruling(claim, known)) for claim in claims)


def untold(claims: Iterable[Claim], known: Known) -> list[Claim]:
    """Return the claims of which the record does not tell, and a measurement may: none where the loop is the user's."""
    if known.facts is not None and not known.facts.can_be_looked_at:
        return []
    measurable = [claim for claim in claims if claim.measurement is not None]
    verdicts = {finding.name: finding.verdict for finding in judged(measurable, known)}
    return [claim for claim in measurable if verdicts[claim.name] == "cannot tell"]


def measurements_of(claims: Iterable[Claim]) -> list[str]:
    """Return the names of what these claims need, each once."""
    return list(dict.fromkeys(claim.measurement for claim in claims if claim.measurement is not None))


def _ruling(claim: Claim, known: Known) -> Ruling:
    there = {"facts": known.facts, "probe": known.probe, "search": known.result}
    for need in claim.needs:
        if there[need] is None:
            return unknown(*MISSING[need])
    facts = known.facts
    if claim.names_samples and facts is not None and facts.size_unit != "samples":
        return Ruling("not applicable", f"it is of samples, and the sizes of this objective count {facts.size_unit}")
    if claim.measurement is None or facts is None or facts.can_be_looked_at:
        return claim.judge(known)
    if not claim.recorded:
        return Ruling("not applicable", BY_TOKENS if facts.kind == "supervised" else OWN_LOOP)
    ruling = claim.judge(known)
    if ruling.found != known.why_not(claim.measurement):
        return ruling
    return unknown("no search has told it", "Search: bstune search MODEL")  # Another diagnosis would not tell.


def _finding(claim: Claim, known: Known, ruling: Ruling) -> Finding:
    interval = None if ruling.low is None and ruling.high is None else (ruling.low, ruling.high)
    return Finding(
        name=claim.name,
        claim=claim.text,
        source=claim.source,
        verdict=ruling.verdict,
        found=ruling.found,
        figure=ruling.figure,
        unit=ruling.unit,
        interval=interval,
        advice=ruling.advice.replace("--only NAME", f"--only {claim.name}"),
        cost_s=known.cost_s.get(claim.measurement or "", 0.0),
        data=dict(ruling.data),
    )
