"""The budget of a search, in samples: what is left, what is held back, and how far a run may go.

What was trained, plus what is held back for the trials that run, plus what is held back for confirmation, never exceeds
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.results import Setting, Spent
from ..core.specs import Plan, Proposal
from ..core.trials import Facts
from ..theory.gradient_noise import SHARE as NOISE_SHARE
from .finalists import LEFT_OVER_FROM
from .ledger import Ledger, Run, key_of
from .rungs import SCHEDULED, Rungs

CONFIRM_SHARE = 4
"""Confirmation is sure of one over this of the budget, and of at least one full run."""


class Budget:
    """What a plan allows, beside what the ledger says was spent.

    Attributes:
        samples: The whole of it.
        share: Full runs that are held back for confirmation while the search goes on.
        kept: Full runs that the search does not touch: the share, and what it leaves over for another finalist.
        planned: Shorter runs are planned as such, because the schedule is scaled to their end.
        prunes: A trial may be stopped at a rung; else all that it may cost is held back when it starts.
    """

    def __init__(self, plan: Plan, facts: Facts, rungs: Rungs, ledger: Ledger) -> None:
        """Read what was spent off the ledger whenever it is asked for."""
        self._plan = plan
        self._rungs = rungs
        self._ledger = ledger
        self._owns_step = facts.kind == "supervised"
        self.samples = plan.budget * rungs.full_samples
        self.share = 0.0 if plan.confirm < 1 or plan.budget < 1.5 else float(max(1, int(plan.budget) // CONFIRM_SHARE))
        self.kept = self.share + (1 if self.share and plan.budget >= LEFT_OVER_FROM else 0)
        self.planned = facts.schedule in SCHEDULED and self._owns_step
        self.prunes = plan.pruner != "none" and not self.planned

    # --- what is left ---

    @property
    def left(self) -> float:
        """Samples that are neither trained nor held back for what runs."""
        return self.samples - self._ledger.committed

    @property
    def search_left(self) -> float:
        """Samples that the search may still commit."""
        confirming = sum(run.committed for run in self._ledger if run.stage == "confirm")
        held = max(0.0, self.kept * self._rungs.full_samples - confirming)
        return self.left - held

    @property
    def trials_left(self) -> float:
        """Trials that may still be started."""
        return math.inf if self._plan.n_trials is None else self._plan.n_trials - len(self._ledger)

    def spent(self) -> Spent:
        """Return what was trained so far."""
        samples = self._ledger.charged
        seconds = sum(run.seconds or 0.0 for run in self._ledger)
        return Spent(samples / self._rungs.full_samples, samples, seconds)

    def why_over(self) -> str:
        """Return why a search ends that has nothing more to start."""
        if self.trials_left < 1:
            return "n_trials"
        return "budget" if self.samples - self._ledger.charged < self._rungs.full_samples * 1.0 else "converged"

    # --- what a run is granted ---

    def grant(self, proposal: Proposal) -> int:
        """Return how far a run that starts now may go before it asks again; so much is held back for it."""
        if not self.prunes or proposal.stage == "confirm":
            return proposal.end_samples
        return self.next_stop(proposal.setting, proposal.start_samples, proposal.end_samples)

    def next_stop(self, setting: Setting, samples: int, end: int) -> int:
        """Return where a run that stands at `samples` is judged: past the next rung, and past what is known of its cell."""
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

    @property
    def interval(self) -> float:
        """Samples between two reports of such a loop, at most: by so much a running trial may pass the budget."""
        return 0 if self._owns_step else max((run.interval for run in self._ledger), default=0)

    def n_finalists(self, confirming: Sequence[Run]) -> int:
        """Return how many settings are confirmed: as many as one fresh seed each can be had for."""
        settings = len({run.key for run in confirming if not run.diverged and run.state != "failed"})
        affordable = settings + int(min(self.left / self._rungs.full_samples + 1e-6, self.trials_left))
        return max(1, min(int(self.kept), affordable))

    def noise_allowance(self, stage: str, start: int, end: int) -> int:
        """Return the samples that a run may draw to measure gradient noise, where bstune owns the step.

        All runs of the search share one allowance, which goes to those that set out for their end: noise depends on the
        learning rate, and those were not chosen for nothing. A confirmation run has its own if that costs no other one.
        """
        full = self._rungs.full_samples
        allowance = int(NOISE_SHARE * full)
        if not self._owns_step:
            return 0
        left = self.left - end
        if stage == "confirm":
            return allowance if left >= allowance and int((left - allowance) / full) == int(left / full) else 0
        if end < full / 2 or (self.prunes and start < full / 4):
            return 0
        searching = [run for run in self._ledger if run.stage != "confirm"]
        taken = sum(max(run.noise_samples, run.noise_granted if run.state == "running" else 0) for run in searching)
        return max(0, min(allowance - taken, int(self.search_left) - (end - start)))
