"""The budget of a search, in reference runs: how much of it is used, what is left, and how far a run may go.

What was trained, plus what is held back for the trials that run, never exceeds it. Where step times are known a search
plans how long it will be, and keeps to that: its end can be foreseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property

from ..core.results import Setting, Spent
from ..core.specs import Plan, Proposal
from ..core.trials import Facts
from ..theory.gradient_noise import SHARE as NOISE_SHARE
from .cost import Clock
from .ledger import LOST, Ledger, Run, key_of
from .rungs import SCHEDULED, Rungs
from .space import Space

LENGTH = 12.0
"""Reference runs that a search plans to use at most, or as many again for each extra dimension..."""
GROWTH = 1 / 3
"""...and of larger budgets in this power of them: twice as many where eight times as many are allowed."""
LEAST_SHARE = 0.8
"""Of its length a search uses at least so much: where nothing more is worth its price, on fresh seeds for the answer.

On 29 recorded tables at a / c = 128 with a budget of 12, one in ten ended after 4.3 reference runs without this, half
after 10.4, and with it after 9.7 and 11.0; octaves behind the soonest: 0.15 / 0.72 and 0.16 / 0.62.
"""
LEAST_LENGTH = 4.0
"""So many reference runs it plans to use all the same where steps take far longer than was known."""
MOST_SHORTER = 0.5
"""Where they take less, it makes at most twice as many runs as it planned."""
MANY = 20
"""Settings: a search among fewer ends sooner, as each is run at most once before it is confirmed."""
LIKELY_SHARE = 0.92
"""About so much is used: it lies in the middle of what searches take."""
LEAST_CONFIRMED = 1.5
"""A smaller budget has no full run to spare for confirmation."""
BASELINE_SHARE = 0.5
"""The user's present setting is run to its end if that takes at most this share of the budget."""
CONFIRM_SHARE = 4
"""Confirmation is sure of one over this of the budget, and of at least one full run."""
LEFT_OVER_FROM = 4
"""A search with so large a budget leaves a full run over for another finalist: late in it, a fresh seed tells more."""


def planned_length(whole: float, n_extras: int) -> float:
    """Return the reference runs of a budget that a search plans to use at most.

    Example:
        >>> planned_length(6, 0), planned_length(96, 0), round(planned_length(36, 1), 1)
        (6, 24.0, 34.6)
    """
    if whole <= LENGTH:
        return whole
    return min(whole, (1 + n_extras) * LENGTH * math.pow(whole / LENGTH, GROWTH))


class Budget:
    """What a plan allows, beside what the ledger says was spent.

    Attributes:
        whole: All of it, in reference runs; infinite while nobody knows how many of them a duration is.
        ends_by_itself: The search ends when more does not pay off; others go on to the end of the budget.
        few: So few settings are searched that each may be run, and nothing is left to do soon.
        length: Reference runs that the search plans to use, beside the user's present setting and what was lost.
        confirms: Full runs on fresh seeds are held back for the answer.
        kept: How many.
        planned: Shorter runs are planned as such, because the schedule is scaled to their end.
        prunes: A trial may be stopped at a rung; else all that it may cost is held back when it starts.
    """

    def __init__(self, plan: Plan, facts: Facts, rungs: Rungs, ledger: Ledger, clock: Clock, space: Space) -> None:
        """Read what was spent off the ledger, as it is now."""
        self._plan = plan
        self._rungs = rungs
        self._ledger = ledger
        self._clock = clock
        self._owns_step = facts.kind == "supervised"
        self.planned = facts.schedule in SCHEDULED
        self.prunes = plan.pruner != "none" and not self.planned
        self.whole, longer = plan.budget, 1.0
        if plan.budget_s is not None:
            # Before any second was measured nobody knows how many runs that is: the first one tells.
            reference_s, longer = clock.reference_s, clock.correction(ledger)
            self.whole = math.inf if reference_s is None else plan.budget_s / (reference_s * longer)
        self.few = not space.extras and len(space.batches) * len(space.learning_rates) < MANY
        self.ends_by_itself = clock.known and plan.sampler == "auto"
        self.length = self.whole
        if self.ends_by_itself:  # Of a duration it is planned in seconds, as that was announced.
            length = planned_length(self.whole * longer, len(space.extras)) / max(longer, MOST_SHORTER)
            self.length = min(self.whole, max(length, LEAST_LENGTH))
        self.confirms = plan.confirm >= 1 and self.length >= LEAST_CONFIRMED
        known = self.length if math.isfinite(self.length) else plan.budget
        self.kept = max(1, int(known) // CONFIRM_SHARE) + (known >= LEFT_OVER_FROM) if self.confirms else 0

    # --- what is left ---

    @cached_property
    def charged(self) -> float:
        """Reference runs trained so far."""
        return sum(self._clock.price_of(run) for run in self._ledger)

    def _taken(self, runs: Iterable[Run]) -> float:
        """Return the reference runs that these have trained, and those that are held back for them."""
        return sum(self._clock.price_of(run, run.granted if run.state == "running" else None) for run in runs)

    @cached_property
    def beside(self) -> float:
        """Reference runs of what does not shorten the search: the user's present setting, and what was lost."""
        return self._taken(run for run in self._ledger if run.stage == "baseline" or run.cause in LOST)

    @property
    def planned_end(self) -> float:
        """Reference runs that all will have taken when the search has used its length."""
        return min(self.whole, self.length + self.beside)

    @property
    def left(self) -> float:
        """Reference runs that the search plans to use, and that are neither trained nor held back for what runs."""
        return self.planned_end - self._taken(self._ledger)

    @property
    def unplanned(self) -> float:
        """Reference runs of the budget that it does not plan to use."""
        return self.whole - self.planned_end if math.isfinite(self.whole) else 0.0

    @property
    def is_short(self) -> bool:
        """Whether the search is not as long yet as was announced."""
        return self.ends_by_itself and not self.few and self.left > (1 - LEAST_SHARE) * (self.planned_end - self.beside)

    @property
    def trials_left(self) -> float:
        """Trials that may still be started."""
        return math.inf if self._plan.n_trials is None else self._plan.n_trials - len(self._ledger)

    def spent(self) -> Spent:
        """Return what was trained so far."""
        ledger, reference_s = self._ledger, self._clock.reference_s
        return Spent(
            full_runs=ledger.charged / self._rungs.full_samples,
            samples=ledger.charged,
            seconds=sum(run.seconds or 0.0 for run in ledger),
            reference_runs=self.charged,
            predicted_seconds=None if reference_s is None else self.charged * reference_s,
        )

    def why_over(self) -> str:
        """Return why a search ends that has nothing more to start."""
        if self.trials_left < 1:
            return "n_trials"
        return "budget" if self.left + self.unplanned < 1.0 else "converged"

    # --- what a run is granted ---

    def price_of_starting(self, proposal: Proposal) -> float:
        """Return what is held back for a run when it starts."""
        batch, drawn = proposal.setting.global_batch_size, proposal.noise_samples
        stop = self.grant(proposal)
        return self._clock.price_to(batch, proposal.start_samples, stop) + self._clock.price(batch, drawn)

    def grant(self, proposal: Proposal) -> int:
        """Return how far a run that starts now may go before it asks again; so much is held back for it."""
        if not self.prunes or proposal.stage in ("confirm", "baseline"):
            return proposal.end_samples
        return self.next_stop(proposal.setting, proposal.start_samples, proposal.end_samples)

    def next_stop(self, setting: Setting, samples: int, end: int) -> int:
        """Return where a run at `samples` is next looked at: past a rung, and past what is known of its cell."""
        batch, rungs = setting.global_batch_size, self._rungs
        others = self._ledger.of(key_of(setting), self._plan.seed)
        known = max([samples, *(run.samples for run in others if run.state != "failed")])
        rung = next((rung for rung in rungs.counted(batch) if rungs.reach(rung, batch, end) > known), end)
        return min(rungs.reach(rung, batch, end) + self._overshoot, end)

    def is_known(self, run: Run) -> bool:
        """Return whether another run of the same cell has been further than this one."""
        others = (other for other in self._ledger.of(run.key, run.seed) if other is not run and other.state != "failed")
        return any(other.samples >= run.samples for other in others)

    @property
    def _overshoot(self) -> int:
        """Samples by which a loop that reports when it likes has passed the point asked for, at most, so far."""
        return 0 if self._owns_step else max((run.overshoot for run in self._ledger), default=0)

    def slack(self, batch: int) -> float:
        """Return by what a running trial of such a loop may pass the budget: the highest price of a report so far."""
        return 0.0 if self._owns_step else self._clock.price(batch, max((r.interval for r in self._ledger), default=0))

    def noise_allowance(self, proposal: Proposal, search_left: float) -> int:
        """Return the samples that a run may draw to measure gradient noise, where bstune owns the step.

        All runs of the search share one allowance, which goes to those that set out for their end: noise depends on the
        learning rate, and those were not chosen for nothing. A confirmation run has its own if that costs no other one.
        """
        if not self._owns_step:
            return 0
        full, batch = self._rungs.full_samples, proposal.setting.global_batch_size
        allowance = int(NOISE_SHARE * full)
        each = self._clock.price(batch, 1)
        price = self._clock.price_to(batch, proposal.start_samples, proposal.end_samples)
        if proposal.stage == "confirm":
            whole = self._clock.full_price(batch)
            spare = self.left - price
            return allowance if spare >= allowance * each and spare % whole >= allowance * each else 0
        if proposal.end_samples < full / 2 or (self.prunes and proposal.start_samples < full / 4):
            return 0
        searching = [run for run in self._ledger if run.stage != "confirm"]
        taken = sum(max(run.noise_samples, run.noise_granted if run.state == "running" else 0) for run in searching)
        return max(0, min(allowance - taken, int((search_left - price) / each)))
