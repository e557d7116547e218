"""Decides: what to try next, when a trial is to stop, what to confirm, and when the search is over.

A strategy is a function of the records of its trials: given the same history it asks for the same thing, which is all
that resuming needs. It runs nothing itself. Trials are compared at equal samples; the budget is kept in reference runs,
which are seconds: what was trained, plus what is held back for the trials that run and for confirmation, never exceeds
it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from ..core.probe_results import ProbeResult
from ..core.results import BatchAnswer, Limits, Recommendation, Setting, Spent
from ..core.specs import Forecast, Learned, Plan, Proposal
from ..core.trial_record import TrialRecord
from ..core.trials import Facts, TrialReport, Verdict
from ..report.reasons import target_source_text
from ..theory.gradient_noise import noise_scale
from .baseline_samplers import Sampler, make_sampler
from .budget import BASELINE_SHARE, Budget
from .confirmation import next_confirmation
from .cost import Clock, Cost, fitted, probed_line
from .diverged_runs import own_setting_diverged
from .evidence import Evidence
from .forecast import foresee
from .importance import importance
from .ledger import FAULTS, LOST, RETRIES, Ledger, Run, key_of
from .nothing_learned import nothing_learned
from .posterior import Context, Fits, Model
from .race import Action
from .recommend import recommend
from .rungs import SCHEDULED, Rungs, diverged
from .samples_to_target import batch_answer
from .space import make_space

BEYOND = 4.0
"""The default range of learning rates reaches this factor beyond a rate that is best so far."""
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
        learned: Learned | None = None,
    ) -> None:
        """Take up the search where the history left it.

        Decisions rest on `probe`; `probes` are those of all kinds of device, where a cluster has several, the first of
        them the same. `learned`: where an earlier study of the same model has found its best.

        Raises:
            ArgumentError: The space, the baseline or the budget is wrong on its face.
        """
        self.plan = plan
        self.facts = facts
        self.probe = probe
        self.probes = probes
        self.learned = learned
        self.space = make_space(plan, facts, probe, learned=learned, begun=bool(history))
        self.rungs = Rungs.of(facts)
        self.ledger = Ledger(history)
        self._fits = Fits()
        self._known_clock: Clock | None = None
        self._known_budget: tuple[object, Budget] | None = None
        self._known_evidence: tuple[object, Evidence] | None = None
        if history:
            self._widen()

    # --- what the driver calls ---

    def ask(self) -> Proposal | None:
        """Return a run to start, or None: then the search is over if nothing runs, and otherwise waits for those."""
        if self.stopped_by is not None:
            return None
        proposal = self._baseline() or self._search()
        running = self.ledger.running
        if proposal is None and not any(run.stage != "confirm" for run in running):
            proposal = self._confirm()
        if proposal is None and not running:
            self.stopped_by = self._budget.why_over()
        return proposal

    def started(self, number: int, proposal: Proposal) -> None:
        """Enter a proposal that was started as this trial."""
        self.ledger.start(number, proposal, self._budget.grant(proposal))

    def adopt(self, proposal: Proposal, record: TrialRecord) -> None:
        """Enter a trial that an earlier strategy has started and that still runs, with what it has reported."""
        self.started(record.number, proposal)
        run = self.ledger.adopt(record)
        run.granted = max(run.granted, run.samples)

    def report(self, report: TrialReport) -> Verdict:
        """Judge a report: whether the trial is to go on."""
        run = self.ledger.report(report)
        if diverged(report.val_loss):
            return "stop"
        if run.stage in ("confirm", "baseline") or run.samples >= run.end_samples:
            return "go"
        batch, budget = run.setting.global_batch_size, self._budget
        counted = [rung for rung in self.rungs.counted(batch) if rung in report.points]
        if not counted or not budget.prunes or (run.samples < run.granted and budget.is_known(run)):
            return "go"
        reach = budget.next_stop(run.setting, run.samples, run.end_samples)
        more = self._clock.price_to(batch, max(run.granted, run.samples), reach, begins=False)
        if more > self._search_left(budget):
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
        """Let in what the default space leaves out: batches that gradient noise allows, rates beyond a best edge."""
        scale = noise_scale([point for run in self.ledger for point in run.noise])
        allowed = None if scale is None else scale.value
        free = "learning_rate" not in self.plan.space
        rates = [run.setting.learning_rate for run in self.ledger]
        known = self.plan, self.facts, self.probe
        space = make_space(*known, allowed, rates, self.learned, begun=True)
        model = Model.of(self._context(), self.ledger) if free else None
        if model is not None and model.leaders:
            best = model.leaders[0].setting.learning_rate
            if best in (space.learning_rates[0], space.learning_rates[-1]):
                rates += [best / BEYOND, best * BEYOND]
                space = make_space(*known, allowed, rates, self.learned, begun=True)
        if space != self.space:
            self.space = space
            self._fits.forget_model()

    @property
    def planned_end(self) -> float:
        """Reference runs of the budget that it plans to use; infinite while nobody knows how many a duration is."""
        return self._budget.planned_end

    @property
    def planned_end_s(self) -> float | None:
        """The seconds of that, where the budget is a duration."""
        whole_s = self.plan.budget_s
        return None if whole_s is None else whole_s * (1 - self._budget.unplanned / self._budget.whole)

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
            memory=probe.micro_batch_size * self.facts.world_size,
            hardware=None if line is None else line.saturation_batch,
            noise=noise,
        )

    def batch_answer(self) -> BatchAnswer:
        """Return which batch size reaches the target first, and what decides it, as far as that is known now."""
        return batch_answer(self._evidence())

    def importance(self) -> tuple[dict[str, float] | None, str | None]:
        """Return how much each dimension matters, as in `SearchResult.importance`; or None, and why."""
        return importance(self._evidence().model, self.space)

    def forecast(self) -> Forecast:
        """Return what the search is still expected to cost."""
        return foresee(self._evidence(), self._budget)

    @property
    def target(self) -> float | None:
        """The validation loss that counts as reached: the user's, or one that is good here; None until one is known."""
        return self._evidence().target

    @property
    def target_source(self) -> str:
        """Where the target is from, in words."""
        return target_source_text(self._evidence().target_source, self.plan.tolerance)

    def recommend(self) -> Recommendation:
        """Return what is best by all that is known now; `verified` says whether it was confirmed.

        Raises:
            NoSignalError: No trial has a finite validation loss.
        """
        return recommend(self._evidence())

    # --- stages ---

    @property
    def _hopeless(self) -> bool:
        diverged = sum(run.diverged for run in self.ledger)
        return not any(run.finite for run in self.ledger) and (
            diverged >= HOPELESS or own_setting_diverged(self.ledger)
        )

    def _baseline(self) -> Proposal | None:
        """Return the run of the user's present setting, to its end, unless it was made or costs too much."""
        space = self.space
        if self.plan.baseline is None or self._budget.trials_left < 1 or self.plan.baseline[0] not in space.batches:
            return None
        setting = space.setting(*self.plan.baseline, space.default_params())
        runs = [run for run in self.ledger.of(key_of(setting)) if run.stage == "baseline"]
        if len(runs) > sum(run.cause in LOST for run in runs) or len(runs) > RETRIES:
            return None
        proposal = self._proposal(
            "baseline", setting, self.plan.seed, self.rungs.end_of(setting.global_batch_size), None
        )
        if math.isinf(self._budget.whole):  # Its price in a duration is not known yet.
            return None
        budget = self._budget
        most = min(BASELINE_SHARE * budget.whole, budget.left + budget.unplanned)
        return proposal if budget.price_of_starting(proposal) <= most else None

    def baseline_share(self) -> float | None:
        """Return the share of the budget that a full run of the present setting takes; None while it is not known."""
        if self.plan.baseline is None or math.isinf(self._budget.whole):
            return None
        return self._clock.full_price(self.plan.baseline[0]) / self._budget.whole

    def _search(self) -> Proposal | None:
        """Return the next run of the search, or None when it is over or waits."""
        budget = self._budget
        if budget.trials_left <= (1 if budget.confirms else 0) or self._hopeless:
            return None
        left = self._search_left(budget)
        action = self._retry() or self._sampler().next(self.ledger)
        if action is None:
            return None
        batch = action.setting.global_batch_size
        share = 1.0
        if budget.planned and action.first_stop < self.rungs.samples[-1]:
            share = action.first_stop / self.rungs.full_samples
        end = self.rungs.end_of(batch, share)
        stage = "anchor" if action.racing else "search"
        proposal = self._proposal(stage, action.setting, self.plan.seed, end, action.continues)
        return None if budget.price_of_starting(proposal) > left else proposal

    def _search_left(self, budget: Budget) -> float:
        """Return the reference runs that the search may still spend: a full run to verify the answer is reserved."""
        return budget.left - self._reserve(budget)

    def _reserve(self, budget: Budget) -> float:
        """Return what is reserved for confirmation: the run that verifies the answer, others at the usual price."""
        if not budget.confirms:
            return 0.0
        best = self._evidence().best_run
        if best is None:
            return min(1.0, budget.length / 2)
        confirming = [run for run in self.ledger if run.stage == "confirm"]
        verified = any(run.key == best.key and (run.complete or run.state == "running") for run in confirming)
        price = self._clock.full_price(best.setting.global_batch_size)
        others = max(budget.kept - len(confirming) - (not verified), 0)
        return (0.0 if verified else price) + others * min(price, 1.0)

    def _blameless(self) -> list[Run]:
        """Return the runs that were lost through no fault of their setting.

        Where the user's code failed before anything was learned, the search ended; who starts it again has mended
        something.
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
        """Return the next full run on a fresh seed: of the answer first, then where another one may change it."""
        budget = self._budget
        if budget.trials_left < 1 or not budget.confirms:
            return None
        slack = budget.slack(self._clock.reference_batch) * self.plan.jobs
        begun = any(run.stage == "confirm" and run.charged and run.cause not in LOST for run in self.ledger)
        # A duration is one of seconds, which are not counted anew.
        fitted = self._fits_times and self._clock.known and self.plan.budget_s is None
        at_any_gain = budget.is_short and nothing_learned(self.ledger) is None
        spare = 0.0 if begun else budget.unplanned
        found = next_confirmation(self._evidence(), budget.left, slack, spare, fitted=fitted, at_any_gain=at_any_gain)
        if found is None:
            return None
        end = self.rungs.end_of(found.setting.global_batch_size)
        return self._proposal("confirm", found.setting, self.plan.seed + found.fresh, end, None)

    def _proposal(self, stage: str, setting: Setting, seed: int, end: int, continues: int | None) -> Proposal:
        start = 0 if continues is None else self.ledger[continues].samples
        proposal = Proposal(stage, setting, seed, end, self.rungs.points(end, start), continues, start)
        budget = self._budget
        noise = budget.noise_allowance(proposal, self._search_left(budget))
        return replace(proposal, noise_samples=noise)

    @property
    def _fits_times(self) -> bool:
        """Whether prices rest on the seconds of the trials, and so change with each that ends."""
        return not self.facts.step_times and (self.probe is None or probed_line(self.probe) is None)

    @property
    def _clock(self) -> Clock:
        """What runs cost, by the probe or by what the objective states; where there is neither, by the trials."""
        line, start_s = None, 0.0
        if self._fits_times:
            earlier = None if self.learned is None else self.learned.step_time_line
            line, start_s = fitted(self.ledger, starts=self.facts.kind == "command")
            line = line or earlier
        cost = Cost.of(self.facts, self.probe, line, start_s)
        others = {device: Cost.of(self.facts, probe) for device, probe in self.probes.items()}
        known = self._known_clock
        if known is None or (known.cost, known.others, known.batches) != (cost, others, self.space.batches):
            self._known_clock = known = Clock(self.rungs, self.space.batches, cost, others)
        return known

    @property
    def _budget(self) -> Budget:
        """The budget as it is now, read off the ledger once for each state of it: each report asks several times."""
        state = (self.ledger.version, self.space, self.probe, self.probes, self.plan)
        if self._known_budget is None or self._known_budget[0] != state:
            self._known_budget = (
                state,
                Budget(self.plan, self.facts, self.rungs, self.ledger, self._clock, self.space),
            )
        return self._known_budget[1]

    def _sampler(self) -> Sampler:
        return make_sampler(self._evidence(), self._search_left(self._budget))

    def _context(self) -> Context:
        planned = self.facts.schedule in SCHEDULED
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
            self.facts.can_continue and not planned,
            planned,
            frozenset(banned),
            frozenset(batches),
            self._fits,
        )

    def _too_large_after(self, run: Run) -> set[int]:
        """Return the batch sizes that are given up because this run was out of memory."""
        record = run.record
        # Larger batches are accumulated from smaller micro-batches from now on; a loop that is out of memory all the
        # same heeds none. Where there are several kinds of device, what is too much for one may fit another, so each
        # works its way down first.
        heeded = self.facts.kind == "supervised" or (
            record is not None and (record.accumulation_steps == 1 or record.device is not None)
        )
        heeded = heeded and self.facts.accumulates
        if self.probe is not None and record is not None and record.micro_batch_size > 1 and heeded:
            return set()
        return {batch for batch in self.space.batches if batch >= run.setting.global_batch_size}

    def _evidence(self) -> Evidence:
        """Return all that is known now; it is put together once for each state of the ledger."""
        state = (self.ledger.version, self.space, self.probe, self.plan)
        if self._known_evidence is None or self._known_evidence[0] != state:
            budget, context, clock = self._budget, self._context(), self._clock
            evidence = Evidence(
                self.plan,
                self.facts,
                self.probe,
                context,
                self.ledger,
                clock,
                budget.whole,
                budget.length,
                budget.confirms,
                self.probes,
            )
            self._known_evidence = state, evidence
        return self._known_evidence[1]
