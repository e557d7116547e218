"""The choice among candidates by the goal, and why: codes and figures; `report/reasons.py` words them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.remarks import BatchLimits, Reason, ReasonCode
from ..core.results import Candidate
from ..theory.intervals import student_quantile
from .candidates import key_of_candidate, seed_noise
from .finalists import baseline_key
from .samples_to_target import Evidence, batch_answer


def choose(evidence: Evidence, pool: Sequence[Candidate], confirmed: bool) -> tuple[Candidate, Reason]:
    """Return the best of the pool by the goal, and why.

    Args:
        evidence: All that is known.
        pool: What is compared, not empty.
        confirmed: The pool was run on fresh seeds.
    """
    best = min(pool, key=lambda c: math.inf if c.val_loss.mean is None else c.val_loss.mean)
    chosen, code = _by_goal(evidence, pool, best)
    tied = 0
    if not confirmed:
        code = "unconfirmed"
    elif len(pool) == 1:
        code = _alone(evidence)
    elif chosen is best and evidence.plan.goal == "loss":
        tied = _n_tied(evidence, chosen, pool)
    reason = Reason(
        code,
        global_batch_size=chosen.global_batch_size,
        learning_rate=chosen.learning_rate,
        is_baseline=key_of_candidate(chosen) == baseline_key(evidence),
        n_compared=len(pool),
        n_tried=len({run.key for run in evidence.ledger}),
        n_seeds=chosen.val_loss.n_seeds,
        n_tied=tied,
        tolerance=evidence.plan.tolerance,
        target=evidence.target,
        limits=_limits(evidence),
    )
    return chosen, reason


def _by_goal(evidence: Evidence, pool: Sequence[Candidate], best: Candidate) -> tuple[Candidate, ReasonCode]:
    """Return what the goal asks for; the lowest loss is `best`."""
    plan = evidence.plan
    if plan.goal == "time":
        timed = [c for c in pool if c.samples_to_target is not None]
        if timed:
            return min(timed, key=lambda c: c.seconds_to_target or c.samples_to_target or math.inf), "soonest"
    elif plan.goal == "largest":
        slack = max(plan.tolerance, 2 * seed_noise(evidence)[0] / math.sqrt(max(1, best.val_loss.n_seeds)))
        even = within(pool, slack) or [best]
        return max(even, key=lambda c: (c.global_batch_size, -(c.val_loss.mean or 0.0))), "largest"
    else:
        even = within(pool, plan.tolerance)
        if len(even) > 1 and all(c.seconds_per_full_run is not None for c in even):
            chosen = min(even, key=lambda c: (c.seconds_per_full_run, c.val_loss.mean))
            return chosen, "lowest" if chosen is best else "fastest"
    return best, "lowest"


def _alone(evidence: Evidence) -> ReasonCode:
    """Return why a setting is recommended that was compared with none.

    What the search expected of it rests on runs that were mostly short.
    """
    if len({run.key for run in evidence.ledger}) == 1:
        return "only"
    if len({run.key for run in evidence.ledger if run.stage == "confirm" and run.state == "complete"}) > 1:
        return "first"  # Cut off within a round of seeds: means over different ones are not compared.
    if evidence.plan.goal == "time":
        return "alone_soonest"
    if evidence.plan.goal == "largest":
        return "alone_largest"
    return "alone_within" if evidence.cost.known and evidence.plan.tolerance > 0 else "alone_lowest"


def comparable(confirmed: Sequence[Candidate]) -> list[Candidate]:
    """Return the confirmed settings that share the most seeds: means over different seeds are not compared."""
    most = max((c.val_loss.n_seeds for c in confirmed), default=0)
    return [c for c in confirmed if c.val_loss.n_seeds == most]


def within(pool: Sequence[Candidate], tolerance: float) -> list[Candidate]:
    """Return those of the pool that end within this share of its lowest loss."""
    means = [c.val_loss.mean for c in pool if c.val_loss.mean is not None]
    most = min(means, default=0.0) + tolerance * abs(min(means, default=0.0))
    return [c for c in pool if c.val_loss.mean is not None and c.val_loss.mean <= most]


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
    return BatchLimits.of(batch_answer(evidence), probe.micro_batch_size, hardware, more_memory=more)
