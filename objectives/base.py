"""What an objective is to the rest of bstune, and the `Trial` that a training loop sees.

An objective travels to a worker process once, is prepared there (its data loaded), and is then run many times, each
time in a process of its own: `describe` says what it is, `measure` runs a few real steps for the probe, `train` runs
one trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, Protocol

from ..tuner.core.amounts import brief
from ..tuner.core.errors import ObjectiveError, TrialPruned
from ..tuner.core.trials import Facts, MeasureNotes, MeasureSpec, NoisePoint, TrialReport, TrialSpec, Verdict

MOST_SAMPLES = 2**53
MOST_METRICS = 100
MOST_NAME = 200
"""Characters in the name of a metric."""
LEAST_TIMED = 2
"""Steps that a probe times, however slow they are."""


class Trial:
    """The setting that a training loop runs, and the way in which it reports.

    Attributes:
        micro_batch_size: Samples in one forward and backward pass.
        accumulation_steps: Micro-batches in one optimizer step.
        global_batch_size: Samples in one optimizer step.
        eval_batch_size: Samples in one validation batch that are known to fit.
        world_size: Processes that train together; 1 here.
        learning_rate: The learning rate of this setting.
        params: Values of the extra dimensions of the space.
        seed: Seed for initialisation, data order and dropout.
        device: What to train on, as torch spells it: `cpu`, `cuda:0`.
        max_samples: Samples at which this run ends; a learning rate that decays must have done so there.
        next_report: Samples at which the next report is wanted.
    """

    def __init__(
        self,
        spec: TrialSpec,
        *,
        device: str,
        send: Callable[[TrialReport], Verdict],
        clock: Callable[[], float],
        overrun: Callable[[], None] | None = None,
        look: Callable[[], None] = lambda: None,
        keep: Callable[..., None] | None = None,
    ) -> None:
        """Bind a setting to the function that carries its reports and brings back the verdict.

        `overrun` is called when the loop goes on for more than one report interval after it was told to stop; `look`
        looks at the memory that the run takes; `keep` writes a model to a file, as `studies.model_files.write_model`
        does.
        """
        self._spec = spec
        self._send = send
        self._clock = clock
        self._overrun = overrun
        self.look = look
        self._keep = keep
        self._last_loss = math.nan
        self._start_s = clock()
        self._last_samples = spec.start_samples
        self._next = sum(point <= spec.start_samples for point in spec.points)
        self._noise: list[NoisePoint] = []
        self._interval = 0
        self.n_reports = 0
        self.stopped_at: int | None = None
        self.read: set[str] = set()
        """Names of the attributes that the loop has looked at."""
        self.number = spec.number
        self.micro_batch_size = spec.micro_batch_size
        self.world_size = spec.world_size
        self.learning_rate = spec.learning_rate
        self.params = dict(spec.params)
        self.seed = spec.seed
        self.device = device

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches in one optimizer step."""
        self.read.add("accumulation_steps")
        return self._spec.accumulation_steps

    @property
    def global_batch_size(self) -> int:
        """Samples in one optimizer step."""
        self.read.add("global_batch_size")
        return self._spec.global_batch_size

    @property
    def eval_batch_size(self) -> int:
        """Samples in one validation batch that are known to fit."""
        self.read.add("eval_batch_size")
        return self._spec.eval_batch_size or self._spec.micro_batch_size

    @property
    def max_samples(self) -> int:
        """Samples at which this run ends; train until this many have been seen.

        A schedule that decays must decay to here, not to the end of a full run: the rate at `samples` is
        `learning_rate * factor(samples / max_samples)`.
        """
        self.read.add("max_samples")
        return self._spec.end_samples

    @property
    def next_report(self) -> int:
        """Samples at which the next report is wanted; `max_samples` once all others were made."""
        points = self._spec.points
        return min(points[self._next], self._spec.end_samples) if self._next < len(points) else self._spec.end_samples

    def report(self, val_loss: float, *, samples: int, **metrics: float) -> None:
        """Tell the validation loss after `samples` cumulative training samples of this trial.

        Report as often as you like: only the first report at or after each wanted point counts.

        Args:
            val_loss: The validation loss, to be minimised, as a number or a tensor of one number. To tune accuracy,
                report 1 - accuracy. One that is not finite says that the run has diverged.
            samples: Training samples seen by this trial since its beginning, a whole number.
            metrics: Other numbers to record beside it.

        Raises:
            TrialPruned: The trial is to stop. Let it pass; it is raised again at each later call.
            ObjectiveError: `samples` is no count of samples or went down, or `val_loss` or a metric is not one number.
        """
        loss, samples = _number(val_loss, "val_loss"), _whole_number(samples, "samples")
        if samples < self._last_samples:
            raise ObjectiveError(
                f"trial.report got samples={brief(samples, 100)} after {self._last_samples}: expected the cumulative "
                "number of training samples of this trial, which never goes down."
            )
        if self.stopped_at is None and samples > (self._spec.most_samples or MOST_SAMPLES):
            raise ObjectiveError(
                f"trial.report got samples={brief(samples, 100)} in a trial that ends at {self._spec.end_samples}: "
                "expected the training samples that this trial has seen (tokens only where n_samples counts these), "
                "not steps."
            )
        self._interval = max(self._interval, samples - self._last_samples)
        self._last_samples, self._last_loss = samples, loss
        self.n_reports += 1
        if self.stopped_at is not None:
            self.check_overrun(samples)
            raise TrialPruned(f"trial {self.number} was stopped at {self.stopped_at} samples")
        due = self._due(samples)
        if not due and math.isfinite(loss):
            return
        numbers = _metrics(metrics)
        self._next += len(due)
        report = TrialReport(
            self.number, due, samples, loss, numbers, self._clock() - self._start_s, tuple(self._noise), self._interval
        )
        self._noise, self._interval = [], 0
        verdict = self._send(report)
        if verdict == "stop":
            self.stopped_at = samples
            raise TrialPruned(f"trial {self.number} was stopped at {samples} samples")
        if samples >= self._spec.end_samples:
            self.stopped_at = samples  # The end: this call returns as usual, a later one is told to stop.

    def save(self, model: Any) -> None:
        """Keep the trained model where it is asked for: a full run with `--save-model`, or `bstune train`.

        Call it at the end, after the last report, or whenever a report was the best; the last call counts. Elsewhere it
        does nothing.

        Args:
            model: A torch.nn.Module, or its state_dict.

        Raises:
            ObjectiveError: It is neither.
        """
        if self._keep is not None and self._spec.model_to is not None:
            self._keep(self._spec, model, samples=self._last_samples, val_loss=self._last_loss)

    def add_noise(self, point: NoisePoint) -> None:
        """Have a measurement of gradient noise travel with the next report."""
        self._noise.append(point)

    @property
    def last_samples(self) -> int:
        """Samples of the last report."""
        return self._last_samples

    @property
    def report_interval(self) -> int:
        """The longest way, in samples, from one wanted point to the next."""
        points = (0, *self._spec.points)
        return max(after - before for before, after in pairwise(points))

    def check_overrun(self, samples: int) -> None:
        """End a loop that was told to stop and has gone on for more than one report interval since."""
        if self._overrun and self.stopped_at is not None and samples > self.stopped_at + self.report_interval:
            self._overrun()

    def _due(self, samples: int) -> tuple[int, ...]:
        wanted = self._spec.points[self._next :]
        return tuple(point for point in wanted if samples >= min(point, self._spec.end_samples))


def _number(value: Any, name: str) -> float:
    """Return one number: Python's own, NumPy's, or that of a tensor without dimensions."""
    plain = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    if isinstance(plain, Real) and not isinstance(plain, bool):
        try:
            return float(plain)
        except OverflowError:
            pass
    raise ObjectiveError(
        f"trial.report got {name}={brief(value, 100)}: expected one number, or a tensor of one without dimensions."
    )


def _whole_number(value: Any, name: str) -> int:
    """Return a number as an int, exactly."""
    number = _number(value, name)
    if not number.is_integer():  # Numbers that are not finite are refused too.
        raise ObjectiveError(f"trial.report got {name}={brief(value, 100)}: expected a whole number.")
    return int(value)


def _metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    if len(metrics) > MOST_METRICS:
        raise ObjectiveError(f"trial.report got {len(metrics)} metrics: expected at most {MOST_METRICS}.")
    for name in metrics:
        if len(name) > MOST_NAME:
            raise ObjectiveError(
                f"trial.report got a metric {brief(name, 100)}: expected a name of at most {MOST_NAME} characters."
            )
    return {name: _number(value, name) for name, value in metrics.items()}


class Meter(Protocol):
    """What an objective calls while it is measured; the worker knows the device behind it."""

    def phase(self, name: str) -> None:
        """Say what comes next: `build`, `data`, `train` or `validation`."""

    def step_done(self) -> None:
        """Say that one whole optimizer step has ended; the time since the last one is its step time."""

    def holds(self, *, parameters_bytes: int, gradients_bytes: int, optimizer_state_bytes: int) -> None:
        """Say how many bytes are held by what, after a step, with gradients resident."""


class Objective(Protocol):
    """A training problem, as a worker runs it. Each method but `prepare` is called in a process of its own."""

    name: str | None

    def prepare(self) -> None:
        """Load the data, once, before any process is made for a trial."""

    def describe(self, batch_sizes: Sequence[int] | None = ()) -> Facts:
        """Build the model once and say what this objective is.

        A search names these global batch sizes, whose step times the objective may know; None: nobody asks for any.
        """

    def measure(self, spec: MeasureSpec, device: str, meter: Meter) -> MeasureNotes:
        """Run real optimizer steps and a validation batch at one size."""

    def train(self, trial: Trial, spec: TrialSpec) -> None:
        """Run one trial to its end, or until `trial.report` raises `TrialPruned`; write the checkpoint if asked to."""


def trains_elsewhere(objective: Any) -> bool:
    """Whether an objective trains in programs of its own: then its worker needs neither torch nor a device."""
    return getattr(objective, "kind", None) == "command"


def run_problems(epochs: float, evals: int, name: str | None) -> list[str]:
    """Return what is wrong with the length of a full run, the number of its validations and a name, a sentence each."""
    problems = epochs_problems(epochs)
    if not (isinstance(evals, Real) and evals >= 1 and evals % 1 == 0):
        problems.append(f"evals={evals!r}: expected a whole number of at least 1")
    return problems + name_problems(name)


def epochs_problems(epochs: float) -> list[str]:
    """Return what is wrong with the epochs of a full run, a sentence at most."""
    if isinstance(epochs, Real) and 0 < epochs < math.inf:
        return []
    return [f"epochs={epochs!r}: expected a finite number above 0"]


def name_problems(name: str | None) -> list[str]:
    """Return what is wrong with the name of an objective, a sentence at most."""
    return [] if name is None or isinstance(name, str) else [f"name={name!r}: expected a text, or None"]
