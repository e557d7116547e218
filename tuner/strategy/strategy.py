"""Decides: what to try next, when a trial is to stop, what to confirm, and when the search is over.

A strategy is a function of the records of its trials: given the same history it asks for the same thing, which is all
that resuming needs. It runs nothing itself. The budget is kept in samples: what was trained, plus what is held back for
the trials that run, plus what is held back for confirmation, never exceeds it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ..core.probe_results import ProbeResult
from ..core.results import BatchAnswer, Limits, Recommendation, Setting, Spent, TrialRecord
from ..core.specs import Forecast, Plan, Proposal
from ..core.trials import Facts, TrialReport, Verdict
from ..theory.gradient_noise import noise_scale
from .baseline_samplers import PlainSampler, make_sampler
from .budget import Budget
from .cost import Cost
from .finalists import finalists
from .ledger import Ledger, Run, key_of
from .posterior import Context, Fits, Model
from .recommend import recommend
from .rungs import Rungs, diverged
from .sampler import Action, SurrogateSampler
from .samples_to_target import Evidence, batch_answer
from .space import make_space

RETRIES = 2
"""How often a run that was lost through no fault of its setting is started again."""
LOST = frozenset({"orphan", "killed", "crashed", "hung"})
BEYOND = 4.0
"""The default range of learning rates reaches this factor beyond a rate that is best so far."""
FAULTS = frozenset({"error", "no_report"})
"""Of the user's code."""
HOPELESS = 12
"""Trials that diverged before any had a finite loss: the race has by then been down to the smallest learning rates."""


class Strategy:
    """Asks for trials, judges their reports, and knows at any moment what it would recommend."""

    stopped_by: str | None = None
    """`budget`, `n_trials` or `converged` once the search is over; None before."""

    def __init__(
        self,
        plan: Plan,
        facts: Facts,
        probe: ProbeResult | None,
        history: Sequence[TrialRecord] = (),
        probes: Mapping[str, ProbeResult] = MappingProxyType({}),
    ) -> None:
        """Take up the search where the history left it.

        Decisions rest on `probe`; `probes` are those of all kinds of device, where a cluster has several, the first of them the same.

        Raises:
            ArgumentError: The space, the baseline or the budget is wrong on its face.
        """
        self.plan = plan
        self.facts = facts
        self.probe = probe
        self.probes = probes
        self.space = make_space(plan, facts, probe)
        self.rungs = Rungs.of(facts)
        self.ledger = Ledger(history)
        self._budget = Budget(plan, facts, self.rungs, self.ledger)
        self._fits = Fits()
        if history:
            self._widen()

    # --- what the driver calls ---

    def ask(self) -> Proposal | None:
        """Return a run to start, or None: then the search is over if nothing runs, and otherwise waits for what runs."""
        if self.stopped_by is not None:
            return None
        proposal = self._search() if self._searching else None
        running = self.ledger.running
        if proposal is None and not any(run.stage != "confirm" for run in running):
            proposal = self._confirm()
        if proposal is None and not running:
            self.stopped_by = self._budget.why_over()
        return proposal

    def started(self, number: int, proposal: Proposal) -> None:
        """Enter a proposal that was started as this trial."""
        self.ledger.start(number, proposal, self._budget.grant(proposal))

    def report(self, report: TrialReport) -> Verdict:
        """Judge a report: whether the trial is to go on."""
        run = self.ledger.report(report)
        if diverged(report.val_loss):
            return "stop"
        if run.stage == "confirm" or run.samples >= run.end_samples:
            return "go"
        counted = [rung for rung in self.rungs.counted(run.setting.global_batch_size) if rung in report.points]
        if not counted or not self._budget.prunes or (run.samples < run.granted and self._budget.is_known(run)):
            return "go"
        reach = self._budget.next_stop(run.setting, run.samples, run.end_samples)
        if reach - max(run.granted, run.samples) > self._budget.search_left:
            return "stop"
        self._widen()
        if not self._sampler().goes_on(self.ledger, run, counted[-1]):
            return "stop"
        run.granted = reach
        return "go"

    def finish(self, record: TrialRecord) -> None:
        """Enter the final record of a trial."""
        self.ledger.finish(record)
        self._widen()

    def _widen(self) -> None:
        """Let in what the default space leaves out: batches that gradient noise allows, and rates beyond an edge that is best so far."""
        scale = noise_scale([point for run in self.ledger for point in run.noise])
        allowed = None if scale is None else scale.value
        free = "learning_rate" not in self.plan.space
        rates = [run.setting.learning_rate for run in self.ledger]
        space = make_space(self.plan, self.facts, self.probe, allowed, rates)
        model = Model.of(self._context(), self.ledger) if free else None
        if model is not None and model.leaders:
            best = model.leaders[0].setting.learning_rate
            if best in (space.learning_rates[0], space.learning_rates[-1]):
                space = make_space(self.plan, self.facts, self.probe, allowed, [*rates, best / BEYOND, best * BEYOND])
        if space != self.space:
            self.space = space
            self._fits.forget_model()

    def spent(self) -> Spent:
        """Return what was trained so far; the probe is not in it."""
        return self._budget.spent()

    def limits(self) -> Limits:
        """Return the batch size that memory, hardware and gradient noise each allow, as far as they are known."""
        probe, noise = self.probe, self.batch_answer().b_crit
        if probe is None:
            return Limits(noise=noise)
        line = probe.step_time_line
        return Limits(
            memory=probe.micro_batch_size, hardware=None if line is None else line.saturation_batch, noise=noise
        )

    def batch_answer(self) -> BatchAnswer:
        """Return which batch size reaches the target first, and what decides it, as far as that is known now."""
        return batch_answer(self._evidence())

    def forecast(self) -> Forecast:
        """Return what the search is expected to cost."""
        search = max(0.0, self.plan.budget - self._budget.kept)
        # Counted on recorded tables; shorter runs that are planned as such, or continued as new trials, make half as many more.
        n_search = (6 + 2 * search) * (1.5 if self.facts.can_continue or self._budget.planned else 1.0)
        n_trials = max(1, round(n_search + self._budget.kept))
        if self.plan.n_trials is not None:
            n_trials = min(n_trials, self.plan.n_trials)
        rates, batches = self.space.learning_rates, self.space.batches
        seconds = seconds_range = None
        cost = Cost.of(self.facts, self.probe)
        each = [s for batch in batches if (s := cost.seconds(batch, self._budget.samples)) is not None]
        if each:
            seconds, seconds_range = sum(each) / len(each), (min(each), max(each))
        return Forecast(
            n_trials=n_trials,
            full_runs=self.plan.budget,
            samples=round(self._budget.samples),
            seconds=seconds,
            seconds_range=seconds_range,
            n_batches=len(batches),
            batch_range=(batches[0], batches[-1]),
            learning_rate_range=(rates[0], rates[-1]),
        )

    @property
    def target(self) -> float | None:
        """The validation loss that counts as reached: the user's, or chosen from the first full run; None while there is none."""
        return self._evidence().target

    def recommend(self) -> Recommendation:
        """Return what is best by all that is known now; `verified` says whether it was confirmed.

        Raises:
            NoSignalError: No trial has a finite validation loss.
        """
        return recommend(self._evidence())

    # --- stages ---

    @property
    def _searching(self) -> bool:
        return not any(run.stage == "confirm" for run in self.ledger)

    @property
    def _hopeless(self) -> bool:
        return not any(run.finite for run in self.ledger) and sum(run.diverged for run in self.ledger) >= HOPELESS

    def _search(self) -> Proposal | None:
        """Return the next run of the search, or None when it is over or waits."""
        reserved = 1 if self._budget.share else 0
        if self._budget.trials_left <= reserved or self._hopeless:
            return None
        action = self._retry() or self._sampler().next(self.ledger)
        if action is None:
            return None
        batch = action.setting.global_batch_size
        share = 1.0
        if self._budget.planned and action.first_stop < self.rungs.samples[-1]:
            share = action.first_stop / self.rungs.full_samples
        end = self.rungs.end_of(batch, share)
        stage = "anchor" if action.racing else "search"
        proposal = self._proposal(stage, action.setting, self.plan.seed, end, action.continues)
        too_much = self._budget.grant(proposal) - proposal.start_samples > self._budget.search_left
        return None if too_much else proposal

    def _blameless(self) -> list[Run]:
        """Return the runs that were lost through no fault of their setting.

        Where the user's code failed before anything was learned, the search ended; who starts it again has mended something.
        """
        learned = next((run.number for run in self.ledger if run.values and run.state != "failed"), math.inf)
        return [run for run in self.ledger if run.cause in LOST or (run.cause in FAULTS and run.number < learned)]

    def _retry(self) -> Action | None:
        """Return a run that was lost through no fault of its own, to be started again."""
        blameless = self._blameless()
        lost = Counter(run.key for run in blameless)
        for run in blameless:
            if run.stage == "confirm" or lost[run.key] > RETRIES:
                continue
            if self.ledger.of(run.key, run.seed)[-1] is run:
                batch = run.setting.global_batch_size
                ends = {self.rungs.end_of(batch, rung / self.rungs.full_samples): rung for rung in self.rungs.samples}
                known = run.continues is not None and self.ledger[run.continues].checkpoint is not None
                return Action(
                    run.setting, ends.get(run.end_samples, self.rungs.samples[-1]), run.continues if known else None
                )
        return None

    def _confirm(self) -> Proposal | None:
        """Return the next confirmation run: every finalist on the first fresh seed, then on the next."""
        if self._budget.trials_left < 1 or self._budget.share == 0:
            return None
        left = self._budget.left
        confirming = [run for run in self.ledger if run.stage == "confirm"]
        chosen = finalists(self._evidence(), self._budget.n_finalists(confirming))
        for fresh in range(1, self.plan.confirm + 1):
            wanted = [setting for setting in chosen if self._unconfirmed(setting, self.plan.seed + fresh)]
            ends = [self.rungs.end_of(setting.global_batch_size) for setting in wanted]
            first = fresh == 1 and not confirming  # The one run that verifies: a loop's overshoots may not cost it.
            slack = self._budget.interval * self.plan.jobs if first else 0
            round_begun = any(run.seed == self.plan.seed + fresh for run in confirming)
            if wanted and (ends[0] <= left + slack if fresh == 1 or round_begun else sum(ends) <= left):
                return self._proposal("confirm", wanted[0], self.plan.seed + fresh, ends[0], None)
            if wanted:
                return None
        return None

    def _unconfirmed(self, setting: Setting, seed: int) -> bool:
        """Return whether a finalist still has to run on a seed."""
        runs = self.ledger.of(key_of(setting), seed)
        lost = [run for run in runs if run.cause in LOST]
        return len(runs) == len(lost) <= RETRIES

    def _proposal(self, stage: str, setting: Setting, seed: int, end: int, continues: int | None) -> Proposal:
        start = 0 if continues is None else self.ledger[continues].samples
        noise = self._budget.noise_allowance(stage, start, end)
        return Proposal(stage, setting, seed, end, self.rungs.points(end, start), continues, start, noise)

    def _sampler(self) -> SurrogateSampler | PlainSampler:
        left = self._budget.search_left / self.rungs.full_samples
        return make_sampler(self._context(), self.plan.sampler, self.plan.pruner, left)

    def _context(self) -> Context:
        batches: set[int] = set()
        blameless = self._blameless()
        excused = {run.number for run in blameless}
        banned = {key for key, n in Counter(run.key for run in blameless).items() if n > RETRIES}
        for run in self.ledger:
            if run.cause in FAULTS and run.number not in excused:
                banned.add(run.key)
            if run.cause == "oom":
                banned.add(run.key)
                batches |= self._too_large_after(run)
        return Context(
            self.space,
            self.rungs,
            self.plan.seed,
            self.facts.can_continue and not self._budget.planned,
            self._budget.planned,
            frozenset(banned),
            frozenset(batches),
            self._fits,
        )

    def _too_large_after(self, run: Run) -> set[int]:
        """Return the batch sizes that are given up because this run was out of memory."""
        record = run.record
        # Larger batches are accumulated from smaller micro-batches from now on; a loop that is out of memory all the same heeds none.
        # Where there are several kinds of device, what is too much for one may fit another, so each works its way down first.
        heeded = self.facts.kind == "supervised" or (
            record is not None and (record.accumulation_steps == 1 or record.device is not None)
        )
        if self.probe is not None and record is not None and record.micro_batch_size > 1 and heeded:
            return set()
        return {batch for batch in self.space.batches if batch >= run.setting.global_batch_size}

    def _evidence(self) -> Evidence:
        share = self._budget.share
        return Evidence(self.plan, self.facts, self.probe, self._context(), self.ledger, share, self.probes)
