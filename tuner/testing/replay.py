"""A pool that replays a table, so that a whole search takes milliseconds."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...objectives.base import Trial
from ...objectives.gradient_noise import moments
from ..core.errors import TrialPruned
from ..core.results import NoisePoint, TrialRecord
from ..core.specs import Proposal
from ..core.trials import TrialReport, TrialSpec, Verdict
from ..engines.base import Event, Finished, Reported
from ..strategy.strategy import Strategy
from ..theory.gradient_noise import design
from .tables import Table


class TablePool:
    """Runs trials on a table, in turns: every running trial makes one report, then the next.

    Args:
        table: The recorded curves.
        slots: Trials side by side.
        exact: Report just where it is wanted, not where the table has a record.
    """

    def __init__(self, table: Table, slots: int = 1, *, exact: bool = False) -> None:
        """Start with nothing running."""
        self.slots = slots
        self.places = False
        self._exact = exact
        self._table = table
        self._running: dict[int, _Replay] = {}

    def submit(self, spec: TrialSpec) -> None:
        """Start a run: all its reports are known at once."""
        reports: deque[TrialReport] = deque()
        scale = self._table.noise_scale
        plan = None if scale is None else design(spec.noise_samples, spec.micro_batch_size, self._table.n_samples)
        measured = set(moments(spec.points, spec.start_samples, plan.n_points)) if plan else set()

        def send(report: TrialReport) -> Verdict:
            if plan and measured & set(report.points):
                point = NoisePoint(report.samples, plan.n_microbatches, plan.microbatch_size, 1.0, scale)
                report = dataclasses.replace(report, noise=(point,))
            reports.append(report)
            return "go"

        trial = Trial(spec, device="cpu", send=send, clock=lambda: 0.0)
        with contextlib.suppress(TrialPruned):
            if self._exact:
                self._table.train_exactly(trial)
            else:
                self._table.train(trial, spec.start_samples)
        self._running[spec.number] = _Replay(spec, reports)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Yield the next report, or the end, of each running trial that does not wait for a verdict."""
        for number, run in list(self._running.items()):
            if run.waits:
                continue
            if run.stopped or not run.reports:
                del self._running[number]
                yield Finished(number, min(run.samples, run.spec.end_samples), 0.0, checkpoint=run.spec.checkpoint_to)
                continue
            report = run.reports.popleft()
            run.waits, run.samples = True, report.samples
            yield Reported(report)

    def reply(self, number: int, verdict: Verdict) -> None:
        """Let a run go on, or stop it."""
        self._running[number].waits = False
        self._running[number].stopped = verdict == "stop"

    def cancel(self, number: int) -> None:
        """Forget a run."""
        self._running.pop(number, None)

    def close(self) -> None:
        """Forget all runs."""
        self._running.clear()


@dataclass
class _Replay:
    spec: TrialSpec
    reports: deque[TrialReport]
    samples: int = 0
    waits: bool = False
    stopped: bool = False


@dataclass
class _Watched:
    """What a study would have written down of a run so far."""

    proposal: Proposal
    values: dict[int, float]
    stopped: bool = False
    interval: int = 0
    noise: tuple[NoisePoint, ...] = ()


def replay(
    strategy: Strategy, table: Table, *, slots: int = 1, watch: Callable[[Strategy], None] | None = None, first: int = 0
) -> list[TrialRecord]:
    """Run a strategy on a table to its end and return the records of its trials.

    Args:
        strategy: A strategy made for `table.facts()`; with a history, its records are not returned again.
        table: Where the losses are looked up.
        slots: Trials side by side.
        watch: Called after every report and every end.
        first: Number of the first trial.
    """
    pool = TablePool(table, slots, exact=strategy.facts.kind == "supervised")
    records: list[TrialRecord] = []
    running: dict[int, _Watched] = {}
    number = first
    while True:
        while len(running) < slots and (proposal := strategy.ask()) is not None:
            strategy.started(number, proposal)
            pool.submit(spec_of(number, proposal, checkpoint=strategy.facts.can_continue))
            old = {} if proposal.continues is None else dict(strategy.ledger[proposal.continues].values)
            running[number] = _Watched(proposal, old)
            number += 1
        if not running:
            return records
        for event in pool.events(0.0):
            if isinstance(event, Reported):
                watched = running[event.report.number]
                for point in event.report.points or (event.report.samples,):
                    watched.values[point] = event.report.val_loss
                watched.interval = max(watched.interval, event.report.interval)
                watched.noise += event.report.noise
                verdict = strategy.report(event.report)
                watched.stopped = verdict == "stop"
                pool.reply(event.report.number, verdict)
            elif isinstance(event, Finished):
                record = _record(event, running.pop(event.number))
                strategy.finish(record)
                records.append(record)
            if watch is not None:
                watch(strategy)


def spec_of(number: int, proposal: Proposal, *, checkpoint: bool = False) -> TrialSpec:
    """Return what a trial of a proposal is asked to do where nothing is accumulated."""
    setting = proposal.setting
    return TrialSpec(
        number=number,
        stage=proposal.stage,
        global_batch_size=setting.global_batch_size,
        micro_batch_size=setting.global_batch_size,
        accumulation_steps=1,
        learning_rate=setting.learning_rate,
        seed=proposal.seed,
        end_samples=proposal.end_samples,
        points=proposal.points,
        params=setting.params,
        start_samples=proposal.start_samples,
        checkpoint_to="table" if checkpoint else None,
        noise_samples=proposal.noise_samples,
    )


def _record(event: Finished, watched: _Watched) -> TrialRecord:
    proposal, values, stopped = watched.proposal, watched.values, watched.stopped
    setting = proposal.setting
    last = values[max(values)] if values else math.nan
    finite = [value for value in values.values() if math.isfinite(value)]
    state = "complete" if event.samples >= proposal.end_samples and not stopped else "pruned"
    return TrialRecord(
        number=event.number,
        stage=proposal.stage,
        state=state,
        reason="" if state == "complete" else "stopped" if math.isfinite(last) else "diverged",
        global_batch_size=setting.global_batch_size,
        micro_batch_size=setting.global_batch_size,
        accumulation_steps=1,
        learning_rate=setting.learning_rate,
        seed=proposal.seed,
        samples=event.samples,
        val_loss=last,
        best_val_loss=min(finite) if finite else None,
        seconds=event.seconds,
        samples_per_s=None,
        peak_bytes=None,
        params=dict(setting.params),
        values=tuple(sorted(values.items())),
        end_samples=proposal.end_samples,
        start_samples=proposal.start_samples,
        continues=proposal.continues,
        checkpoint=event.checkpoint,
        report_interval=watched.interval,
        noise=watched.noise,
    )
