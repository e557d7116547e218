"""A pool that replays recorded learning curves, so that a whole search takes milliseconds and its truth is known."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..objectives.base import Facts, Trial, TrialReport, TrialSpec, Verdict
from ..objectives.gradients import moments
from .errors import ArgumentError, TrialPruned
from .noise import design
from .plan import Proposal
from .pool import Event, Finished, Reported
from .results import NoisePoint, TrialRecord
from .strategy import Strategy

Cell = tuple[int, float]


@dataclass(frozen=True)
class Table:
    """Recorded curves over batch size, learning rate and seed.

    Attributes:
        name: What was trained.
        n_samples: Training samples of an epoch.
        epochs: Epochs of a full run.
        curves: By (batch size, learning rate): for each recorded seed the pairs (samples, validation loss), ascending.
    """

    name: str
    n_samples: int
    epochs: float
    curves: Mapping[Cell, Sequence[Sequence[tuple[int, float]]]] = field(repr=False)
    noise_scale: float | None = None
    """What every measurement of gradient noise finds, in samples; None: it is not measured."""

    @property
    def batches(self) -> list[int]:
        """The recorded batch sizes."""
        return sorted({batch for batch, _ in self.curves})

    @property
    def learning_rates(self) -> list[float]:
        """The recorded learning rates."""
        return sorted({lr for _, lr in self.curves})

    @property
    def n_seeds(self) -> int:
        """Recorded seeds of a cell, at least."""
        return min(len(seeds) for seeds in self.curves.values())

    def curve(self, batch: int, lr: float, seed: int) -> Sequence[tuple[int, float]]:
        """Return the curve of a cell; seeds beyond the recorded ones start again from the first.

        Raises:
            ArgumentError: The cell is not in the table.
        """
        if (batch, lr) not in self.curves:
            raise ArgumentError(f"The table {self.name!r} has no cell of batch {batch} and learning rate {lr:g}; search its own lists.")
        seeds = self.curves[batch, lr]
        return seeds[seed % len(seeds)]

    def truth(self) -> dict[Cell, float]:
        """Return each cell's last loss in the mean over seeds; infinite where a seed diverged."""
        means = {}
        for cell, seeds in self.curves.items():
            lasts = [curve[-1][1] for curve in seeds]
            means[cell] = float(np.mean(lasts)) if all(math.isfinite(last) for last in lasts) else math.inf
        return means

    def regret(self, batch: int, lr: float) -> float:
        """Return how much worse a cell is than the best cell, relative to it, by the mean over seeds."""
        truth = self.truth()
        best = min(truth.values())
        return (truth[batch, lr] - best) / abs(best)

    @property
    def space(self) -> dict[str, list[int] | list[float]]:
        """The `space` argument that searches exactly this table."""
        return {"batch_size": self.batches, "learning_rate": self.learning_rates}

    def facts(self, **changes: object) -> Facts:
        """Return what an objective that looks this table up would say of itself: a user's loop, unless changed."""
        base: dict[str, object] = {"name": self.name, "kind": "loop", "n_samples": self.n_samples, "epochs": self.epochs}
        return Facts(**{**base, **changes})  # type: ignore[arg-type]

    def loss(self, batch: int, lr: float, seed: int, samples: int) -> float:
        """Return the loss of a cell after so many samples, interpolated; before the first record it is the first."""
        curve = self.curve(batch, lr, seed)
        if not math.isfinite(curve[-1][1]) and samples > curve[-2 if len(curve) > 1 else -1][0]:
            return math.nan
        return float(np.interp(samples, [s for s, _ in curve], [v for _, v in curve]))

    def train_exactly(self, trial: Trial) -> None:
        """Report just where reports are wanted, as `bstune.Supervised` does."""
        batch = trial.global_batch_size
        while True:
            samples = min(math.ceil(trial.next_report / batch) * batch, trial.max_samples)
            trial.report(self.loss(batch, trial.learning_rate, trial.seed, samples), samples=samples)
            if samples >= trial.max_samples:
                return

    def train(self, trial: Trial, start_samples: int = 0) -> None:
        """Report the recorded curve, as a user's loop would; a continued run reports only what comes after its start."""
        for samples, loss in self.curve(trial.global_batch_size, trial.learning_rate, trial.seed):
            last = samples > trial.max_samples - trial.global_batch_size
            if samples > start_samples:
                trial.report(loss, samples=max(samples, trial.max_samples) if last else samples)
            if last or not math.isfinite(loss):
                return


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


def synthetic(
    best_batch: int = 64,
    best_lr: float = 0.03,
    *,
    slope: float = 0.7,
    noise: float = 0.02,
    n_samples: int = 1024,
    epochs: int = 16,
    seeds: int = 4,
    seed: int = 0,
) -> Table:
    """Return a table whose optimum is known: a bowl in octaves that moves with the batch, a cliff above it, and seed noise.

    Args:
        best_batch: Batch size of the lowest loss.
        best_lr: Learning rate of the lowest loss, at that batch size.
        slope: By how many octaves the best learning rate moves per octave of batch.
        noise: Relative standard deviation of the last loss between seeds.
        n_samples: Training samples of an epoch; one report each.
        epochs: Epochs of a full run.
        seeds: Recorded seeds of a cell.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng(seed)
    curves: dict[Cell, list[list[tuple[int, float]]]] = {}
    for batch in (8, 16, 32, 64, 128, 256, 512):
        for k in range(-6, 7):
            lr = best_lr * 2.0**k
            b = math.log2(batch / best_batch)
            u = k - slope * b
            for _ in range(seeds):
                luck = 1 + noise * rng.standard_normal()
                curve = []
                for epoch in range(1, epochs + 1):
                    progress = epoch / epochs
                    late = u + 0.5 * math.log2(progress)  # Early on, larger rates look better than they end.
                    gap = 0.03 * late**2 + 0.01 * b**2
                    loss = (1 + gap) * (0.1 + 0.2 * (1 - progress) ** 2) * luck
                    curve.append((epoch * n_samples, math.nan if u > 3 and epoch > 1 else loss))
                    if u > 3 and epoch > 1:
                        break
                curves.setdefault((batch, lr), []).append(curve)
    return Table("synthetic", n_samples, epochs, curves)
