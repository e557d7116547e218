"""The other answers: the soonest, the lowest loss at equal samples or equal seconds, and what lies between."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..core.results import USUAL_BATCH, Candidate, Comparison, Setting
from .candidates import candidate, full_value, key_of_candidate, seed_noise, setting_of, spoilt
from .evidence import Evidence
from .worth import NOT_REACHED

CLEARLY_SOONER = 1.5
"""A setting that is expected to be sooner by this factor than one that ran to its end is compared in its place."""


def _ended(evidence: Evidence, found: Sequence[Candidate]) -> list[Candidate]:
    """Return those that were run to the end of a full run, and did not diverge on a fresh seed."""
    return [c for c in found if c.val_loss.mean is not None and not spoilt(evidence, c)]


def soonest(evidence: Evidence, found: Sequence[Candidate]) -> Candidate | None:
    """Return the setting with the fewest equal-loss seconds, of those run to the end; None where no time is known."""
    ended = _ended(evidence, found)
    if not ended or not evidence.clock.known:
        return None
    assert evidence.model is not None
    losses = evidence.model.losses([setting_of(c) for c in ended])
    target, start_s = float(losses.min()), evidence.cost.start_s  # Each pays it once.
    times = [
        start_s
        + max(0.0, (c.seconds_per_full_run or math.inf) - start_s) * evidence.worth.full_runs_to(float(loss), target)
        for c, loss in zip(ended, losses, strict=True)
    ]
    return ended[int(np.argmin(times))]


def lowest_loss(evidence: Evidence, found: Sequence[Candidate]) -> Candidate | None:
    """Return the setting that is expected to end a full run lowest, of those that were run to the end."""
    ended = _ended(evidence, found)
    if not ended:
        return None
    assert evidence.model is not None
    return ended[int(np.argmin(evidence.model.losses([setting_of(c) for c in ended])))]


def lowest_at_equal_seconds(evidence: Evidence, found: Sequence[Candidate], chosen: Candidate) -> Candidate | None:
    """Return the setting with the lowest loss after the seconds of a full run of the chosen one, by its curves."""
    seconds = chosen.seconds_per_full_run
    ended = _ended(evidence, found)
    if seconds is None or not ended:
        return None
    losses = [_loss_after(evidence, c, seconds) for c in ended]
    i = int(np.argmin(losses))
    own = next((loss for c, loss in zip(ended, losses, strict=True) if c is chosen), math.inf)
    return chosen if losses[i] >= own else ended[i]


def _loss_after(evidence: Evidence, candidate: Candidate, seconds: float) -> float:
    """Return the mean loss of the runs of a setting after so many seconds; its last one where a full run takes less."""
    start_s = evidence.cost.start_s
    training_s = (candidate.seconds_per_full_run or math.inf) - start_s
    share = min(1.0, (seconds - start_s) / training_s) if training_s > 0 else 1.0
    losses = []
    for run in evidence.ledger.of(key_of_candidate(candidate)):
        if full_value(evidence, run) is not None:
            points = sorted(run.values.items())
            at = share * run.end_samples
            if at < points[0][0]:
                return math.inf
            losses.append(float(np.interp(at, [samples for samples, _ in points], [loss for _, loss in points])))
    return sum(losses) / len(losses) if losses else math.inf


def frontier(evidence: Evidence, found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the settings that no other one beats both in loss and in seconds of a full run, the fastest first."""
    timed = [c for c in _ended(evidence, found) if c.seconds_per_full_run is not None]
    timed.sort(key=lambda c: (c.seconds_per_full_run or 0.0, c.val_loss.mean or 0.0))
    kept: list[Candidate] = []
    for each in timed:
        lowest = min((c.val_loss.mean or 0.0 for c in kept), default=math.inf)
        if (each.val_loss.mean or 0.0) < lowest:
            kept.append(each)
    return tuple(kept)


def comparisons(evidence: Evidence, found: Sequence[Candidate], chosen: Candidate) -> tuple[Comparison, ...]:
    """Return the chosen setting beside the user's present one, where that ran to its end, and the best at batch 32."""
    ended = _ended(evidence, found)
    own = next((c for c in ended if key_of_candidate(c) == evidence.baseline), None)
    usual = _best_at_usual(evidence, found, chosen)
    compared = []
    if own is not None and own is not chosen:
        compared.append(_comparison(evidence, "your present setting", own, chosen))
    if usual is not None and usual != own and chosen.global_batch_size != USUAL_BATCH:
        compared.append(_comparison(evidence, f"batch {USUAL_BATCH}", usual, chosen))
    return tuple(compared)


def _best_at_usual(evidence: Evidence, found: Sequence[Candidate], chosen: Candidate) -> Candidate | None:
    """Return the soonest at batch 32 that ran to its end, or another that is expected to be clearly sooner than that.

    Where nothing ran at that batch size, or sizes count tokens, nothing is expected either.
    """
    tried = [c for c in found if c.global_batch_size == USUAL_BATCH]
    if not tried or evidence.facts.size_unit != "samples":
        return None
    space = evidence.context.space
    settings = [Setting(USUAL_BATCH, rate, dict(chosen.params)) for rate in space.learning_rates]
    times = evidence.ln_times(settings)
    ended = _soonest_of(evidence, _ended(evidence, tried))
    if ended is not None:
        (its,) = evidence.ln_times([setting_of(ended)])
        if its - times.min() < math.log(CLEARLY_SOONER):
            return ended
    return candidate(evidence, settings[int(np.argmin(times))], seed_noise(evidence))


def next_larger(evidence: Evidence, found: Sequence[Candidate], chosen: Candidate) -> Comparison | None:
    """Return the chosen setting beside the soonest of the next larger batch size that was tried; None without one."""
    larger = [c for c in found if c.global_batch_size > chosen.global_batch_size and not spoilt(evidence, c)]
    batch = min((c.global_batch_size for c in larger), default=0)
    other = _soonest_of(evidence, [c for c in larger if c.global_batch_size == batch])
    return None if other is None else _comparison(evidence, f"batch {batch}", other, chosen)


def _soonest_of(evidence: Evidence, found: Sequence[Candidate]) -> Candidate | None:
    if not found:
        return None
    return found[int(np.argmin(evidence.ln_times(setting_of(c) for c in found)))]


def _comparison(evidence: Evidence, name: str, other: Candidate, chosen: Candidate) -> Comparison:
    assert evidence.model is not None
    settings = [setting_of(chosen), setting_of(other)]
    best, its = (float(loss) for loss in evidence.model.losses(settings))
    ratio = best / its if best > 0 and its > 0 else None
    if evidence.plan.goal != "time" or not evidence.clock.known:
        times = None
        if chosen.seconds_per_full_run and other.seconds_per_full_run:
            times = other.seconds_per_full_run / chosen.seconds_per_full_run
        return Comparison(name, other, times, ratio)
    if chosen.verified and other.verified and chosen.seconds_to_target and other.seconds_to_target:
        # Both were seen to reach it on fresh seeds, and these seconds stand beside the answer.
        return Comparison(name, other, other.seconds_to_target / chosen.seconds_to_target, ratio)
    soonest, later = evidence.ln_times(settings)
    whole, its_whole = evidence.worth.ln_full([chosen.global_batch_size, other.global_batch_size])
    far = later - its_whole > math.log(NOT_REACHED) > soonest - whole
    start = evidence.clock.price_of_start()  # Each pays it once, and the rest goes by what is trained.
    times = (start + math.exp(later)) / (start + math.exp(soonest))
    return Comparison(name, other, None if far else times, ratio)
