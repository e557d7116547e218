"""A pool that replays a table, so that a whole search takes milliseconds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...objectives.base import Trial
from ...objectives.gradient_noise import moments
from ..core.errors import TrialPruned
from ..core.trial_record import TrialRecord
from ..core.trials import NoisePoint, TrialReport, TrialSpec, Verdict
from ..engines.base import Event, Finished, Reported
from ..searching.loop import Drive
from ..strategy.strategy import Strategy
from ..studies.records import Records
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
        self._running: dict[int, _ReplayedRun] = {}

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
        self._running[spec.number] = _ReplayedRun(spec, reports)

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
class _ReplayedRun:
    spec: TrialSpec
    reports: deque[TrialReport]
    samples: int = 0
    waits: bool = False
    stopped: bool = False


def replay(
    strategy: Strategy,
    table: Table,
    *,
    slots: int = 1,
    watch: Callable[[Strategy], None] | None = None,
) -> list[TrialRecord]:
    """Run a strategy on a table to its end, and return the records of its trials in the order in which they ended.

    The loop is the one of every search; only the records are kept in memory and the losses looked up.

    Args:
        strategy: A strategy made for `table.facts()`; with a history, its records are not returned again.
        table: Where the losses are looked up.
        slots: Trials side by side.
        watch: Called after every report and every end.
    """
    ended: list[TrialRecord] = []

    def tell(what: str, record: TrialRecord) -> None:
        if what == "finish":
            ended.append(record)
        if what != "start" and watch is not None:
            watch(strategy)

    records = Records(run.record for run in strategy.ledger if run.record is not None)
    checkpoints = Path(table.name) if strategy.facts.can_continue else None
    pool = TablePool(table, slots, exact=strategy.facts.kind == "supervised")
    Drive(records, strategy, strategy.probe, tell=tell, checkpoint_dir=checkpoints).run(pool)
    return ended
