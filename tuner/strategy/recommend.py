"""The choice among what was run, at any moment, and how sure it is.

Settings that were confirmed on fresh seeds are compared on those seeds only: the losses that they were selected by
are too good to be believed. Before any is confirmed, the surrogate's view of the full run decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..core.errors import NoSignalError
from ..core.results import Candidate, LossEstimate, LrRule, OnDevice, ProbeResult, Recommendation, Setting
from ..theory.critical_batch import limits_sentence
from ..theory.intervals import student_quantile
from ..theory.scaling import LEARNING_RATE_RANGE
from .cost import Cost
from .finalists import LEFT_OVER_FROM, NOISE_PRIOR, baseline_key
from .ledger import Key, Run, key_of
from .posterior import Model
from .samples_to_target import Evidence, batch_answer, samples_to
from .space import STEPS_AT_LEAST

ALTERNATIVES = 5


def recommend(evidence: Evidence) -> Recommendation:
    """Return the setting to use, by all that is known now.

    Raises:
        NoSignalError: No trial has a finite validation loss.
    """
    model = Model.of(evidence.context, evidence.ledger)
    if not len(evidence.ledger):
        if evidence.confirm_share == 0:
            raise NoSignalError(
                f"No trial was run: a budget of {evidence.plan.budget:g} full runs is less than the shortest costs. Expected 1 or more, "
                "and 2 for a verified answer."
            )
        trials = "" if evidence.plan.n_trials is None else f" and n_trials={evidence.plan.n_trials}"
        raise NoSignalError(
            f"No trial was run: a budget of {evidence.plan.budget:g}{trials} leaves none beside what confirms the "
            "answer. A budget of 2 and n_trials=2 are the least that give a verified answer."
        )
    if model is None or not model.leaders:
        raise NoSignalError(
            f"None of {len(evidence.ledger)} trials has a finite validation loss, so there is nothing to recommend. "
            "Search smaller learning rates, or look at the trials' reasons."
        )
    noise = _noise(evidence)
    candidates = _candidates(evidence, model, noise)
    confirmed = _comparable([c for c in candidates if c.verified])
    sound = [c for c in candidates if not _spoilt(evidence, c)]
    pool = confirmed or sound[:1] or candidates[:1]
    chosen, reason = _choose(evidence, pool, bool(confirmed))
    within = [c for c in pool if _within(c, pool, evidence.plan.tolerance)] or [chosen]
    timed = [c for c in within if c.seconds_per_full_run is not None]
    return Recommendation(
        micro_batch_size=chosen.micro_batch_size,
        accumulation_steps=chosen.accumulation_steps,
        world_size=1,
        global_batch_size=chosen.global_batch_size,
        eval_batch_size=None if evidence.probe is None else evidence.probe.eval_batch_size,
        learning_rate=chosen.learning_rate,
        params=chosen.params,
        val_loss=chosen.val_loss,
        seconds_to_target=chosen.seconds_to_target,
        samples_to_target=chosen.samples_to_target,
        samples_per_s=chosen.samples_per_s,
        peak_bytes=_peak_bytes(evidence, chosen),
        verified=chosen.verified,
        reason=reason,
        batch_interval=_batch_interval(evidence, model, chosen, noise[0]),
        lr_rule=_lr_rule(evidence, model),
        fastest=min(timed, key=lambda c: c.seconds_per_full_run or math.inf) if timed else None,
        smallest_within_tolerance=min(within, key=lambda c: c.global_batch_size),
        alternatives=tuple(c for c in candidates if c is not chosen)[:ALTERNATIVES],
        warnings=_warnings(evidence, chosen, pool),
        by_device=tuple(_on_device(evidence, chosen, device, probe) for device, probe in evidence.probes.items()),
    )


def _on_device(evidence: Evidence, chosen: Candidate, device: str, probe: ProbeResult) -> OnDevice:
    cost = Cost.of(evidence.facts, probe)
    batch, samples = chosen.global_batch_size, chosen.samples_to_target
    micro, accumulation = cost.split(batch)
    return OnDevice(
        device=device,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        eval_batch_size=probe.eval_batch_size,
        samples_per_s=cost.samples_per_s(batch),
        seconds_per_full_run=cost.full_run_s(batch),
        seconds_to_target=None if samples is None else cost.seconds(batch, samples),
    )


def _noise(evidence: Evidence) -> tuple[float, float]:
    """Return the relative standard deviation between seeds, pooled over all settings with several full runs, and its degrees of freedom."""
    prior, weight = NOISE_PRIOR
    total, freedom = weight * prior**2, weight
    by_setting: dict[Key, list[float]] = {}
    for run in evidence.ledger:
        value = _full_value(evidence, run)
        if value is not None:
            by_setting.setdefault(run.key, []).append(value)
    for values in by_setting.values():
        scale = abs(sum(values) / len(values)) or 1.0
        total += sum((value - sum(values) / len(values)) ** 2 for value in values) / scale**2
        freedom += len(values) - 1
    return math.sqrt(total / freedom), freedom


def _full_value(evidence: Evidence, run: Run) -> float | None:
    """Return the last loss of a finished full run, else None."""
    whole = run.end_samples >= evidence.context.rungs.end_of(run.setting.global_batch_size)
    return run.at(run.end_samples) if whole and run.complete and run.state != "running" else None


def _estimate(values: Sequence[float], noise: tuple[float, float]) -> LossEstimate:
    n = len(values)
    if not n:
        return LossEstimate(None, None, 0)
    mean = sum(values) / n
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    half = student_quantile(noise[1]) * noise[0] * math.sqrt(1 + 1 / n)
    if mean > 0:  # Losses scatter by shares of themselves, and do not fall below zero.
        return LossEstimate(mean, sd, n, mean * math.exp(-half), mean * math.exp(half))
    return LossEstimate(mean, sd, n, mean - half * abs(mean), mean + half * abs(mean))


def _candidates(evidence: Evidence, model: Model, noise: tuple[float, float]) -> list[Candidate]:
    """Return every setting that was run with a finite loss, best first: confirmed ones by their mean, the others by the surrogate."""
    found: dict[Key, Candidate] = {}
    target = evidence.target
    for run in model.leaders:
        if run.key not in found:
            found[run.key] = _candidate(evidence, run.setting, noise, target)
    confirmed = [c for c in found.values() if c.verified]
    confirmed.sort(key=lambda c: (-c.val_loss.n_seeds, c.val_loss.mean or 0.0))
    return confirmed + [c for c in found.values() if not c.verified]


def _candidate(evidence: Evidence, setting: Setting, noise: tuple[float, float], target: float | None) -> Candidate:
    batch = setting.global_batch_size
    runs = evidence.ledger.of(key_of(setting))
    fresh = [run for run in runs if run.stage == "confirm" and _full_value(evidence, run) is not None]
    spoilt = any(run.stage == "confirm" and run.diverged for run in runs)
    searched = [run for run in runs if run.seed == evidence.plan.seed and _full_value(evidence, run) is not None]
    used = fresh or searched[:1]
    cost = evidence.cost
    micro, accumulation = cost.split(batch)
    reached = [samples_to(target, run) for run in used] if target is not None else []
    known = [x for x in reached if x is not None]
    samples = max(float(np.median(known)), batch) if known and len(known) == len(reached) else None  # No step is half done.
    yours = "your present setting" if key_of(setting) == baseline_key(evidence) else ""
    note = (
        "diverged on a fresh seed"
        if spoilt
        else ""
        if fresh
        else "not confirmed: the loss that it was selected by"
        if searched
        else "not run to the end"
    )
    return Candidate(
        global_batch_size=batch,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        learning_rate=setting.learning_rate,
        params=dict(setting.params),
        val_loss=_estimate([value for run in used if (value := _full_value(evidence, run)) is not None], noise),
        seconds_per_full_run=cost.full_run_s(batch),
        samples_per_s=cost.samples_per_s(batch),
        seconds_to_target=None if samples is None else cost.seconds(batch, samples),
        samples_to_target=samples,
        verified=bool(fresh) and not spoilt,
        note="; ".join(filter(None, [yours, note])),
    )


def _spoilt(evidence: Evidence, candidate: Candidate) -> bool:
    """Return whether a setting has diverged on a fresh seed."""
    key = key_of(Setting(candidate.global_batch_size, candidate.learning_rate, candidate.params))
    return any(run.stage == "confirm" and run.diverged for run in evidence.ledger.of(key))


def _comparable(confirmed: Sequence[Candidate]) -> list[Candidate]:
    """Return the confirmed settings that share the most seeds: means over different seeds are not compared."""
    most = max((c.val_loss.n_seeds for c in confirmed), default=0)
    return [c for c in confirmed if c.val_loss.n_seeds == most]


def _within(candidate: Candidate, pool: Sequence[Candidate], tolerance: float) -> bool:
    means = [c.val_loss.mean for c in pool if c.val_loss.mean is not None]
    if not means or candidate.val_loss.mean is None:
        return False
    return candidate.val_loss.mean <= min(means) + tolerance * abs(min(means))


def _choose(evidence: Evidence, pool: Sequence[Candidate], confirmed: bool) -> tuple[Candidate, str]:
    """Return the best of the pool by the goal, and why in one sentence."""
    best = min(pool, key=lambda c: math.inf if c.val_loss.mean is None else c.val_loss.mean)
    within = [c for c in pool if _within(c, pool, evidence.plan.tolerance)] or [best]
    chosen, why = best, "has the lowest validation loss"
    if evidence.plan.goal == "time":
        timed = [c for c in pool if c.samples_to_target is not None]
        if timed:
            chosen = min(timed, key=lambda c: c.seconds_to_target or c.samples_to_target or math.inf)
            why = f"reaches the target of {evidence.target:.4g} first"
    elif evidence.plan.goal == "largest":
        slack = max(evidence.plan.tolerance, 2 * _noise(evidence)[0] / math.sqrt(max(1, best.val_loss.n_seeds)))
        even = [c for c in pool if _within(c, pool, slack)] or [best]
        chosen = max(even, key=lambda c: (c.global_batch_size, -(c.val_loss.mean or 0.0)))
        why = "is the largest without measurable loss"
    elif len(within) > 1 and all(c.seconds_per_full_run is not None for c in within):
        chosen = min(within, key=lambda c: (c.seconds_per_full_run, c.val_loss.mean))
        if chosen is not best:
            why = f"is the fastest within {evidence.plan.tolerance:.0%} of the lowest validation loss"
    name = f"Batch {chosen.global_batch_size} at learning rate {chosen.learning_rate:.3g}"
    if key_of(Setting(chosen.global_batch_size, chosen.learning_rate, chosen.params)) == baseline_key(evidence):
        name += " (your present setting)"
    reason = f"{name} {why} of {len(pool)} settings run on fresh seeds"
    if not confirmed:
        reason = f"{name} is expected to end lowest by the trials so far; it was not confirmed"
    elif len(pool) == 1:
        n_settings = len({run.key for run in evidence.ledger})
        reason = f"{name} {_hoped(evidence)} of {n_settings} settings, and is the only one that was run to the end on a fresh seed"
        if n_settings == 1:
            reason = f"{name} is the only setting that was tried"
        elif len({run.key for run in evidence.ledger if run.stage == "confirm" and run.state == "complete"}) > 1:
            # Cut off within a round of seeds: means over different ones are not compared.
            reason = f"{name} is the first of the settings compared that was run on {chosen.val_loss.n_seeds} fresh seeds"
    elif chosen is best and evidence.plan.goal == "loss" and (n_tied := _n_tied(evidence, chosen, pool)):
        reason += f", a tie with {'the other' if len(pool) == 2 else f'{n_tied} of them'} within the noise of seeds"
    limits = _limits(evidence)
    return chosen, f"{reason}; {limits}." if limits else f"{reason}."


def _hoped(evidence: Evidence) -> str:
    """Return what the search expected of the one setting that it confirmed, from runs that were mostly short."""
    if evidence.plan.goal == "time":
        return "was expected to reach the target first, or to come nearest to it,"
    if evidence.plan.goal == "largest":
        return "was expected to be the largest without measurable loss"
    timed = evidence.cost.known and evidence.plan.tolerance > 0
    return f"was expected to end within {evidence.plan.tolerance:.0%} of the lowest loss" if timed else "was expected to end lowest"


def _n_tied(evidence: Evidence, chosen: Candidate, pool: Sequence[Candidate]) -> int:
    """Return how many others of the pool cannot be told from the chosen one: the 90 % interval of their ratio holds 1."""
    noise, freedom = _noise(evidence)
    mean = chosen.val_loss.mean or 0.0
    slack = student_quantile(freedom) * noise * abs(mean) * math.sqrt(2 / max(1, chosen.val_loss.n_seeds))
    return sum(other is not chosen and abs((other.val_loss.mean or 0.0) - mean) <= slack for other in pool)


def _limits(evidence: Evidence) -> str | None:
    """Return what memory, hardware and gradient noise each allow, in words; None without a probe, which knows the first two."""
    probe = evidence.probe
    if probe is None or probe.step_time_line is None:
        return None
    more = probe.limited_by != "memory"
    return limits_sentence(batch_answer(evidence), probe.micro_batch_size, probe.step_time_line.saturation_batch, more_memory=more)


def _peak_bytes(evidence: Evidence, chosen: Candidate) -> int | None:
    key = key_of(Setting(chosen.global_batch_size, chosen.learning_rate, chosen.params))
    device = next(iter(evidence.probes), None)
    records = [run.record for run in evidence.ledger.of(key) if run.record is not None]
    return max((r.peak_bytes for r in records if r.peak_bytes is not None and device in (None, r.device)), default=None)


def _batch_interval(evidence: Evidence, model: Model, chosen: Candidate, noise: float) -> tuple[int, ...]:
    """Return the smallest and largest batch size that were run and whose best setting cannot be told from the best of all."""
    best: dict[int, float] = {}
    leaders = [run for run in model.leaders if run.number not in model.lost]
    for run, excess in zip(leaders, model.excess([run.setting for run in leaders], optimism=1.64), strict=True):
        batch = run.setting.global_batch_size
        best[batch] = min(best.get(batch, math.inf), float(excess))
    slack = max(evidence.plan.tolerance, 1.64 * noise)
    even = [batch for batch, excess in best.items() if excess <= slack] + [chosen.global_batch_size]
    return (min(even), max(even))


def _lr_rule(evidence: Evidence, model: Model) -> LrRule | None:
    """Return how the best learning rate moves with the batch: the surrogate's best per batch size that was run, joined with the prior."""
    space = evidence.context.space
    batches = sorted({run.setting.global_batch_size for run in model.leaders})
    if len(batches) < 2 or len({run.setting.learning_rate for run in model.leaders}) < 2:
        return None
    xs, ys = [], []
    for batch in batches:
        settings = [space.setting(batch, lr, model.leaders[0].setting.params) for lr in space.learning_rates]
        mean = model.expected([space.point(setting) for setting in settings])
        xs.append(math.log2(batch))
        ys.append(math.log2(settings[int(np.argmin(mean))].learning_rate))
    x, y = np.array(xs) - np.mean(xs), np.array(ys) - np.mean(ys)
    error = 1.0  # Octaves: how far the best of a row of the surrogate is typically off (noise, and what early rungs favour).
    precision = float(x @ x) / error**2 + 1 / space.slope_sd**2
    alpha = (float(x @ y) / error**2 + space.slope / space.slope_sd**2) / precision
    half = 1.645 / math.sqrt(precision)
    return LrRule(alpha, alpha - half, alpha + half)


def _warnings(evidence: Evidence, chosen: Candidate, pool: Sequence[Candidate]) -> tuple[str, ...]:
    plan, found = evidence.plan, []
    if not chosen.verified:
        if plan.confirm < 1:
            found.append("Not verified: confirmation is switched off (confirm=0).")
        elif evidence.confirm_share == 0:
            found.append(f"Not verified: a budget of {plan.budget:g} leaves no full run on a fresh seed; a budget of 2 would.")
        else:
            found.append(f"Not verified yet: {_what_verifies(evidence, chosen)}.")
    if chosen.val_loss.n_seeds == 1 and chosen.verified and len(pool) == 1 and plan.budget < LEFT_OVER_FROM:
        found.append(f"One setting was confirmed, on one fresh seed; a budget of {LEFT_OVER_FROM} would compare two.")
    values = {value for run in evidence.ledger for value in run.values.values() if math.isfinite(value)}
    if len(values) == 1 and len(evidence.ledger) > 2:
        found.append(
            f"All trials reported the same loss, {values.pop():.4g}, so nothing tells one setting from another. Does the loss that is "
            "reported depend on the model?"
        )
    if plan.goal == "time" and chosen.samples_to_target is None:
        found.append("No confirmed setting reached the target, so the lowest loss decided.")
    if _spoilt(evidence, chosen):
        found.append("It diverged on a fresh seed, and nothing else that was run is sounder. Search smaller learning rates.")
    low, high = _range_of_rates(evidence)
    if low < high and chosen.learning_rate in (low, high):
        edge = f"the edge of its range {low:.3g} to {high:.3g}"
        found.append(f"The learning rate {chosen.learning_rate:.3g} is at {edge}; a wider one may do better.")
    largest = evidence.context.space.batches[-1]
    by_steps = largest <= evidence.facts.full_run_samples / STEPS_AT_LEAST < 2 * largest <= evidence.facts.n_samples
    if "batch_size" not in plan.space and chosen.global_batch_size == largest and by_steps:
        found.append(
            f"Batch {largest} is the largest that was searched, since a larger one makes under {STEPS_AT_LEAST} steps in a full run of "
            f"{evidence.facts.full_run_samples:,.0f} samples. Name larger ones in the space, or train for more epochs."
        )
    return tuple(found)


def _range_of_rates(evidence: Evidence) -> tuple[float, float]:
    """Return the smallest and the largest rate of the range; of one that gives way, as far as it was tried."""
    rates = evidence.context.space.learning_rates
    if "learning_rate" in evidence.plan.space:
        return rates[0], rates[-1]
    low, high = LEARNING_RATE_RANGE[evidence.facts.optimizer_family]
    tried = [run.setting.learning_rate for run in evidence.ledger]
    return min([rate for rate in rates if rate >= low] + tried), max([rate for rate in rates if rate <= high] + tried)


def _what_verifies(evidence: Evidence, chosen: Candidate) -> str:
    """Return what is still to come, or the budget that would give it where the one there is does not."""
    plan, rungs, ledger = evidence.plan, evidence.context.rungs, evidence.ledger
    key = key_of(Setting(chosen.global_batch_size, chosen.learning_rate, chosen.params))
    if plan.n_trials is not None and len(ledger) >= plan.n_trials and not ledger.running:
        return f"{plan.n_trials} trials left none for a full run on a fresh seed; n_trials={len(ledger) + 1} would"
    needed = ledger.committed + rungs.end_of(chosen.global_batch_size)
    coming = any(run.stage == "confirm" and run.key == key for run in ledger.running)
    if coming or needed <= plan.budget * rungs.full_samples:
        return "the full run on a fresh seed is still to come"
    lost = any(run.stage == "confirm" and run.key == key and run.state == "failed" for run in ledger)
    why = "the full run on a fresh seed was cut off" if lost else "no full run on a fresh seed was left"
    return f"{why}; a budget of {math.ceil(needed / rungs.full_samples - 1e-6)} would give one"
