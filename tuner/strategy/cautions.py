"""What a user is warned of: codes and figures; `report/reasons.py` words them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from ..core.remarks import Caution
from ..core.results import Candidate
from ..core.specs import STEPS_AT_LEAST
from ..report.units import duration
from ..theory.scaling import LEARNING_RATE_RANGE
from .budget import BASELINE_SHARE
from .candidates import key_of_candidate, spoilt
from .cost import TELLING_S
from .diverged_runs import confirmations_diverged, none_went_further
from .evidence import Evidence
from .ledger import FAULTS, Run
from .nothing_learned import nothing_learned, score_like
from .space import make_space
from .untried import untried

LONG_START_S = 2.0
"""A shorter start is that of any process; from here on, one that takes half of a full run is told."""
MISLEADING = 1.5
"""Measured seconds that differ from those of the step times by more than this factor are told."""


def cautions(evidence: Evidence, chosen: Candidate) -> Iterator[Caution]:
    """Yield what speaks against trusting the choice, what touches on its being verified first."""
    plan = evidence.plan
    if not chosen.verified:
        yield _not_verified(evidence, chosen)
    if (none_further := none_went_further(evidence)) is not None:
        yield none_further
    if (score := score_like(evidence.ledger)) is not None:
        yield score
    if (nothing := nothing_learned(evidence.ledger)) is not None:
        yield nothing
    losses = {value for run in evidence.ledger for value in run.values.values() if math.isfinite(value)}
    if len(losses) == 1 and len(evidence.ledger) > 2:
        yield Caution("one_loss", {"loss": losses.pop()})
    if failed := [run for run in evidence.ledger if _in_the_code(run)]:
        yield Caution("trials_failed", {"n": len(failed), "of": len(evidence.ledger), "last": failed[-1].number})
    clock = evidence.clock
    if clock.cost.start_s >= LONG_START_S and clock.price_of_start() >= 0.5:
        yield Caution("starts_long", {"start": clock.cost.start_s, "batch": clock.reference_batch})
    if plan.goal == "time" and chosen.samples_to_target is None:
        yield Caution("target_not_reached")
    if spoilt(evidence, chosen):
        yield Caution("diverged")
    low, high = _range_of_rates(evidence)
    if low < high and chosen.learning_rate in (low, high):
        yield Caution("rate_at_edge", {"rate": chosen.learning_rate, "low": low, "high": high})
    yield from untried(evidence, chosen)
    if (differ := _seconds_differ(evidence)) is not None:
        yield differ
    if (end := _ends_at_micro_batch(evidence)) is not None:
        yield Caution("no_accumulation", {"batch": end})
    largest, samples = evidence.context.space.batches[-1], evidence.facts.full_run_samples
    by_steps = largest <= samples / STEPS_AT_LEAST < 2 * largest <= evidence.facts.n_samples
    if "batch_size" not in plan.space and chosen.global_batch_size == largest and by_steps:
        yield Caution("largest_by_steps", {"batch": largest, "steps": STEPS_AT_LEAST, "samples": samples})


def _in_the_code(run: Run) -> bool:
    """Tell whether a run failed by an error of the code that trains, which no other setting or budget mends."""
    return run.state == "failed" and run.cause in FAULTS


def _seconds_differ(evidence: Evidence) -> Caution | None:
    """Return by what factor full runs took longer, or less long, than their step times say; None where they agree."""
    clock = evidence.clock
    ended = (run for run in evidence.ledger if run.state == "complete" and (run.seconds or 0.0) >= TELLING_S)
    device = next(iter(evidence.probes), None)  # On other kinds of device a reference run takes other seconds.
    here = [run for run in ended if run.record is None or device in (None, run.record.device)]
    times = clock.correction(here)
    if 1 / MISLEADING < times < MISLEADING:
        return None
    return Caution("took_longer" if times > 1 else "took_less", {"times": times})


def _ends_at_micro_batch(evidence: Evidence) -> int | None:
    """Return the batch at which the sizes end because none can be accumulated; None where they do not."""
    probe, facts = evidence.probe, evidence.facts
    if probe is None or facts.accumulates:
        return None
    wanted = make_space(evidence.plan, dataclasses.replace(facts, accumulates=True), probe).batches[-1]
    fits = probe.micro_batch_size * facts.world_size
    return fits if wanted > fits else None


def _not_verified(evidence: Evidence, chosen: Candidate) -> Caution:
    """Return why the choice is not verified: what is still to come, or how much would give it."""
    plan, ledger = evidence.plan, evidence.ledger
    if plan.confirm < 1:
        return Caution("confirmation_off")
    if not evidence.confirms:
        needed = max(2.0, _needed(evidence, chosen))
        return Caution(
            "budget_below_2",
            {"budget": budget_text(evidence, evidence.whole), "needed": budget_text(evidence, needed, upwards=True)},
        )
    key = key_of_candidate(chosen)
    coming = any(run.stage == "confirm" and run.key == key for run in ledger.running)
    if not coming and (diverged := confirmations_diverged(evidence)) is not None:
        return diverged
    if not coming and (broken := _confirmations_failed(evidence)) is not None:
        return broken
    if plan.n_trials is not None and len(ledger) >= plan.n_trials and not ledger.running:
        return Caution("no_trial_left", {"n_trials": plan.n_trials, "needed": len(ledger) + 1})
    needed = _needed(evidence, chosen)
    if coming or needed <= evidence.whole:
        return Caution("still_to_come")
    lost = any(run.stage == "confirm" and run.key == key and run.state == "failed" for run in ledger)
    said = budget_text(evidence, math.ceil(needed - 1e-6), upwards=True)
    return Caution("cut_off" if lost else "no_full_run_left", {"needed": said})


def _confirmations_failed(evidence: Evidence) -> Caution | None:
    """Return that full runs on fresh seeds failed in the code that trains; None where one did not."""
    ended = [run for run in evidence.ledger if run.stage == "confirm" and run.state != "running"]
    n = sum(map(_in_the_code, ended))
    return Caution("confirmations_failed", {"n": n}) if n and n == len(ended) else None


def _needed(evidence: Evidence, chosen: Candidate) -> float:
    """Return the reference runs with which the choice is run in full on a fresh seed, after all that comes first."""
    clock, plan, ledger = evidence.clock, evidence.plan, evidence.ledger
    needed = sum(clock.price_of(run, run.granted) for run in ledger) + clock.full_price(chosen.global_batch_size)
    if plan.baseline is None or plan.baseline[0] not in evidence.context.space.batches:
        return needed
    baseline = clock.full_price(plan.baseline[0])
    owed = not any(run.stage == "baseline" for run in ledger)
    # A larger budget runs the present setting first, unless that takes too much of it.
    return needed + baseline if owed and baseline <= BASELINE_SHARE * max(2.0, needed) else needed


def budget_text(evidence: Evidence, reference_runs: float, *, upwards: bool = False) -> str:
    """Return a budget in the unit in which the user gave it; `upwards`: what is shown is enough."""
    clock = evidence.clock
    if evidence.plan.budget_s is None or clock.reference_s is None:
        return f"{math.ceil(reference_runs - 1e-6) if upwards else reference_runs:.3g}"
    seconds = reference_runs * clock.reference_s * clock.correction(evidence.ledger)
    if upwards:
        shown = 0.1 if seconds < 10 else 1.0 if seconds < 90 else 6.0 if seconds < 5400 else 360.0
        seconds = shown * math.ceil(seconds / shown - 1e-9)
    return duration(seconds)


def _range_of_rates(evidence: Evidence) -> tuple[float, float]:
    """Return the smallest and the largest rate of the range; of one that gives way, as far as it was tried."""
    rates = evidence.context.space.learning_rates
    if "learning_rate" in evidence.plan.space:
        return rates[0], rates[-1]
    low, high = LEARNING_RATE_RANGE[evidence.facts.optimizer_family]
    tried = [run.setting.learning_rate for run in evidence.ledger]
    return min([rate for rate in rates if rate >= low] + tried), max([rate for rate in rates if rate <= high] + tried)
