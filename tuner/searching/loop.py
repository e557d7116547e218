"""The loop of a search: the strategy decides, the pool runs, the study remembers, and whoever listens is told."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..core.errors import ObjectiveError, StudyError, in_words
from ..core.interrupts import uninterrupted
from ..core.probe_results import ProbeResult
from ..core.specs import Proposal
from ..core.trial_record import TrialRecord
from ..core.trials import Split, TrialReport, TrialSpec, Verdict
from ..engines.base import Event, Finished, Lost, Placed, Pool, Reported
from ..strategy.cost import Cost
from ..strategy.ledger import FAULTS
from ..strategy.rungs import Rungs
from ..studies.checkpoints import checkpoint_name
from ..studies.model_files import ModelKeeper
from ..studies.optuna_parameters import Axes
from ..studies.records import Records
from ..studies.trial_logs import log_name
from .probes import corrected_probes

if TYPE_CHECKING:
    from ..strategy.strategy import Strategy

POLL_S = 1.0
"""Longest wait for an event, so that a timeout is noticed."""
PATIENCE = 20
"""A trial that is silent for so many times as long as its whole run should take has hung."""
PATIENCE_LEAST_S = 300.0
PATIENCE_UNKNOWN_S = 86_400.0
"""The same where it is not known what a step, or a validation, takes here: to end what is only slow costs a search."""
NOTED_S = 600.0
"""The first silence that is so long is told where it does not end a trial for long."""
ALIKE = 6
"""So many trials in a row that fail in one way say that it is not for their settings."""
PLACE_S = 3600.0
"""So long a run may wait for its place, and its place load the data, before its silence counts."""


Tell = Callable[[Literal["start", "report", "finish"], TrialRecord], None]


class Drive:
    """Fills the slots of a pool with what the strategy asks for, and writes down what comes back."""

    def __init__(
        self,
        study: Records,
        strategy: Strategy,
        probe: ProbeResult | None,
        *,
        tell: Tell,
        deadline_s: float = math.inf,
        checkpoint_dir: Path | None = None,
        log_dir: Path | None = None,
        trial_timeout_s: float | None = None,
        models: ModelKeeper | None = None,
        say: Callable[[str], None] = lambda said: None,
        lasting: bool = False,
    ) -> None:
        """Drive towards the deadline, a reading of the monotonic clock; `tell` hears of every step.

        `models` keeps the best model of the confirmation runs, and `say` hears where.

        A trial that is silent for `trial_timeout_s` has hung; by default that is many times what it should take.
        `lasting`: what runs goes on elsewhere when this loop ends, and a later one takes it up; the pool itself says
        when a trial is lost.
        """
        forecast = strategy.forecast()
        self._study = study
        self._strategy = strategy
        self._probe = probe
        self._tell = tell
        self._axes = Axes(forecast.batch_range, forecast.learning_rate_range, strategy.plan.space)
        self._checkpoint_dir = checkpoint_dir
        self._log_dir = log_dir
        self._deadline_s = deadline_s
        self._trial_timeout_s = trial_timeout_s
        self._models = models
        self._say = say
        self._lasting = lasting
        self._running: dict[int, float] = {}
        """The trials that run, and when each last sent something."""
        self._checked_s = -math.inf
        self._stopped: set[int] = set()
        """Running trials that were told to stop."""
        self._silence_told = False

    def run(self, pool: Pool) -> str:
        """Run until the strategy wants nothing more or the time is over; return why it ended."""
        try:
            why = self._run(pool)
        except BaseException as error:
            if self._lasting and not isinstance(error, ObjectiveError):
                raise
            for number in sorted(self._running):
                # Show the first error, not that the same storage fails once more.
                with contextlib.suppress(StudyError):
                    self._cut_off(number, "the search was interrupted")
            raise
        for number in sorted(self._running):
            self._cut_off(number, "the timeout was over")
        return why

    def adopt(self, number: int, *, stopped: bool) -> None:
        """Count a trial as running that an earlier loop has begun; `stopped`: it was told to stop."""
        self._running[number] = time.monotonic()
        if stopped:
            self._stopped.add(number)

    def _run(self, pool: Pool) -> str:
        while time.monotonic() < self._deadline_s:
            if time.monotonic() - self._checked_s > POLL_S:  # Each write does so, too.
                self._study.check()
                self._checked_s = time.monotonic()
            while len(self._running) < pool.slots and (proposal := self._strategy.ask()) is not None:
                self._start(pool, proposal)
            if not self._running:
                return self._strategy.stopped_by or "converged"
            for event in pool.events(min(POLL_S, max(0.0, self._deadline_s - time.monotonic()))):
                self._take(pool, event)
            if not self._lasting:
                self._end_hung(pool)
        return "timeout"

    def _take(self, pool: Pool, event: Event) -> None:
        if isinstance(event, Reported):
            pool.reply(event.report.number, self.decide(event.report))
        elif isinstance(event, Placed):
            self._placed(event)
        else:
            self._end(event)

    def _start(self, pool: Pool, proposal: Proposal) -> None:
        spec = self._begin(proposal)
        self._tell("start", self._study.record(spec.number))
        pool.submit(spec)
        if pool.places:
            self._running[spec.number] += PLACE_S

    @uninterrupted()
    def _begin(self, proposal: Proposal) -> TrialSpec:
        """Write down that a trial begins, and return what to run."""
        probe, setting = self._strategy.probe, proposal.setting
        micro, accumulation = Cost.of(self._strategy.facts, probe).split(setting.global_batch_size)
        resume_from = None if proposal.continues is None else self._study.record(proposal.continues).checkpoint
        spec = proposal.spec(
            -1,
            micro,
            accumulation,
            eval_batch_size=None if probe is None else probe.eval_batch_size,
            world_size=self._strategy.facts.world_size,
            resume_from=resume_from,
            most_samples=math.ceil(2 * self._strategy.facts.full_run_samples),
            splits={
                device: Split(*Cost.of(self._strategy.facts, its).split(setting.global_batch_size), its.eval_batch_size)
                for device, its in self._strategy.probes.items()
            },
        )
        record = self._study.begin(spec, self._axes, continues=proposal.continues)
        self._strategy.started(record.number, proposal)
        self._running[record.number] = time.monotonic()
        checkpoint_to = (
            None if self._checkpoint_dir is None else str(self._checkpoint_dir / checkpoint_name(record.number))
        )
        log_to = None if self._log_dir is None else str(self._log_dir / log_name(record.number))
        spec = dataclasses.replace(spec, number=record.number, checkpoint_to=checkpoint_to, log_to=log_to)
        return spec if self._models is None or proposal.stage != "confirm" else self._models.begin(spec)

    @uninterrupted()
    def _placed(self, event: Placed) -> None:
        self._running[event.number] = time.monotonic()
        if event.device is not None:
            placed = dataclasses.asdict(event)
            self._study.place(placed.pop("number"), **placed)

    def decide(self, report: TrialReport) -> Verdict:
        """Write a report down and return the verdict on it."""
        with uninterrupted():
            self._running[report.number] = time.monotonic()
            record = self._study.report(report)
            verdict = self._strategy.report(report)
            if verdict == "stop":
                self._stopped.add(report.number)
        self._tell("report", record)
        return verdict

    def _end(self, event: Finished | Lost) -> None:
        record = self._study.record(event.number)
        fatal = isinstance(event, Lost) and self._is_fatal(event)
        record = self._finished(record, event) if isinstance(event, Finished) else _lost(record, event)
        self._finish(
            dataclasses.replace(record, best_val_loss=_best(record), samples_per_s=self._samples_per_s(record))
        )
        self._keep_model(record)
        if isinstance(event, Lost) and event.cause == "oom":
            facts, finished = self._strategy.facts, self._study.finished
            self._strategy.probe, self._strategy.probes = corrected_probes(
                self._probe, self._strategy.probes, finished, facts
            )
        if fatal:
            assert isinstance(event, Lost)
            raise ObjectiveError(
                f"Trial {event.number} failed: {_said(event)}", traceback=event.traceback, output=event.output
            )

    def _keep_model(self, record: TrialRecord) -> None:
        """Keep the model of a confirmation run that came to its end: it is one of a full run."""
        if self._models is None or record.stage != "confirm":
            return
        if record.state != "complete":
            self._models.drop(record.number)
            return
        with uninterrupted():
            said = self._models.take_said(record.number)
        self._say(said)

    def _end_hung(self, pool: Pool) -> None:
        """End the trials that have been silent for far too long."""
        now_s = time.monotonic()
        for number, heard_s in list(self._running.items()):
            record, limit_s = self._study.record(number), self.patience_s(number)
            if limit_s >= PATIENCE_UNKNOWN_S and NOTED_S < now_s - heard_s <= limit_s and not self._silence_told:
                self._silence_told = True
                self._say(
                    f"Nothing was heard of trial {number} for {NOTED_S / 60:.0f} min. It counts as hung after "
                    f"{limit_s / 3600:.0f} h, as long as nobody knows what a trial takes here; --trial-timeout sets "
                    "another limit."
                )
            if now_s - heard_s > limit_s:
                pool.cancel(number)
                self._end(
                    Lost(
                        number,
                        "hung",
                        f"nothing was heard of it for {limit_s:.0f} s",
                        record.samples,
                        record.seconds or limit_s,
                    )
                )

    def patience_s(self, number: int) -> float:
        """Return the seconds of silence after which a running trial counts as hung."""
        if self._trial_timeout_s is not None:
            return self._trial_timeout_s
        record = self._study.record(number)
        if record.end_samples is None:
            return PATIENCE_UNKNOWN_S
        facts, probe = self._strategy.facts, self._probe_of(record)
        # Stated step times may be those of another machine.
        cost = Cost.of(dataclasses.replace(facts, step_times=()), probe)
        validates = facts.kind == "command" or (  # An epoch of a command has its validation in it.
            probe is not None and (probe.validation_s, probe.validation_s_per_sample) != (None, None)
        )
        validations = len(Rungs.of(facts).points(record.end_samples))
        split = (record.micro_batch_size, record.accumulation_steps)
        whole_s = cost.seconds(record.global_batch_size, record.end_samples, split, validations)
        if whole_s is None or not validates:
            whole_s = self._by_ended_s(record)
        elif probe is not None:  # An attempt of the probe has a start in it, as where a model is loaded for long.
            begun_s = (attempt.seconds for attempt in probe.attempts if attempt.outcome == "ok")
            whole_s += max(cost.start_s, min(begun_s, default=0.0))
        return PATIENCE_UNKNOWN_S if whole_s is None else max(PATIENCE_LEAST_S, PATIENCE * whole_s)

    def _by_ended_s(self, record: TrialRecord) -> float | None:
        """Return the most that a run should take by those that have ended, their starts and validations included.

        No step takes longer than one of a larger batch, nor than that of a smaller one as often as it is larger.
        """
        found = [
            ended.seconds
            * max(1.0, (record.end_samples or 0) / trained)
            * max(1.0, ended.global_batch_size / record.global_batch_size)
            for ended in self._study.finished
            if ended.device == record.device
            and ended.state in ("complete", "pruned")
            and ended.val_loss is not None  # One that diverged may not have validated.
            and ended.seconds
            and (trained := ended.samples - ended.start_samples) > 0
        ]
        return min(found, default=None)

    def _finish(self, record: TrialRecord) -> None:
        with uninterrupted():
            self._running.pop(record.number, None)
            self._stopped.discard(record.number)
            self._study.finish(record)
            self._strategy.finish(record)
        self._tell("finish", record)

    def _finished(self, record: TrialRecord, event: Finished) -> TrialRecord:
        """Return the record of a run that came to its end, or was told to stop."""
        end = record.end_samples or event.samples
        last_at, loss = record.values[-1] if record.values else (0, None)
        record = dataclasses.replace(
            record,
            samples=max(event.samples, record.samples),
            val_loss=loss,
            seconds=event.seconds,
            peak_bytes=event.peak_bytes,
            checkpoint=event.checkpoint,
        )
        if record.values and loss is None:
            return dataclasses.replace(
                record, state="pruned", reason=f"diverged: the validation loss was not finite at {last_at} samples"
            )
        if last_at >= end and event.samples >= end:
            return dataclasses.replace(record, state="complete", reason="")
        if record.number in self._stopped:
            return dataclasses.replace(record, state="pruned", reason=f"stopped at {record.samples} of {end} samples")
        return dataclasses.replace(
            record,
            state="failed",
            cause="no_report",
            reason=f"ended at {event.samples} of {end} samples without a report at its end: a run that stops early by "
            "itself cannot be compared",
        )

    def _probe_of(self, record: TrialRecord) -> ProbeResult | None:
        """Return the probe of the kind of device that a trial runs on."""
        return self._probe if record.device is None else self._strategy.probes.get(record.device)

    def _samples_per_s(self, record: TrialRecord) -> float | None:
        split = (record.micro_batch_size, record.accumulation_steps)
        cost = Cost.of(self._strategy.facts, self._probe_of(record))
        return cost.samples_per_s(record.global_batch_size, split)

    def _is_fatal(self, event: Lost) -> bool:
        """Tell whether the user's code has a mistake.

        So it is where the first trial failed, or two in one way and none finished, or the last few all in one way: a
        file that was changed meanwhile, or data that are gone, fail whatever is tried.
        """
        if event.cause not in FAULTS:
            return False
        ended = [record for record in self._study.finished if record.cause != "orphan"]
        way = _way(event.cause, _said(event))
        alike = [_way(record.cause, record.reason) == way for record in ended]
        if self._study.learned:
            return len(alike) >= ALIKE and all(alike[-ALIKE + 1 :])
        return not ended or any(alike)

    def _cut_off(self, number: int, why: str) -> None:
        """Enter a trial that still runs as cut off; closing the pool is what ends it."""
        record = self._study.record(number)
        said = f"{why}; its last report was at {record.samples} samples"
        self._finish(dataclasses.replace(record, state="failed", cause="orphan", reason=said))


def _lost(record: TrialRecord, event: Lost) -> TrialRecord:
    return dataclasses.replace(
        record,
        state="failed",
        reason=_said(event),
        cause=event.cause,
        samples=max(event.samples, record.samples),
        seconds=event.seconds,
        peak_bytes=event.peak_bytes,
    )


def _said(event: Lost) -> str:
    """Return the reason of a lost trial: the type of the exception first, where there was one."""
    message = event.message.strip().splitlines()[-1] if event.message.strip() else event.cause
    return in_words(event.error_type, message) if event.error_type else f"{event.cause}: {message}"


def _way(cause: str | None, reason: str) -> str | None:
    """Return in which way a trial failed: its cause, or of an exception the name that its reason begins with.

    Example:
        >>> _way("error", "ValueError: no rows"), _way("error", "trial.report got samples=3: expected more")
        ('ValueError', 'error')
        >>> _way("oom", "RuntimeError: CUDA out of memory")
        'oom'
    """
    name, colon, _ = reason.partition(":")
    return name if cause == "error" and colon and " " not in name else cause


def _best(record: TrialRecord) -> float | None:
    return min((loss for _, loss in record.values if loss is not None), default=None)
