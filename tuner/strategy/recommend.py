"""The recommendation at any moment: the choice among what was run, how sure it is, and what else is as good.

Settings that were confirmed on fresh seeds are compared on those seeds only: the losses that they were selected by
are too good to be believed. Before any is confirmed, the surrogate's view of the full run decides.
"""

from __future__ import annotations

import math

import numpy as np

from ..core.errors import NoSignalError
from ..core.probe_results import ProbeResult
from ..core.results import Candidate, LrRule, OnDevice, Recommendation, Setting
from ..report.reasons import caution_text, reason_text
from .candidates import candidates, key_of_candidate, seed_noise, setting_of, spoilt
from .cautions import budget_text, cautions
from .choice import choose, within
from .cost import Cost
from .diverged_runs import diverged_at_once
from .evidence import Evidence
from .frontier import comparisons, frontier, lowest_at_equal_seconds, lowest_loss, next_larger, soonest
from .nothing_learned import nothing_learned
from .posterior import Model

ALTERNATIVES = 5
FAR = 20.0
"""Full runs beyond which a curve says nothing."""


def recommend(evidence: Evidence) -> Recommendation:
    """Return the setting to use, by all that is known now.

    Raises:
        NoSignalError: No trial has a finite validation loss.
    """
    model = evidence.model
    if model is None or not model.leaders:
        raise _no_signal(evidence)
    noise = seed_noise(evidence)
    found = candidates(evidence, model, noise)
    confirmed = [c for c in found if c.verified]
    sound = [c for c in found if not spoilt(evidence, c)]
    pool = confirmed or sound or found[:1]
    chosen, reason = choose(evidence, pool, bool(confirmed))
    even = within(evidence, pool) or [chosen]
    lowest = evidence.lowest_expected
    loss = float(model.losses([setting_of(chosen)])[0])
    return Recommendation(
        micro_batch_size=chosen.micro_batch_size,
        accumulation_steps=chosen.accumulation_steps,
        world_size=evidence.facts.world_size,
        global_batch_size=chosen.global_batch_size,
        eval_batch_size=None if evidence.probe is None else evidence.probe.eval_batch_size,
        learning_rate=chosen.learning_rate,
        params=chosen.params,
        val_loss=chosen.val_loss,
        seconds_to_target=chosen.seconds_to_target,
        samples_to_target=chosen.samples_to_target,
        samples_per_s=chosen.samples_per_s,
        peak_bytes=_peak_bytes(evidence, chosen),
        verified=chosen.verified and nothing_learned(evidence.ledger) is None,
        reason=reason_text(reason),
        batch_interval=_batch_interval(evidence, model, chosen, noise[0]),
        lr_rule=_lr_rule(evidence, model),
        fastest=soonest(evidence, found),
        smallest_within_tolerance=min(even, key=lambda c: c.global_batch_size),
        alternatives=tuple(c for c in found if c is not chosen)[:ALTERNATIVES],
        warnings=tuple(map(caution_text, cautions(evidence, chosen))),
        by_device=tuple(_on_device(evidence, chosen, device, probe) for device, probe in evidence.probes.items()),
        seconds_per_full_run=chosen.seconds_per_full_run,
        full_runs_to_best=None if lowest is None else _full_runs_to(evidence, loss, lowest),
        curve_slope=evidence.worth.slope,
        lowest_loss=_unless(chosen, lowest_loss(evidence, found)),
        lowest_loss_at_equal_seconds=_unless(chosen, lowest_at_equal_seconds(evidence, found, chosen)),
        frontier=frontier(evidence, found),
        compared=comparisons(evidence, found, chosen),
        larger=next_larger(evidence, found, chosen),
    )


def _unless(chosen: Candidate, other: Candidate | None) -> Candidate | None:
    return None if other is chosen else other


def _full_runs_to(evidence: Evidence, loss: float, lowest: float) -> float | None:
    """Return how many full runs reach the lowest loss along the curve of a setting; None if too far to tell."""
    runs = evidence.worth.full_runs_to(loss, lowest)
    return runs if math.isfinite(runs) and runs <= FAR else None


def _said(evidence: Evidence, reference_runs: float) -> str:
    unit = " full runs" if evidence.plan.budget_s is None else ""
    return f"{budget_text(evidence, reference_runs, upwards=reference_runs != evidence.whole)}{unit}"


def _words(setting: Setting) -> str:
    return f"batch {setting.global_batch_size}, learning rate {setting.learning_rate:.3g}"


def _no_signal(evidence: Evidence) -> NoSignalError:
    """Return the error that says why there is nothing to recommend."""
    plan, n = evidence.plan, len(evidence.ledger)
    if n and all(map(diverged_at_once, evidence.ledger)):
        rates = sorted({run.setting.learning_rate for run in evidence.ledger})
        own = next((run for run in evidence.ledger if run.stage == "baseline"), None)
        yours = "" if own is None else f", your present setting ({_words(own.setting)}) among them"
        return NoSignalError(
            f"None of {n} trials has a finite validation loss: each diverged at its first report{yours}. Learning "
            f"rates from {rates[0]:.3g} to {rates[-1]:.3g} were tried, so look for what is not finite in the data, the "
            "model or the loss."
        )
    if n:
        return NoSignalError(
            f"None of {n} trials has a finite validation loss, so there is nothing to recommend. "
            "Search smaller learning rates, or look at the trials' reasons (bstune show)."
        )
    if not evidence.confirms:
        return NoSignalError(
            f"No trial was run: a budget of {_said(evidence, evidence.whole)} is less than the shortest costs. "
            f"Expected {_said(evidence, 1.0)} or more, and {_said(evidence, 2.0)} for a verified answer."
        )
    trials = "" if plan.n_trials is None else f" and n_trials={plan.n_trials}"
    return NoSignalError(
        f"No trial was run: a budget of {plan.budget:g}{trials} leaves none beside what confirms the "
        "answer. A budget of 2 and n_trials=2 are the least that give a verified answer."
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
        seconds_to_target=None if samples is None else cost.seconds_to(batch, samples),
    )


def _peak_bytes(evidence: Evidence, chosen: Candidate) -> int | None:
    device = next(iter(evidence.probes), None)
    records = [run.record for run in evidence.ledger.of(key_of_candidate(chosen)) if run.record is not None]
    return max((r.peak_bytes for r in records if r.peak_bytes is not None and device in (None, r.device)), default=None)


def _batch_interval(evidence: Evidence, model: Model, chosen: Candidate, noise: float) -> tuple[int, ...]:
    """Return the smallest and largest batch size whose best setting cannot be told from the best that was run."""
    best: dict[int, float] = {}
    leaders = [run for run in model.leaders if run.number not in model.lost]
    for run, excess in zip(leaders, model.excess([run.setting for run in leaders], optimism=1.64), strict=True):
        batch = run.setting.global_batch_size
        best[batch] = min(best.get(batch, math.inf), float(excess))
    slack = max(evidence.plan.tolerance, 1.64 * noise)
    even = [batch for batch, excess in best.items() if excess <= slack] + [chosen.global_batch_size]
    return (min(even), max(even))


def _lr_rule(evidence: Evidence, model: Model) -> LrRule | None:
    """Return how the best learning rate moves with the batch.

    By the surrogate's best for each batch size that was run, joined with the prior.
    """
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
    # Octaves: how far the best of a row of the surrogate is typically off (noise, and what early rungs favour).
    error = 1.0
    precision = float(x @ x) / error**2 + 1 / space.slope_sd**2
    alpha = (float(x @ y) / error**2 + space.slope / space.slope_sd**2) / precision
    half = 1.645 / math.sqrt(precision)
    return LrRule(alpha, alpha - half, alpha + half)
