"""A recommended setting at another batch size: learning rate, betas, weight decay and warm-up, moved by a rule.

The rule for the learning rate is the one that the search has measured; without one it is the textbook's for the kind of
optimizer. The others follow from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..objectives.fingerprint import optimizer_family
from .core.amounts import brief
from .core.checks import Checks
from .core.errors import ArgumentError
from .core.results import LrRule, Recommendation, SearchResult
from .core.take_home import Scaled
from .report.reasons import not_tried
from .theory.scaling import SLOPE_PRIOR, split

TEXTBOOK = {
    "adam": (0.5, "square root, for optimizers like Adam (Malladi et al. 2022, arXiv:2205.10287)"),
    "sgd": (1.0, "linear, for SGD (Goyal et al. 2017, arXiv:1706.02677)"),
}
SAME_AS_PRIOR = 0.15
"""A rule whose middle and width are so close to those of the prior says no more than that."""
_BETAS_RULE = "arXiv:2205.10287"
_OWN_FIELDS = ("betas", "beta1", "beta2", "eps", "weight_decay", "warmup_steps")


def scale(
    recommendation: Recommendation | SearchResult,
    *,
    batch_size: int,
    optimizer: str | None = None,
    micro_max: int | None = None,
    world_size: int | None = None,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    warmup_steps: int | None = None,
) -> Scaled:
    """Return a recommended setting moved to another global batch size, with the rule and where it holds.

    Give what you train with today at the recommended batch size; what the recommendation's own `params` hold under
    these names is taken from there. What is not known stays None.

    Args:
        recommendation: `SearchResult.recommendation`, or the whole `SearchResult`, which also knows the optimizer, the
            critical batch, all batch sizes that were run, and the longest sample where sizes count tokens.
        batch_size: The new global batch size.
        optimizer: Name of the optimizer's class, such as `"AdamW"`; needed only where the search has measured no rule.
        micro_max: Most samples that fit in one forward and backward pass on one device; by default what the probe of
            the search has tried, else the recommended micro-batch. A search probes no more than it uses: more may
            fit, and a warning says so where it matters.
        world_size: Processes that train together; by default the recommendation's.
        betas: Of Adam. 1 - beta grows with the batch (Malladi et al. 2022, arXiv:2205.10287).
        eps: Of Adam. Falls with the root of the batch (the same).
        weight_decay: Decoupled or in the loss. Weights average over as many samples as before: it grows with the batch
            and falls with the rate (Wang and Aitchison 2024, arXiv:2405.13698).
        warmup_steps: Updates of warm-up; afterwards for as many samples.

    Raises:
        ArgumentError: An argument is wrong on its face, no rule is known for the optimizer, or no split is left.
    """
    whole = recommendation if isinstance(recommendation, SearchResult) else None
    best = whole.recommendation if whole is not None else recommendation
    if not isinstance(best, Recommendation):
        raise ArgumentError(f"recommendation={brief(recommendation)}: expected SearchResult.recommendation.")
    today = _Today.of(best.params, betas, eps, weight_decay, warmup_steps)
    checks = Checks()
    batch = checks.integer("batch_size", batch_size, 1)
    today.check(checks)
    checks.done()
    probe = None if whole is None else whole.probe
    rule = _rule(best, optimizer or (None if probe is None else probe.optimizer))
    processes = best.world_size if world_size is None else world_size
    most, longest = (best.micro_batch_size, 1) if probe is None else (probe.micro_batch_size, probe.longest)
    micro, accumulation = split(batch, most if micro_max is None else micro_max, processes, longest=longest)
    ratio = batch / best.global_batch_size
    rate = best.learning_rate * ratio**rule.alpha
    ends = [best.learning_rate * ratio**end for end in (rule.low, rule.high) if end is not None]
    low, high, reach = _valid(best, whole)
    warnings = [*_outside(batch, low, high, reach), *rule.warnings]
    if micro_max is None and probe is not None and (said := not_tried(probe, batch // processes)):
        warnings.append(said)
    return Scaled(
        global_batch_size=batch,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        world_size=processes,
        learning_rate=rate,
        learning_rate_low=min(ends, default=None),
        learning_rate_high=max(ends, default=None),
        rule=rule.text,
        alpha=rule.alpha,
        alpha_low=rule.low,
        alpha_high=rule.high,
        valid_low=low,
        valid_high=high,
        betas=today.scaled_betas(ratio, warnings),
        eps=None if today.eps is None else today.eps / math.sqrt(ratio),
        # Wang and Aitchison: batch / (rate * decay) stays.
        weight_decay=None if today.weight_decay is None else today.weight_decay * ratio ** (1 - rule.alpha),
        warmup_steps=None if today.warmup_steps is None else math.ceil(today.warmup_steps / ratio),
        params={name: value for name, value in best.params.items() if name not in _OWN_FIELDS},
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class _Rule:
    """How the learning rate moves."""

    alpha: float
    low: float | None
    high: float | None
    text: str
    warnings: tuple[str, ...] = ()


def _rule(best: Recommendation, optimizer: str | None) -> _Rule:
    """Return the measured rule, else the textbook's for this kind of optimizer.

    Raises:
        ArgumentError: Neither is known.
    """
    measured: LrRule | None = best.lr_rule
    if measured is not None:
        interval = (
            ""
            if measured.low is None or measured.high is None
            else f" (90 %: {measured.low:.2f} to {measured.high:.2f})"
        )
        text = f"measured by this search: twice the batch, 2**{measured.alpha:.2f} times the rate{interval}"
        return _Rule(measured.alpha, measured.low, measured.high, text, _HARDLY if _is_assumed(measured) else ())
    family = optimizer_family(optimizer)
    if family not in TEXTBOOK:
        said = "not known" if optimizer is None else f"{brief(optimizer)}, which is like neither SGD nor Adam"
        raise ArgumentError(
            "This search has measured no rule for the learning rate (that takes two batch sizes or more), and the "
            f"optimizer is {said}. Give optimizer='AdamW', 'SGD' or another one like these."
        )
    alpha, text = TEXTBOOK[family]
    return _Rule(
        alpha, None, None, text, ("The rule for the learning rate is the textbook's: none was measured here.",)
    )


_HARDLY = (
    "The search has hardly measured how the rate moves: the rule is about what is assumed for such optimizers "
    "beforehand. More batch sizes, or a larger budget, would tell.",
)


def _is_assumed(rule: LrRule) -> bool:
    """Tell whether a rule is hardly more than the prior that went into it."""
    if rule.low is None or rule.high is None:
        return False
    return any(
        abs(rule.alpha - mean) < SAME_AS_PRIOR * sd
        and abs((rule.high - rule.low) / (2 * 1.645 * sd) - 1) < SAME_AS_PRIOR
        for mean, sd in SLOPE_PRIOR.values()
    )


def _valid(best: Recommendation, whole: SearchResult | None) -> tuple[int, int, int]:
    """Return from and up to which batch size a rule may be relied on, and the largest that was measured."""
    others = (best.fastest, best.smallest_within_tolerance, best.lowest_loss, *best.alternatives, *best.frontier)
    measured = {best.global_batch_size, *(one.global_batch_size for one in others if one is not None)}
    critical = None
    if whole is not None:
        measured |= {run.global_batch_size for run in whole.records if any(loss is not None for _, loss in run.values)}
        answer = whole.batch_answer
        critical = answer.b_crit if answer is not None and answer.b_crit is not None else whole.limits.noise
    largest = max(measured)
    return min(measured), max(largest, int(critical or 0)), largest


def _outside(batch: int, low: int, high: int, reach: int) -> list[str]:
    if batch < low:
        return [f"Batch {batch} is below {low}, the smallest that was measured: the rule is extended to it."]
    if batch > high:
        return [
            f"Batch {batch} is above {high}, up to which the rule may be relied on: beyond, the best rate grows less, "
            "and may fall. Search with space={'batch_size': [...]} to measure it."
        ]
    if batch > reach:
        return [
            f"Batch {batch} is above {reach}, the largest that was measured, but below the critical batch ({high}): "
            "the rule is extended to it."
        ]
    return []


@dataclass(frozen=True)
class _Today:
    """What is trained with at the recommended batch size, as far as it is known."""

    betas: Any
    eps: Any
    weight_decay: Any
    warmup_steps: Any

    @classmethod
    def of(cls, params: dict[str, Any], betas: Any, eps: Any, weight_decay: Any, warmup_steps: Any) -> _Today:
        """Return what was given, else what the recommendation holds."""
        pair = (params["beta1"], params["beta2"]) if {"beta1", "beta2"} <= params.keys() else None
        return cls(
            betas if betas is not None else params.get("betas", pair),
            eps if eps is not None else params.get("eps"),
            weight_decay if weight_decay is not None else params.get("weight_decay"),
            warmup_steps if warmup_steps is not None else params.get("warmup_steps"),
        )

    def check(self, checks: Checks) -> None:
        """Note what is wrong."""
        if self.betas is not None and not (
            isinstance(self.betas, (tuple, list))
            and len(self.betas) == 2
            and all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in self.betas)
        ):
            checks.wrong(f"betas={brief(self.betas)}: expected two numbers from 0 up to, but below, 1.")
        if self.eps is not None:
            checks.real("eps", self.eps, lambda x: x > 0, "a number above 0")
        if self.weight_decay is not None:
            checks.real("weight_decay", self.weight_decay, lambda x: x >= 0, "a number of 0 or more")
        if self.warmup_steps is not None:
            checks.integer("warmup_steps", self.warmup_steps, 0)

    def scaled_betas(self, ratio: float, warnings: list[str]) -> tuple[float, ...] | None:
        """Return the betas: 1 - beta times the ratio of the batch sizes."""
        if self.betas is None:
            return None
        found = tuple(1 - ratio * (1 - beta) for beta in self.betas)
        if min(found) >= 0:
            return found
        warnings.append(
            f"At {ratio:g} times the batch the rule for betas ({_BETAS_RULE}) has no value for "
            f"{' and '.join(f'{beta:g}' for beta, new in zip(self.betas, found, strict=True) if new < 0)}: 0 stands "
            "for it. Its derivation needs steps that are small; search the betas instead."
        )
        return tuple(max(0.0, beta) for beta in found)
