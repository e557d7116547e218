"""The choice among candidates by the goal, and why: codes and figures; `report/reasons.py` words them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..core.remarks import BatchLimits, Reason, ReasonCode
from ..core.results import Candidate
from ..theory.intervals import student_quantile
from .candidates import key_of_candidate, seed_noise, setting_of
from .evidence import Evidence
from .samples_to_target import batch_answer


def choose(evidence: Evidence, pool: Sequence[Candidate], confirmed: bool) -> tuple[Candidate, Reason]:
    """Return the best of the pool by the goal, and why.

    Args:
        evidence: All that is known.
        pool: What is compared, not empty, best first.
        confirmed: The pool was run on fresh seeds.
    """
    chosen, code = _by_goal(evidence, pool)
    tied = 0
    if not confirmed:
        code = "unconfirmed"
    elif len({run.key for run in evidence.ledger}) == 1:
        code = "only"
    elif evidence.plan.goal == "loss":
        tied = _n_tied(evidence, chosen, pool)
    reason = Reason(
        code,
        global_batch_size=chosen.global_batch_size,
        learning_rate=chosen.learning_rate,
        is_baseline=key_of_candidate(chosen) == evidence.baseline,
        n_compared=len(pool),
        n_tried=len({run.key for run in evidence.ledger}),
        n_seeds=chosen.val_loss.n_seeds,
        n_tied=tied,
        tolerance=evidence.plan.tolerance,
        target=evidence.target,
        seconds_to_target=chosen.seconds_to_target,
        limits=_limits(evidence),
        past_end=(chosen.samples_to_target or 0.0) > evidence.context.rungs.full_samples,
    )
    return chosen, reason


def _by_goal(evidence: Evidence, pool: Sequence[Candidate]) -> tuple[Candidate, ReasonCode]:
    """Return what the goal asks for, by all that is known of each setting."""
    assert evidence.model is not None
    settings = [setting_of(c) for c in pool]
    chosen = pool[evidence.best_of(settings)]
    if evidence.plan.goal == "time" and evidence.clock.known:
        return chosen, "soonest"
    if evidence.plan.goal == "largest":
        return chosen, "largest"
    return chosen, "lowest" if chosen is pool[int(np.argmin(evidence.model.losses(settings)))] else "fastest"


def within(evidence: Evidence, pool: Sequence[Candidate]) -> list[Candidate]:
    """Return those of the pool that are expected to end within tolerance of its lowest loss."""
    assert evidence.model is not None
    losses = evidence.model.losses([setting_of(c) for c in pool])
    most = float(losses.min()) + evidence.plan.tolerance * abs(float(losses.min()))
    return [c for c, loss in zip(pool, losses, strict=True) if loss <= most]


def _n_tied(evidence: Evidence, chosen: Candidate, pool: Sequence[Candidate]) -> int:
    """Return how many others cannot be told from the chosen one: the 90 % interval of their ratio holds 1."""
    noise, freedom = seed_noise(evidence)
    mean = chosen.val_loss.mean or 0.0
    slack = student_quantile(freedom) * noise * abs(mean) * math.sqrt(2 / max(1, chosen.val_loss.n_seeds))
    return sum(other is not chosen and abs((other.val_loss.mean or 0.0) - mean) <= slack for other in pool)


def _limits(evidence: Evidence) -> BatchLimits | None:
    """Return what memory, hardware and gradient noise each allow; None without a probe, which knows the first two."""
    probe = evidence.probe
    if probe is None or probe.step_time_line is None:
        return None
    hardware, more = probe.step_time_line.saturation_batch, probe.limited_by != "memory"
    memory = probe.micro_batch_size * evidence.facts.world_size
    return BatchLimits.of(batch_answer(evidence), memory, hardware, more_memory=more)
