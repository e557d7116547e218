"""What may be recommended: every setting that was run, with its loss, how sure that is, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..core.remarks import NoteCode
from ..core.results import Candidate, LossEstimate, Setting
from ..report.reasons import candidate_note
from ..theory.intervals import student_quantile
from .curves import jumps, samples_to
from .evidence import Evidence
from .ledger import Key, Run, key_of
from .posterior import Model
from .worth import NOT_REACHED

NOISE_PRIOR = (0.05, 2.0)
"""Relative standard deviation of a full run between seeds, and how many degrees of freedom that guess is worth.

MLPerf's reference runs: median 3.7 %, nine in ten below 18 % (of samples to target; mlcommons/logging).
"""


def candidates(evidence: Evidence, model: Model, noise: tuple[float, float]) -> list[Candidate]:
    """Return every setting that was run with a finite loss, best first: confirmed ones before the others.

    Their order is that of all that is known of them, not of their last loss alone.
    """
    settings: dict[Key, Setting] = {}
    for run in model.leaders:
        settings.setdefault(run.key, run.setting)
    times = evidence.ln_times(settings.values())
    ranked = sorted(zip(times, settings.values(), strict=True), key=lambda pair: pair[0])
    found = [candidate(evidence, setting, noise) for _, setting in ranked]
    return [c for c in found if c.verified] + [c for c in found if not c.verified]


def candidate(evidence: Evidence, setting: Setting, noise: tuple[float, float]) -> Candidate:
    """Return what is known of a setting; `noise` is that between seeds, as `seed_noise` has it."""
    batch, cost = setting.global_batch_size, evidence.cost
    runs = evidence.ledger.of(key_of(setting))
    fresh = [run for run in runs if run.stage == "confirm" and full_value(evidence, run) is not None]
    diverged = any(run.stage == "confirm" and run.diverged for run in runs)
    searched = [run for run in runs if run.seed == evidence.plan.seed and full_value(evidence, run) is not None]
    used = fresh or searched[:1]
    losses = [value for run in used if (value := full_value(evidence, run)) is not None]
    if not evidence.context.planned:  # Under a falling rate a loss comes to rest, and how it jumped before says little.
        noise = max(noise, _with_jumps(used))
    micro, accumulation = cost.split(batch)
    samples = _samples_to_target(evidence, used, losses)
    note: NoteCode | None = "selected_by" if searched else "not_to_the_end"
    if diverged or fresh:
        note = "diverged" if diverged else None
    return Candidate(
        global_batch_size=batch,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        learning_rate=setting.learning_rate,
        params=dict(setting.params),
        val_loss=_estimate(losses, noise),
        seconds_per_full_run=cost.full_run_s(batch),
        samples_per_s=cost.samples_per_s(batch),
        seconds_to_target=None if samples is None else cost.seconds_to(batch, samples),
        samples_to_target=samples,
        verified=bool(fresh) and not diverged,
        note=candidate_note(note, is_baseline=key_of(setting) == evidence.baseline),
    )


def _samples_to_target(evidence: Evidence, runs: Sequence[Run], losses: Sequence[float]) -> float | None:
    """Return the samples to the target: off the curves, or a little beyond their ends along their slope; else None."""
    target, full = evidence.target, evidence.facts.full_run_samples
    if target is None or not runs:
        return None
    each = []
    for run, loss in zip(runs, losses, strict=True):
        reached = samples_to(target, run)
        if reached is None and loss <= target:
            reached = float(run.end_samples)  # An end counts as it is; neighbours are asked on the way only.
        beyond = evidence.worth.full_runs_to(loss, target)
        if reached is None and not 1 <= beyond <= NOT_REACHED:
            return None
        # No step is half done.
        each.append(max(beyond * full if reached is None else reached, run.setting.global_batch_size))
    return float(np.median(each))


def setting_of(candidate: Candidate) -> Setting:
    """Return the setting of a candidate."""
    return Setting(candidate.global_batch_size, candidate.learning_rate, candidate.params)


def key_of_candidate(candidate: Candidate) -> Key:
    """Return the setting of a candidate, as the ledger knows it."""
    return key_of(setting_of(candidate))


def seed_noise(evidence: Evidence) -> tuple[float, float]:
    """Return the relative standard deviation between seeds, and its degrees of freedom.

    It is pooled over all settings with several full runs.
    """
    prior, weight = NOISE_PRIOR
    total, freedom = weight * prior**2, weight
    by_setting: dict[Key, list[float]] = {}
    for run in evidence.ledger:
        value = full_value(evidence, run)
        if value is not None:
            by_setting.setdefault(run.key, []).append(value)
    for values in by_setting.values():
        # Of a run that has all but diverged, the square of the loss itself is no number any more.
        mean = sum(values) / len(values)
        scale = abs(mean) or 1.0
        total += sum(((value - mean) / scale) ** 2 for value in values)
        freedom += len(values) - 1
    return math.sqrt(total / freedom), freedom


def _with_jumps(runs: Sequence[Run]) -> tuple[float, float]:
    """Return the noise by how the losses of runs still jump: between seeds it is no less."""
    prior, weight = NOISE_PRIOR
    total, freedom = weight * prior**2, weight
    for variance, free in map(jumps, runs):
        total += free * variance
        freedom += free
    return math.sqrt(total / freedom), freedom


def full_value(evidence: Evidence, run: Run) -> float | None:
    """Return the last loss of a finished full run, else None."""
    whole = run.end_samples >= evidence.context.rungs.end_of(run.setting.global_batch_size)
    return run.at(run.end_samples) if whole and run.complete and run.state != "running" else None


def _estimate(values: Sequence[float], noise: tuple[float, float]) -> LossEstimate:
    n = len(values)
    if not n:
        return LossEstimate(None, None, 0)
    mean = sum(values) / n
    sd = math.hypot(*(value - mean for value in values)) / math.sqrt(n - 1) if n > 1 else None
    half = student_quantile(noise[1]) * noise[0] * math.sqrt(1 + 1 / n)
    if mean > 0:  # Losses scatter by shares of themselves, and do not fall below zero.
        return LossEstimate(mean, sd, n, mean * math.exp(-half), mean * math.exp(half))
    return LossEstimate(mean, sd, n, mean - half * abs(mean), mean + half * abs(mean))


def spoilt(evidence: Evidence, candidate: Candidate) -> bool:
    """Return whether a setting has diverged on a fresh seed."""
    return any(run.stage == "confirm" and run.diverged for run in evidence.ledger.of(key_of_candidate(candidate)))
