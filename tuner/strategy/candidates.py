"""What may be recommended: every setting that was run, with its loss, how sure that is, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..core.remarks import NoteCode
from ..core.results import Candidate, LossEstimate, Setting
from ..report.reasons import candidate_note
from ..theory.intervals import student_quantile
from .finalists import NOISE_PRIOR, baseline_key
from .ledger import Key, Run, key_of
from .posterior import Model
from .samples_to_target import Evidence, samples_to


def candidates(evidence: Evidence, model: Model, noise: tuple[float, float]) -> list[Candidate]:
    """Return every setting that was run with a finite loss, best first.

    Confirmed ones go by their mean, the others by the surrogate.
    """
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
    diverged = any(run.stage == "confirm" and run.diverged for run in runs)
    searched = [run for run in runs if run.seed == evidence.plan.seed and _full_value(evidence, run) is not None]
    used = fresh or searched[:1]
    cost = evidence.cost
    micro, accumulation = cost.split(batch)
    reached = [samples_to(target, run) for run in used] if target is not None else []
    known = [x for x in reached if x is not None]
    # No step is half done.
    samples = max(float(np.median(known)), batch) if known and len(known) == len(reached) else None
    note: NoteCode | None = "selected_by" if searched else "not_to_the_end"
    if diverged or fresh:
        note = "diverged" if diverged else None
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
        verified=bool(fresh) and not diverged,
        note=candidate_note(note, is_baseline=key_of(setting) == baseline_key(evidence)),
    )


def key_of_candidate(candidate: Candidate) -> Key:
    """Return the setting of a candidate, as the ledger knows it."""
    return key_of(Setting(candidate.global_batch_size, candidate.learning_rate, candidate.params))


def seed_noise(evidence: Evidence) -> tuple[float, float]:
    """Return the relative standard deviation between seeds, and its degrees of freedom.

    It is pooled over all settings with several full runs.
    """
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


def spoilt(evidence: Evidence, candidate: Candidate) -> bool:
    """Return whether a setting has diverged on a fresh seed."""
    return any(run.stage == "confirm" and run.diverged for run in evidence.ledger.of(key_of_candidate(candidate)))
