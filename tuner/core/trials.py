"""What travels to and from a trial: the facts of an objective, what to run, what to measure, and the reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .errors import ObjectiveError
from .record import Count, Record, Size

Verdict = Literal["go", "stop"]
OptimizerFamily = Literal["sgd", "adam", "other"]
MOST_SAMPLES, MOST_EVALS = 1 << 52, 10_000
"""Of a full run: numbers that JSON keeps exactly, and points of which each is a validation."""


@dataclass(frozen=True)
class Facts:
    """What a worker learned about an objective by loading it and building its model once."""

    name: str | None
    kind: str
    """`supervised`, `loop`, `command`, `lightning` or `transformers`."""
    n_samples: int
    epochs: float
    n_val_samples: int | None = None
    evals: int = 16
    """Equal points of a full run at which it is validated."""
    schedule: str = "unknown"
    """`constant`, `linear`, `cosine`, `wsd`, `callable`; `unknown` where the user owns the loop."""
    optimizer: str | None = None
    """Class name, or None where it cannot be known before training."""
    optimizer_family: OptimizerFamily = "other"
    precision: str = "fp32"
    batch_norm: bool = False
    parameter_bytes: int | None = None
    can_continue: bool = False
    """A stopped trial can go on from a checkpoint."""
    metrics: tuple[str, ...] = ()
    source_hash: str | None = None
    """Of the text of the file or the code that defines the objective."""
    code_hash: str | None = None
    """The same without comments, docstrings and layout; None where it could not be told."""
    code_parts: tuple[tuple[str, str], ...] = ()
    """A hash of each of its functions, classes and variables, by name: they say what was changed."""
    code_arguments: tuple[tuple[str, str], ...] = ()
    """The same of the arguments of instances that it is made of, at which an older bstune did not look."""
    structure_hash: str | None = None
    """Shapes of the parameters of the model's modules and of a sample; of a loop, what its user calls the model.

    Memory depends on them besides the source, and what was learned of a model is found by them.
    """
    ignores_rate: bool = False
    """The optimizer has the same learning rates whatever it is given."""
    step_times: tuple[tuple[int, float], ...] = ()
    """Seconds of an optimizer step by global batch size, ascending, where the objective states them (`step_time_s`);
    they are then the clock, and nothing that is measured corrects them.
    """

    command: tuple[str, ...] = ()
    """The words of the command that is run, with its places."""
    places: tuple[str, ...] = ()
    """Those of its places that are dimensions of the space besides batch size and learning rate."""
    accumulates: bool = True
    """A global batch that does not fit can be accumulated."""
    world_size: int = 1
    """Processes that train one batch together, each on micro-batches of its own."""
    size_unit: str = "samples"
    """What sizes count, and `n_samples` with them: `samples` or `tokens`."""
    longest: int = 1
    """What the largest sample is in that unit; no batch is smaller."""
    mean_size: float = 1.0
    """What a sample is in that unit, in the mean."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be those of a training.

        Raises:
            ObjectiveError: It has no samples or epochs, or absurdly many.
        """
        if not (self.n_samples >= 1 and self.epochs > 0 and self.full_run_samples <= MOST_SAMPLES):
            raise ObjectiveError(
                f"n_samples={self.n_samples}, epochs={self.epochs}: expected a full run of 1 to {MOST_SAMPLES:,} "
                "training samples."
            )
        if not 1 <= self.evals <= MOST_EVALS:
            raise ObjectiveError(f"evals={self.evals}: expected 1 to {MOST_EVALS:,} validations in a full run.")
        if not 1 <= self.world_size <= self.full_run_samples:
            raise ObjectiveError(
                f"world_size={self.world_size}: expected 1 or more processes, and no more than a full run has samples."
            )
        sizes = [size for size, _ in self.step_times]
        if sizes != sorted(set(sizes)) or not all(
            size >= 1 and 0 < seconds < math.inf for size, seconds in self.step_times
        ):
            raise ObjectiveError(
                f"step_times={self.step_times}: expected seconds above 0 by batch sizes of 1 or more, ascending."
            )

    @property
    def full_run_samples(self) -> float:
        """Training samples in one full run, before rounding to whole steps."""
        return self.epochs * self.n_samples

    @property
    def can_be_looked_at(self) -> bool:
        """Whether bstune owns the loop and counts samples, so that a diagnosis can measure on the model."""
        return self.kind == "supervised" and self.size_unit == "samples"

    def full_run_steps(self, global_batch_size: int) -> int:
        """Return the optimizer steps of a full run: floor(epochs * n_samples / global_batch_size)."""
        return math.floor(self.full_run_samples / global_batch_size + 1e-9)


@dataclass(frozen=True)
class Split:
    """A global batch as one kind of device takes it."""

    micro_batch_size: int
    accumulation_steps: int
    eval_batch_size: int | None


@dataclass(frozen=True)
class TrialSpec:
    """One run of one setting, exactly as a worker is to do it."""

    number: int
    """The number of the trial in the study."""
    stage: str
    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    learning_rate: float
    seed: int
    end_samples: int
    """Where this run ends: a multiple of the global batch size."""
    points: tuple[int, ...]
    """Samples at which a report is wanted, ascending. The last may lie past `end_samples` by less than one step;
    it is then due at the end."""
    params: Mapping[str, Any] = field(default_factory=dict)
    eval_batch_size: int | None = None
    world_size: int = 1
    start_samples: int = 0
    """Samples already trained by the run that this one continues."""
    resume_from: str | None = None
    """Checkpoint file to continue from."""
    checkpoint_to: str | None = None
    """Checkpoint file to write when the run is stopped before its end, so that another can continue it."""
    noise_samples: int = 0
    """Extra samples that may be drawn to measure gradient noise along the run; 0 for none."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """By kind of device, where a cluster has several: where the run lands decides."""
    log_to: str | None = None
    """File for what the run prints, where the objective keeps that."""
    most_samples: int | None = None
    """A report of more samples than this counts as a mistake."""
    model_to: str | None = None
    """File to write the trained model to; None where nobody wants it."""
    model_of: str | None = None
    """Study that the model is of."""

    def on(self, device: str) -> TrialSpec:
        """Return the run as this kind of device takes it; an unprobed kind gets the smallest micro-batch of all."""
        split = self.splits.get(device) or min(self.splits.values(), key=lambda split: split.micro_batch_size)
        return replace(self, **vars(split), splits={})

    @property
    def n_steps(self) -> int:
        """Optimizer steps from zero to the planned end."""
        return self.end_samples // self.global_batch_size


@dataclass(frozen=True)
class NoisePoint(Record):
    """Gradient noise at one moment of a run, from several micro-batches at the same weights, before clipping."""

    at_samples: Count
    """Training samples of the run so far."""
    n_microbatches: Size
    microbatch_size: Size
    """Samples in each."""
    gradient_squared: float | None
    """Unbiased estimate of the squared norm of the true gradient.

    It may be negative by chance; None where a gradient was not finite.
    """
    covariance_trace: float | None
    """The same of the trace of the covariance of single samples' gradients.

    Divided by the former, it is the noise scale in samples.
    """

    @property
    def n_samples(self) -> int:
        """Samples drawn for it, which the search is charged for."""
        return self.n_microbatches * self.microbatch_size


@dataclass(frozen=True)
class TrialReport:
    """A validation loss that a worker reports."""

    number: int
    points: tuple[int, ...]
    """The wanted points that this report is the first to reach."""
    samples: int
    val_loss: float
    metrics: Mapping[str, float]
    seconds: float
    """Wall seconds of this run so far, validation included."""
    noise: tuple[NoisePoint, ...] = ()
    """Gradient noise measured since the last report; the samples drawn for it are charged beside `samples`."""
    interval: int = 0
    """Samples from one call of `trial.report` to the next, at most, since the report before this one."""


@dataclass(frozen=True)
class MeasureSpec:
    """A few real steps for the probe to measure."""

    micro_batch_size: int
    eval_batch_size: int
    accumulation_steps: int
    """Micro-batches in the second step, where bstune owns the loop; otherwise one.

    A user's own loop has them in every step.
    """
    n_steps: int
    seed: int
    timed_s: float = 0.0
    """Go on stepping for about this many seconds after `n_steps`, to time them."""
    max_timed_steps: int = 20
    times_validation: bool = False
    """Where bstune owns the loop: run validation once more, now that it is warm, and time it."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Values of the extra dimensions that a search begins with."""

    def as_trial(self, n_steps: int, *, accumulates: bool = True, world_size: int = 1) -> TrialSpec:
        """Return so many of these steps as a run, for a loop that is the user's own; it is to report at its end."""
        accumulation_steps = self.accumulation_steps if accumulates else 1
        batch = self.micro_batch_size * accumulation_steps * world_size
        return TrialSpec(
            number=-1,
            stage="probe",
            global_batch_size=batch,
            micro_batch_size=self.micro_batch_size,
            accumulation_steps=accumulation_steps,
            learning_rate=1e-6,
            seed=self.seed,
            end_samples=n_steps * batch,
            points=(n_steps * batch,),
            params=self.params,
            eval_batch_size=self.eval_batch_size,
            world_size=world_size,
        )


@dataclass(frozen=True)
class MeasureNotes:
    """What an objective reports of a measurement, beside the meter's readings."""

    samples: int
    eval_batch_size: int | None
    """The validation batch size that was really run; None when none was seen."""
    optimizer: str | None = None
    """Class name of the optimizer that stepped."""
    warnings: tuple[str, ...] = ()
    wait_s: float | None = None
    """Seconds that the timed steps waited for their batches; None where the objective cannot tell."""
    cached_step_s: tuple[float, ...] = ()
    """Seconds of steps on one batch that was already loaded: what a step takes without its loader."""
    validation_s_per_sample: float | None = None
    """Seconds of a warm validation batch, over its samples; None where it was not timed."""
    validation_s: float | None = None
    """Seconds of a whole validation of a loop of the user's own or of a framework; None where none was seen."""
    start_s: float | None = None
    """Seconds until it begins to train: to the end of the first step at most; None where they were not timed."""
    accumulates: bool = True
    """False: a loop of the user's own has not looked at what it was asked to accumulate."""
    no_loss: str = ""
    """What to say of a command that ran as it does in a search, to its end, and told no loss; else empty."""
