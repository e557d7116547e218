"""What a search is expected to cost before it has trained anything, and what is left of that later."""

from __future__ import annotations

import math

from ..core.results import Goal
from ..core.specs import Forecast
from .budget import BASELINE_SHARE, LEAST_SHARE, LIKELY_SHARE, Budget
from .evidence import Evidence
from .space import why_sizes_end

TRIALS_PER_RUN: dict[Goal, float] = {"time": 6.0, "loss": 1.0, "largest": 1.0}
"""Trials for each of them beside the race and confirmation: many short ones pay off by time. Counted for `time` in six
searches of two examples, for the others on 14 tables."""


def foresee(evidence: Evidence, budget: Budget) -> Forecast:
    """Return what the search is still expected to cost."""
    plan, facts, clock, space = evidence.plan, evidence.facts, evidence.clock, evidence.context.space
    rungs, ledger = evidence.context.rungs, evidence.ledger
    left = most = max(0.0, budget.left + budget.unplanned)
    rates, batches = space.learning_rates, space.batches
    n_settings = math.inf if space.extras else len(batches) * len(rates)
    between: tuple[float, float] | None = None
    owed = _owed_to_baseline(evidence, most)
    if budget.ends_by_itself:
        beside = budget.beside + owed
        planned = min(budget.whole, budget.length + beside)
        left = longest = max(0.0, planned - (budget.planned_end - budget.left))
        if not budget.few:
            left = max(longest - (1 - LIKELY_SHARE) * (planned - beside), longest / 2)
            if budget.confirms:
                between = max(0.0, longest - (1 - LEAST_SHARE) * (planned - beside)), longest
    n_trials: int | None = None
    if math.isfinite(left):
        if budget.few:  # On the seed of the search each is run at most once, and many are stopped.
            price = sum(map(clock.full_price, batches)) / len(batches)
            n_runs = max(min(n_settings, 2), n_settings / 2) + min(n_settings, budget.kept)
            left = min(left, min(n_runs, budget.trials_left) * price)
            if n_settings == 1:
                most = min(most, (1 + budget.kept) * price)
        # A search that keeps to its length ends it with full runs.
        searched = max(0.0, left - owed)
        n_confirm = searched / 2 if budget.ends_by_itself else min(budget.kept, searched / 3)
        per_run = TRIALS_PER_RUN[plan.goal if clock.known else "loss"]
        n_search = min(n_settings, 9 + per_run * (searched - n_confirm))
        least = clock.price_to(clock.reference_batch, 0, rungs.samples[0])
        n_all = min(n_search + n_confirm, searched / least) + (owed > 0)
        if budget.trials_left < n_all and not budget.few:
            left, between = left * budget.trials_left / n_all, None
        n_trials = round(min(n_all, budget.trials_left))
    seconds = most_seconds = plan.budget_s
    between_s: tuple[float, float] | None = None
    if clock.reference_s is not None and n_trials is not None:
        each_s = clock.reference_s * clock.correction(ledger)

        def in_seconds(runs: float) -> float:
            return min(runs * each_s, plan.budget_s or math.inf)

        seconds, most_seconds = in_seconds(left), in_seconds(most)
        if between is not None and plan.budget_s is not None:  # Only a duration is kept in seconds.
            between_s = in_seconds(between[0]), in_seconds(between[1])
    return Forecast(  # What is not finite is None there.
        n_trials=n_trials,
        reference_runs=left,
        reference_batch=clock.reference_batch,
        seconds=seconds,
        usual_reference_runs=between,
        usual_seconds=between_s,
        most_reference_runs=most,
        most_seconds=most_seconds,
        n_batches=len(batches),
        batch_range=(batches[0], batches[-1]),
        learning_rate_range=(rates[0], rates[-1]),
        sizes_end_by=why_sizes_end(plan, facts, evidence.probe, batches[-1]),
    )


def _owed_to_baseline(evidence: Evidence, left: float) -> float:
    """Return the reference runs of the user's present setting, where it is still to be run."""
    present = evidence.plan.baseline
    if present is None or present[0] not in evidence.context.space.batches:
        return 0.0
    price = evidence.clock.full_price(present[0])
    begun = any(run.stage == "baseline" for run in evidence.ledger)
    return 0.0 if begun or price > min(BASELINE_SHARE * evidence.whole, left) else price
