"""The user's own training loop as an objective."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from typing import Any

from ..tuner.core.errors import ArgumentError, ObjectiveError, TrialPruned
from ..tuner.core.trials import Facts, MeasureNotes, MeasureSpec, TrialReport, TrialSpec, Verdict
from .base import LEAST_TIMED, Meter, Trial, run_problems
from .fingerprint import HasSource, model_problems, named_model, optimizer_family
from .loss_scale import no_step_skipped
from .schedule import SCHEDULES
from .step_times import StepTimes, stated_step_times
from .token_batches import largest_only
from .training import optimizer_bytes, seed_everything

ENDED_EARLY = 0.9
"""A loop may end a little before `max_samples` (whole epochs, dropped last batches), but not below this share of it."""


class Enough(BaseException):
    """Ends a measured loop from within; not an Exception, so that the loop's own `except Exception` lets it pass."""


def objective(
    function: None = None,
    /,
    *,
    n_samples: int = 0,
    epochs: float = 1,
    evals: int = 16,
    optimizer: str | None = None,
    schedule: str = "unknown",
    step_time_s: StepTimes | None = None,
    model: str | None = None,
    name: str | None = None,
) -> Callable[[Callable[[Trial], Any]], LoopObjective]:
    """Make an objective of a function that trains a model.

    The function gets a `bstune.Trial`: it trains with its batch sizes and learning rate until `trial.max_samples`, and
    calls `trial.report(val_loss=..., samples=...)` on the way.

    Args:
        function: Nothing: what is decorated comes in a second call.
        n_samples: Samples in the training data set; it must be given.
        epochs: Passes over them in one full run.
        evals: Equal points of a full run at which a report is wanted, besides the rungs of the search.
        optimizer: Name of the optimizer's class, such as `"SGD"`; default: seen in the probe.
        schedule: `constant`, `linear`, `cosine` or `wsd`: how your loop changes the learning rate. One that decays must
            have come to its end at `trial.max_samples`, which differs from run to run: short runs are then planned as
            such, and none is judged in the middle of its decay. `unknown` is taken for constant.
        step_time_s: Seconds of an optimizer step by global batch size, where you know them: a function of the batch
            size, or `{batch size: seconds}`. A search then counts its time by them. It is asked for powers of two and
            the sizes that the search names; sizes that it does not know may raise KeyError or ValueError.
        model: What you call the model: a new study begins at the best setting of an earlier one, on other data, of a
            model of this name; `optimizer` is then needed, and it and `schedule` are to be the same.
            Default: bstune knows it from no other study.
        name: Name of the study; default: the name of the file.

    Raises:
        ArgumentError: A number is wrong on its face.

    Example:
        >>> @objective(n_samples=1000, epochs=3)
        ... def train(trial):
        ...     trial.report(val_loss=abs(trial.learning_rate - 0.1), samples=trial.max_samples)
        >>> train.n_samples
        1000
    """
    if function is not None:
        raise ArgumentError(
            "objective: expected @bstune.objective(n_samples=..., epochs=...), with the samples in the training data."
        )
    wrong = []
    if not (isinstance(n_samples, int) and n_samples >= 1):
        wrong.append(f"n_samples={n_samples!r}: expected the number of samples in the training data, 1 or more")
    wrong += run_problems(epochs, evals, name)
    if schedule not in (*SCHEDULES, "unknown"):
        wrong.append(f"schedule={schedule!r}: expected {', '.join(SCHEDULES)}, or unknown where it is none of these")
    if not (step_time_s is None or callable(step_time_s) or isinstance(step_time_s, Mapping)):
        wrong.append(
            f"step_time_s={step_time_s!r}: expected a function of the batch size that returns seconds, or a mapping "
            "{batch size: seconds}"
        )
    wrong += model_problems(model, optimizer)
    if wrong:
        raise ArgumentError("objective: " + "; ".join(wrong) + ".")
    return lambda function: LoopObjective(
        function,
        n_samples=n_samples,
        epochs=epochs,
        evals=evals,
        optimizer=optimizer,
        schedule=schedule,
        step_time_s=step_time_s,
        model=model,
        name=name,
    )


class LoopObjective(HasSource):
    """A training loop with the size of its data; made by `@bstune.objective`."""

    kind = "loop"

    def __init__(
        self,
        function: Callable[[Trial], Any],
        *,
        n_samples: int,
        epochs: float,
        evals: int,
        optimizer: str | None,
        schedule: str,
        step_time_s: StepTimes | None,
        model: str | None,
        name: str | None,
    ) -> None:
        """Wrap the function; it can still be called as it is."""
        functools.update_wrapper(self, function)
        self.function = function
        self.n_samples = n_samples
        self.epochs = epochs
        self.evals = evals
        self.optimizer = optimizer
        self.schedule = schedule
        self.step_time_s = step_time_s
        self.model = model
        self.name = name
        self._parts = (function, n_samples, epochs, evals)

    def __call__(self, trial: Trial) -> Any:
        """Call the user's function."""
        return self.function(trial)

    @property
    def facts(self) -> Facts:
        """What is known without running anything."""
        return Facts(
            name=self.name,
            kind=self.kind,
            n_samples=self.n_samples,
            epochs=self.epochs,
            evals=self.evals,
            schedule=self.schedule,
            optimizer=self.optimizer,
            optimizer_family=optimizer_family(self.optimizer),
            **self.source,
            structure_hash=named_model(self.model),
        )

    def prepare(self) -> None:
        """Nothing to load: the loop owns its data."""

    def describe(self, batch_sizes: Sequence[int] | None = ()) -> Facts:
        """Say what is known without training anything; the step times of these batch sizes too, unless it is None.

        Raises:
            ObjectiveError: `step_time_s` says what no step takes, or nothing at all.
        """
        facts = self.facts
        if batch_sizes is None:
            return facts
        times = stated_step_times(self.step_time_s, facts.full_run_samples, batch_sizes)
        return dataclasses.replace(facts, step_times=times)

    def measure(self, spec: MeasureSpec, device: str, meter: Meter) -> MeasureNotes:
        """Run the loop for a few optimizer steps, counted by torch's global hook, and see what it does."""
        seed_everything(spec.seed)
        run = MeasuredRun(spec, device, meter)
        meter.phase("train")

        def accumulates() -> bool:
            read = {"accumulation_steps", "global_batch_size"} & run.trial.read
            return spec.accumulation_steps == 1 or bool(read)

        # One that steps at each micro-batch comes to its end, and to its validation, with so many more steps.
        run.watch.times = lambda: 1 if spec.timed_s > 0 or accumulates() else spec.accumulation_steps
        with run.watch.hooked(), suppress(Enough, TrialPruned):
            self.function(run.trial)
        return MeasureNotes(
            samples=run.samples,
            eval_batch_size=spec.eval_batch_size if run.reports and "eval_batch_size" in run.trial.read else None,
            optimizer=run.watch.optimizer_name,
            start_s=run.watch.start_s,
            validation_s=run.validation_s,
            warnings=self._unseen(run.trial, run.watch, run.reports, spec),
            accumulates=accumulates(),
        )

    def _unseen(
        self, trial: Trial, watch: StepWatch, reported: list[TrialReport], spec: MeasureSpec
    ) -> tuple[str, ...]:
        warnings = []
        if watch.steps < spec.n_steps:
            raise ObjectiveError(
                f"The loop made {watch.steps} optimizer steps where {spec.n_steps} were wanted: expected it to train "
                f"until trial.max_samples ({trial.max_samples} samples at global batch {trial.global_batch_size}), "
                "with a step after each trial.accumulation_steps micro-batches, and after no more of them."
            )
        if "max_samples" not in trial.read:
            warnings.append(
                "The loop does not look at trial.max_samples, so bstune ended it from within and saw no validation."
            )
        elif not reported:
            warnings.append(
                "The loop was not seen to validate and report, so the memory of validation is not part of the answer."
            )
        return (*warnings, *watch.unstated(self.schedule))

    def train(self, trial: Trial, spec: TrialSpec) -> None:
        """Run one trial.

        Raises:
            ObjectiveError: The loop ended without reporting, or well before `trial.max_samples`.
        """
        self.function(trial)
        check_ended(
            trial,
            spec,
            unreported="The loop ended without a report: expected trial.report(val_loss=..., samples=...) at least "
            "once, at its end.",
            early=f"The loop ended by itself after {trial.last_samples} samples: expected it to train until "
            f"trial.max_samples ({spec.end_samples}). Runs are compared at equal samples, so leave early stopping out "
            "of trials: bstune ends those that promise little.",
        )


def check_ended(trial: Trial, spec: TrialSpec, *, unreported: str, early: str) -> None:
    """Pass if a loop has trained to its planned end, or was stopped.

    Raises:
        ObjectiveError: It has reported nothing (`unreported`), or ended well before (`early`).
    """
    if trial.n_reports == 0:
        raise ObjectiveError(unreported)
    if trial.stopped_at is None and trial.last_samples < ENDED_EARLY * spec.end_samples:
        raise ObjectiveError(early)


class MeasuredRun:
    """A few steps, for the probe, of a loop that bstune does not own.

    Attributes:
        spec: The run, as a trial is asked for.
        trial: What the loop is given.
        watch: Counts its steps.
        reports: What it has reported.
        validation_s: Seconds from its last step to what it reported then; None where it has not.
    """

    def __init__(
        self,
        asked: MeasureSpec,
        device: str,
        meter: Meter,
        *,
        accumulates: bool = True,
        begun_s: float | None = None,
    ) -> None:
        """Plan the steps that are asked for, with those that are timed; a trial says `go` to every report.

        `begun_s`: when the run has begun, by `time.perf_counter`; default: now.
        """
        n_steps = asked.n_steps + (asked.max_timed_steps if asked.timed_s > 0 else 0)
        self.spec = asked.as_trial(n_steps, accumulates=accumulates)
        self.reports: list[TrialReport] = []
        self.validation_s: float | None = None
        self.trial = Trial(self.spec, device=device, send=self._hear, clock=time.perf_counter)
        begun_s = time.perf_counter() if begun_s is None else begun_s
        self.watch = StepWatch(meter, n_steps=asked.n_steps, timed_s=asked.timed_s, max_steps=n_steps, begun_s=begun_s)

    def _hear(self, report: TrialReport) -> Verdict:
        self.reports.append(report)
        if self.watch.stepped_s is not None and math.isfinite(report.val_loss):
            self.validation_s = time.perf_counter() - self.watch.stepped_s
        return "go"

    def validation_of(self, n_batches: int | None, ends_s: Sequence[float]) -> float | None:
        """Return the seconds of a validation of so many batches, by when the first of them ended; None if unknown.

        The first may be slow, as much begins with it; each of the others takes what the quickest of them took.
        """
        begun_s = self.watch.stepped_s
        ends_s = [end for end in ends_s if begun_s is not None and end > begun_s]
        between = [later - sooner for sooner, later in pairwise(ends_s)]
        if begun_s is None or n_batches is None or not ends_s or (n_batches > 1 and not between):
            return None
        return ends_s[0] - begun_s + (n_batches - 1) * min(between, default=0.0)

    @property
    def samples(self) -> int:
        """Samples of the steps that were made."""
        return self.watch.steps * self.spec.global_batch_size

    def check(self, asked: MeasureSpec, who: str, unreported: str) -> None:
        """Pass if a framework has made all steps, and validated where that was asked for.

        Raises:
            ObjectiveError: It made fewer, or has reported nothing.
        """
        if self.watch.steps < asked.n_steps:
            raise ObjectiveError(f"{who} made {self.watch.steps} optimizer steps where {asked.n_steps} were wanted.")
        if not self.reports and asked.timed_s <= 0:
            raise ObjectiveError(unreported)


class FrameworkWatch:
    """What a framework calls in a trial, where it runs the loop: counts micro-batches, and carries reports.

    Attributes:
        pruned: What ends the trial, where it was told to stop: to be raised when the framework is back.
        ends_s: When each batch of its validations ended, by `time.perf_counter`.
    """

    PROBED = 3
    """Batches of a validation that the probe runs: the first of them is slow."""

    def __init__(self, trial: Trial, spec: TrialSpec, metric: str) -> None:
        """Count for this trial, and report this metric."""
        self.pruned: TrialPruned | None = None
        self.ends_s: list[float] = []
        self._trial = trial
        self._spec = spec
        self._metric = metric
        self._micro_batches = 0

    @property
    def samples(self) -> int:
        """Training samples so far."""
        return self._micro_batches * self._spec.micro_batch_size

    @property
    def _is_due(self) -> bool:
        return self.samples >= self._trial.next_report

    @property
    def _is_over(self) -> bool:
        return self.samples >= self._spec.end_samples

    def _validated(self, *args: Any, **others: Any) -> None:
        """Hear of the end of a batch of a validation."""
        self.ends_s.append(time.perf_counter())

    def _reported(self, value: Any, metrics: Mapping[str, Any]) -> bool:
        """Report a validation, and return whether the trial goes on."""
        try:
            self._trial.report(value, samples=self.samples, **metrics)
        except TrialPruned as pruned:
            self.pruned = pruned
        return self.pruned is None


class StepWatch:
    """Counts the optimizer steps of a loop that bstune does not own, and ends it once enough were seen."""

    def __init__(self, meter: Meter, *, n_steps: int, timed_s: float, max_steps: int, begun_s: float) -> None:
        """End after `max_steps`, or after `n_steps` and `timed_s` seconds, with `LEAST_TIMED` steps in them."""
        self.steps = 0
        self.optimizer_name: str | None = None
        self._meter = meter
        self._n_steps = n_steps
        self._max_steps = max_steps
        self.times: Callable[[], int] = lambda: 1
        """By what to multiply the steps of a loop that does not accumulate, asked at each of them."""
        self._trained = False
        self._timed_s = timed_s
        self._first: Any = None
        self._deadline_s = float("inf")
        self.start_s: float | None = None
        """Seconds until the optimizer first steps. A forward and a backward pass are in it: the least of several runs
        has those of a small batch."""
        self._has_scheduler = False
        self.stepped_s: float | None = None
        """When it stepped last; None before."""
        self._begun_s = begun_s

    def unstated(self, schedule: str) -> tuple[str, ...]:
        """Return what to say where the rate is changed by a scheduler that the objective does not tell of."""
        if schedule != "unknown" or not self._has_scheduler:
            return ()
        return (
            "The optimizer has a learning rate scheduler, and the objective does not say which: runs are then stopped, "
            "and compared, in the middle of its decay. Say schedule='linear', 'cosine' or 'wsd' where it ends with the "
            "run, and 'constant' where the rate only warms up.",
        )

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch every torch optimizer of this process while the block runs."""
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        handles = (register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after))
        try:
            # What is timed are the batches of training.
            with no_step_skipped(), nullcontext() if self._timed_s else largest_only():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._first is None:
            self.start_s = time.perf_counter() - self._begun_s
            # Every scheduler of torch leaves this mark.
            self._has_scheduler = any("initial_lr" in group for group in optimizer.param_groups)
            # The first optimizer to step counts the steps; a second one, as a GAN has, does not count them twice.
            self._first, self.optimizer_name = optimizer, type(optimizer).__name__
        late = self.steps >= self._n_steps + LEAST_TIMED and time.perf_counter() > self._deadline_s
        if optimizer is self._first and (self.steps >= self._max_steps * self.times() or late):
            raise Enough

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if optimizer is not self._first:
            return
        self.steps += 1
        self._meter.step_done()
        self.stepped_s = time.perf_counter()
        if not self._trained and self.steps >= self._n_steps * self.times():
            self._trained = True
            self._meter.holds(**optimizer_bytes([optimizer], []))
            self._meter.phase("timing" if self._timed_s else "validation")
            self._deadline_s = time.perf_counter() + self._timed_s if self._timed_s else float("inf")
