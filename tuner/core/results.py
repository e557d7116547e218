"""What comes back: frozen dataclasses whose names bear their units, and which survive a trip through JSON.

Every result has `to_dict()`, `to_json()` and `from_dict()`. A number that is not finite becomes None when the
result is made, so a result always equals what is read back from its own JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import BstuneError
from .record import Amount, Bytes, Count, Positive, Record, Seconds, Size, Spread, StepSeconds

if TYPE_CHECKING:
    import pandas
    from typing_extensions import Self

Outcome = Literal["ok", "oom", "limit", "error"]
LimitedBy = Literal["memory", "dataset", "max_batch", "plateau", "timeout"]
Proof = Literal["bracket", "model", "cap", "noise"]
Goal = Literal["loss", "time", "largest"]
LEAST_S = 1e-12
"""No step takes less."""
Decider = Literal["memory", "hardware", "noise", "data set", "space"]


# --- what the probe returns ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceInfo(Record):
    """The device as it was when it was used."""

    kind: str
    """`cpu` or `cuda`."""
    name: str
    uuid: str | None = None
    total_bytes: Bytes | None = None
    threads: Size | None = None
    """Threads per worker on CPU."""


@dataclass(frozen=True)
class Attempt(Record):
    """One size that was tried, in a process of its own."""

    size: Size
    """The micro-batch size, in samples."""
    outcome: Outcome
    peak_bytes: Bytes | None
    seconds: Amount
    steps: Count
    """Optimizer steps that were completed."""
    eval_batch_size: Size | None = None
    phase: str | None = None
    """Where it failed: `build`, `data`, `train` or `validation`; None when it did not."""
    reason: str | None = None


@dataclass(frozen=True)
class MemoryLine(Record):
    """Peak memory as a line in the micro-batch size, near the answer."""

    fixed_bytes: float
    bytes_per_sample: float
    predicted_bytes: Bytes | None
    """What was predicted for the answer before it was run; None when nothing was predicted."""
    measured_bytes: Bytes
    relative_error: float | None
    """(predicted - measured) / measured."""


@dataclass(frozen=True)
class MemoryByCategory(Record):
    """What the peak at the answer is made of; None where it could not be told apart."""

    parameters_bytes: int | None
    gradients_bytes: int | None
    optimizer_state_bytes: int | None
    activations_bytes: int | None
    workspace_bytes: int | None
    """Everything else: kernels' scratch space, the allocator's spare blocks; on CPU also the interpreter."""


@dataclass(frozen=True)
class ThroughputRow(Record):
    """Step time at one micro-batch size, alone on the device, after warm-up."""

    batch_size: Size
    samples_per_s: Positive
    s_per_step: StepSeconds
    """Median over the timed steps."""
    spread: Spread
    """Interquartile range over the median."""


@dataclass(frozen=True)
class Loader(Record):
    """What the data loader costs a training step, about where throughput stops rising (`knee_batch_size`)."""

    wait_share: Amount
    """Share of a step that is spent waiting for its batch."""
    samples_per_s_without: Positive
    """Throughput on a batch that is at hand already."""
    bound: bool
    """The loader holds training back: more than 10 % waiting, and less than 90 % of the rate without it."""


@dataclass(frozen=True)
class StepTimeLine(Record):
    """Seconds per step as a line in the micro-batch size: t(n) = a + c * n."""

    a_s: Seconds
    c_s_per_sample: Seconds
    saturation_batch: Amount | None
    """a / c: the size at which half of the peak throughput is reached."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` wrote."""
        line = super().from_dict(data)
        if line.a_s + line.c_s_per_sample < LEAST_S:
            raise BstuneError(
                f"StepTimeLine: expected a step to take time, found a_s={line.a_s}, c_s_per_sample={line.c_s_per_sample}."
            )
        return line

    def step_s(self, micro_batch_size: int, accumulation_steps: int = 1) -> float:
        """Return the seconds that one optimizer step takes with this many accumulated micro-batches."""
        return accumulation_steps * (self.a_s + self.c_s_per_sample * micro_batch_size)


@dataclass(frozen=True)
class ProbeResult(Record):
    """The largest micro-batch that fits, how that is known, and what a step costs."""

    micro_batch_size: Size
    eval_batch_size: Size | None
    limited_by: LimitedBy
    proof: Proof
    capacity_bytes: Bytes
    usable_bytes: Bytes
    budget_bytes: Bytes
    peak_bytes: Bytes
    memory_line: MemoryLine | None
    memory_by_category: MemoryByCategory | None
    throughput: tuple[ThroughputRow, ...]
    step_time_line: StepTimeLine | None
    attempts: tuple[Attempt, ...]
    device: DeviceInfo
    n_train_samples: Size
    warnings: tuple[str, ...] = ()
    samples: Count = 0
    """Training samples that the probe used; not charged to a search."""
    seconds: Amount = 0.0
    optimizer: str | None = None
    """Class name of the optimizer that was seen to step."""
    knee_batch_size: Size | None = None
    """Smallest size that was timed at 95 % or more of the best throughput: beyond it, size brings next to no speed."""
    loader: Loader | None = None
    """None where the user owns the loop, so that the wait for batches cannot be seen."""
    validation_s_per_sample: Amount | None = None
    """Seconds of validation for each sample of the validation data, at `eval_batch_size`; None where the user owns the loop, whose
    validation cannot be told apart, and in results of older versions."""
    cached: bool = False
    """The result is a stored one, whose size was run once more now."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables under which this answer holds; export them where you train."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The arguments that the answer depends on, as the probe was called."""
    versions: dict[str, str] = field(default_factory=dict)


# --- what the search returns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting(Record):
    """A point of the search: what is trained with. The device decides how it is split into micro-batches."""

    global_batch_size: Size
    learning_rate: Positive
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LossEstimate(Record):
    """Validation loss at the end of a full run."""

    mean: float | None
    sd: Amount | None
    """None with one seed."""
    n_seeds: Count
    low: float | None = None
    """90 % prediction interval for one fresh full run."""
    high: float | None = None


@dataclass(frozen=True)
class LrRule(Record):
    """Double the batch, multiply the learning rate by 2**alpha; learned from the trials of this search."""

    alpha: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Candidate(Record):
    """A setting that was run, with what it reached and what a full run of it costs."""

    global_batch_size: Size
    micro_batch_size: Size
    accumulation_steps: Size
    learning_rate: Positive
    params: dict[str, Any]
    val_loss: LossEstimate
    seconds_per_full_run: Amount | None
    samples_per_s: Amount | None
    seconds_to_target: Amount | None = None
    samples_to_target: Amount | None = None
    verified: bool = False
    note: str = ""


@dataclass(frozen=True)
class OnDevice(Record):
    """The recommended setting on one kind of device: the same global batch, as it is split and what it costs there."""

    device: str
    micro_batch_size: Size
    accumulation_steps: Size
    eval_batch_size: Size | None
    samples_per_s: Amount | None
    seconds_per_full_run: Amount | None
    seconds_to_target: Amount | None


@dataclass(frozen=True)
class Recommendation(Record):
    """One setting that was really run, with the reason, its uncertainty and its cost."""

    micro_batch_size: Size
    accumulation_steps: Size
    world_size: Size
    global_batch_size: Size
    """`micro_batch_size * accumulation_steps * world_size`, exactly."""
    eval_batch_size: Size | None
    learning_rate: Positive
    params: dict[str, Any]
    val_loss: LossEstimate
    seconds_to_target: Amount | None
    samples_to_target: Amount | None
    samples_per_s: Amount | None
    peak_bytes: Bytes | None
    verified: bool
    """It was run to the full budget, on a seed that it was not chosen on, as recommended."""
    reason: str
    batch_interval: tuple[Size, ...]
    """Smallest and largest global batch size that could not be told from the best."""
    lr_rule: LrRule | None
    fastest: Candidate | None
    smallest_within_tolerance: Candidate | None
    alternatives: tuple[Candidate, ...]
    warnings: tuple[str, ...] = ()
    by_device: tuple[OnDevice, ...] = ()
    """Where a cluster has several kinds of device, each of them. The first is the one that micro-batch, seconds and peak above are for."""


@dataclass(frozen=True)
class Spent(Record):
    """What the search trained, confirmation included and the probe not."""

    full_runs: Amount
    samples: Count
    seconds: Amount


@dataclass(frozen=True)
class Limits(Record):
    """The batch size that each of the three allows, in samples; None where it was not measured."""

    memory: Size | None = None
    """Largest micro-batch that fits."""
    hardware: Amount | None = None
    """Saturation batch a / c of the step-time line."""
    noise: Amount | None = None
    """Critical batch size."""


@dataclass(frozen=True)
class BatchAnswer(Record):
    """Which batch size reaches a target first, from E(B) = E_min + S_min * B and the step time t(B) = a + c * B.

    What was not measured, or could not be told, is None. Every `low` and `high` is a 90 % interval; a `high` of None beside a
    `low` means that no upper end could be told.
    """

    source: Literal["trials", "noise scale"] | None = None
    """What the critical batch size is from: samples to target of trials, or gradient noise, which tends to be too low."""
    target: float | None = None
    """Validation loss that the samples were counted to."""
    n_batches: Count = 0
    """Batch sizes that reached it."""
    e_min_samples: float | None = None
    """Samples to the target with the smallest batches."""
    s_min_steps: float | None = None
    """Steps to the target with the largest batches."""
    worst_residual: float | None = None
    """Largest relative distance of a batch size from the line."""
    b_crit: float | None = None
    """Critical batch size E_min / S_min, in samples: there, steps and samples are both twice their least."""
    b_crit_low: float | None = None
    b_crit_high: float | None = None
    """None beside a `low`: samples to the target did not grow with the batch beyond doubt, so only the prior bounds it from above."""
    noise_scale: float | None = None
    """tr(Sigma) / |G|^2 along the measured runs, in samples; None where noise dominates: then only a lower end is known."""
    noise_scale_low: float | None = None
    noise_scale_high: float | None = None
    b_star: float | None = None
    """Fastest batch size sqrt(b_crit * a / c), in samples, before any cap."""
    b_star_low: float | None = None
    b_star_high: float | None = None
    fastest: Size | None = None
    """Of the batch sizes searched, the one that takes the fewest seconds to the target, by both lines and all caps."""
    decided_by: Decider | None = None
    """What keeps the fastest batch from being larger."""


TRIAL_COLUMNS = (
    "number",
    "stage",
    "state",
    "reason",
    "global_batch_size",
    "micro_batch_size",
    "accumulation_steps",
    "learning_rate",
    "seed",
    "samples",
    "val_loss",
    "best_val_loss",
    "seconds",
    "samples_per_s",
    "peak_bytes",
)


@dataclass(frozen=True)
class NoisePoint(Record):
    """Gradient noise at one moment of a run, from several micro-batches at the same weights, before clipping."""

    at_samples: Count
    """Training samples of the run so far."""
    n_microbatches: Size
    microbatch_size: Size
    """Samples in each."""
    gradient_squared: float | None
    """Unbiased estimate of the squared norm of the true gradient; negative by chance, None where a gradient was not finite."""
    covariance_trace: float | None
    """The same of the trace of the covariance of single samples' gradients. Over the former: the noise scale, in samples."""

    @property
    def n_samples(self) -> int:
        """Samples drawn for it, which the search is charged for."""
        return self.n_microbatches * self.microbatch_size


@dataclass(frozen=True)
class TrialRecord(Record):
    """One trial, as one row of `SearchResult.trials`."""

    number: Count
    stage: str
    state: str
    """`complete`, `pruned`, `failed` or `running`."""
    reason: str
    global_batch_size: Size
    micro_batch_size: Size
    accumulation_steps: Size
    learning_rate: Positive
    seed: Count
    samples: Count
    """Training samples at its end, those of the run that it continues included."""
    val_loss: float | None
    best_val_loss: float | None
    seconds: Amount | None
    samples_per_s: Amount | None
    peak_bytes: Bytes | None
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    values: tuple[tuple[Count, float | None], ...] = ()
    """The learning curve: (samples, validation loss)."""
    end_samples: Count | None = None
    """Where the run was planned to end."""
    start_samples: Count = 0
    """Samples that it took over from the run that it continues; the search is charged for `samples - start_samples`."""
    continues: Count | None = None
    """Number of the trial that it went on from; the values of that trial stand at the head of `values`."""
    cause: str | None = None
    """Of a failed trial: `oom`, `killed`, `crashed`, `hung`, `error`, `no_report`, or `orphan` when the search itself was killed."""
    checkpoint: str | None = None
    """A checkpoint that a new trial can continue from; None when there is none (any more)."""
    noise: tuple[NoisePoint, ...] = ()
    """Gradient noise measured along this run itself; its samples are charged beside `samples`."""
    report_interval: Count = 0
    """Samples from one report to the next, at most."""
    device: str | None = None
    """The kind of device that it ran on, where a cluster has several; micro-batch, accumulation and seconds are those of this kind."""


@dataclass(frozen=True)
class SearchResult(Record):
    """The recommendation and everything that it rests on."""

    recommendation: Recommendation
    probe: ProbeResult | None
    records: tuple[TrialRecord, ...]
    spent: Spent
    stopped_by: str
    """`budget`, `n_trials`, `timeout`, `interrupted` or `converged`."""
    target: float | None
    limits: Limits
    study: str
    storage: str
    versions: dict[str, str] = field(default_factory=dict)
    goal: Goal = "loss"
    batch_answer: BatchAnswer | None = None
    """Which batch size is fastest, and what decides it."""
    probes: dict[str, ProbeResult] = field(default_factory=dict)
    """By kind of device, where a cluster has several; `probe` is the first of them."""

    @property
    def trials(self) -> pandas.DataFrame:
        """One row per trial; the extra parameters and metrics follow the fixed columns, then the device where there are several kinds."""
        import pandas

        rows = []
        for record in self.records:
            row = {name: getattr(record, name) for name in TRIAL_COLUMNS}
            row |= {name: value for name, value in (record.params | record.metrics).items() if name not in row}
            rows.append(row if not self.probes else {**row, "device": record.device})
        frame: pandas.DataFrame = pandas.DataFrame(rows, columns=None if rows else list(TRIAL_COLUMNS))
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; the trials stand under `trials`, one object each."""
        data = super().to_dict()
        data["trials"] = data.pop("records")
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` wrote."""
        if isinstance(data, Mapping) and "trials" in data:
            data = {**data, "records": data["trials"]}
        return super().from_dict(data)


@dataclass(frozen=True)
class Outlook(Record):
    """What is expected to fit one device."""

    device: str
    total_bytes: Bytes
    budget_bytes: int
    """For the allocator: the total without the context and the headroom."""
    micro_batch_size: Size | None
    """Largest size whose replay needs no allocator retry; None where not even one sample fits."""
    limited_by: LimitedBy
    reserved_bytes: Bytes | None
    """Predicted peak of the caching allocator at that size."""
    live_bytes: Bytes | None
    """Predicted peak of live tensors at that size."""
    free_bytes: int | None
    """What is then left of the total, headroom included."""
    memory_by_category: MemoryByCategory | None


@dataclass(frozen=True)
class PlanResult(Record):
    """What is expected to fit devices that are not here, and what that rests on."""

    outlooks: tuple[Outlook, ...]
    traced_on: DeviceInfo
    traced_sizes: tuple[Size, ...]
    eval_batch_size: str
    residual: float | None
    """Relative error of the replay at the traced size that it was not fitted to; None where there is none."""
    n_train_samples: Size
    rests_on: tuple[str, ...]
    """What each kind of figure rests on, and its known error."""
