"""What a search is expected to cost before it has trained anything, and what is left of that later."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..core.results import Goal
from ..core.specs import Forecast
from .budget import Budget
from .evidence import Evidence, long_from
from .space import why_sizes_end


class Usual(NamedTuple):
    """Reference runs after which searches end because more would not pay off: one in ten, half, and nine in ten."""

    low: float
    middle: float
    high: float


USUAL_RUNS: dict[Goal, Usual] = {
    "time": Usual(5.0, 11.0, 21.0),
    "loss": Usual(3.0, 5.0, 12.0),
    "largest": Usual(2.0, 3.0, 6.0),
}
"""Where it is known what a step takes, and the budget is larger: one in ten, half and nine in ten of the searches of
recorded tables, two or three seeds of each.

By time, where no search was long by its budget of 36: 4.6, 9.8, 21.3 on 29 tables at a / c = 128, five by measured
times and eight at 16. Where searches are long from 10 on: 4.3, 10.1, 13.5 at 128, 4.2, 9.3, 12.9 at 16, 6.1, 9.1, 12.1
by measured times; those of the 17 tables that are trainings of small models end later (half after 12.2, 11.1, 9.1) than
those of LCBench. By loss and for the largest: 2.8, 6.0, 11.9 and 1.6, 2.3, 6.4 on 17 tables at 16 and 128; on 14, as
loops and as `Supervised`, half ended after 3.8 and 3.2. What is taken lies between.
"""
LONG_BY = 3.5
"""Reference runs by which nine in ten of the searches that get there are over after they are long, in the same."""
TRIALS_PER_RUN: dict[Goal, float] = {"time": 6.0, "loss": 1.0, "largest": 1.0}
"""Trials for each of them beside the race and confirmation: many short ones pay off by time. Counted for `time` in six
searches of two examples, for the others on 14 tables."""
LONGER = 1.2
"""A search that is unusually long already is expected to take so many times what it has taken."""
MANY = 20
"""Settings: a search among fewer ends sooner, as each is run at most once before it is confirmed."""


def foresee(evidence: Evidence, budget: Budget) -> Forecast:
    """Return what the search is still expected to cost."""
    plan, facts, clock, space = evidence.plan, evidence.facts, evidence.clock, evidence.context.space
    rungs, ledger = evidence.context.rungs, evidence.ledger
    left = most = max(0.0, budget.left)
    rates, batches = space.learning_rates, space.batches
    n_settings = math.inf if space.extras else len(batches) * len(rates)
    between: tuple[float, float] | None = None
    searched, n_extras = evidence.searched, len(space.extras)
    longest = long_from(budget.whole, n_extras) + LONG_BY
    usual = Usual(*(min(runs * (1 + n_extras), longest) for runs in USUAL_RUNS[plan.goal]))
    if evidence.ends_by_itself:
        left = min(left, max(usual.middle, (searched + usual.high) / 2, LONGER * searched) - searched)
        if left < most and n_settings >= MANY and searched < usual.middle:
            between = max(0.0, usual.low - searched), min(most, usual.high - searched)
    n_trials: int | None = None
    if math.isfinite(left):
        if n_settings < MANY:  # On the seed of the search each is run at most once, and many are stopped.
            price = sum(map(clock.full_price, batches)) / len(batches)
            n_runs = max(min(n_settings, 2), n_settings / 2) + min(n_settings, budget.kept)
            left = min(left, min(n_runs, budget.trials_left) * price)
            if n_settings == 1:
                most = min(most, (1 + budget.kept) * price)
        n_confirm = min(budget.kept, left / 3)
        n_search = min(n_settings, 9 + TRIALS_PER_RUN[plan.goal if clock.known else "loss"] * (left - n_confirm))
        least = clock.price_to(clock.reference_batch, 0, rungs.samples[0])
        n_all = min(n_search + n_confirm, left / least)
        if budget.trials_left < n_all and n_settings >= MANY:
            left, between = left * budget.trials_left / n_all, None
        n_trials = round(min(n_all, budget.trials_left))
    seconds = most_seconds = plan.budget_s
    between_s: tuple[float, float] | None = None
    if clock.reference_s is not None and n_trials is not None:
        each_s = clock.reference_s * clock.correction(ledger)

        def in_seconds(runs: float) -> float:
            return min(runs * each_s, plan.budget_s or math.inf)

        seconds, most_seconds = in_seconds(left), in_seconds(most)
        between_s = None if between is None else (in_seconds(between[0]), in_seconds(between[1]))
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
