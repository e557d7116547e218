"""What a probe and a plan return: sizes, memory and speed; records as in `results`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import BstuneError
from .pictures import drawn
from .record import Amount, Bytes, Count, Positive, Record, Seconds, Size, Spread, StepSeconds

if TYPE_CHECKING:
    import altair
    from typing_extensions import Self

Outcome = Literal["ok", "oom", "limit", "error"]
LimitedBy = Literal["memory", "dataset", "max_batch", "plateau", "timeout"]
Proof = Literal["bracket", "model", "cap", "noise"]
LEAST_S = 1e-12
"""No step takes less."""


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
    """One size that was tried, in a separate process."""

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
    """The parts of the peak memory at the answer; None where a part could not be measured on its own."""

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
    """What the data loader costs a training step, near the size where throughput stops rising (`knee_batch_size`)."""

    wait_share: Amount
    """Share of a step that is spent waiting for its batch."""
    samples_per_s_without: Positive
    """Throughput on a batch that is already loaded."""
    bound: bool
    """The loader slows training down: more than 10 % waiting, and less than 90 % of the rate without it."""

    @property
    def wait_s_per_sample(self) -> float:
        """Seconds that training waits for a sample.

        Example:
            >>> Loader(0.5, 1000.0, bound=True).wait_s_per_sample
            0.001
        """
        if self.wait_share >= 1:
            return math.inf
        return self.wait_share / (1 - self.wait_share) / self.samples_per_s_without


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
                f"StepTimeLine: expected a step to take time, found a_s={line.a_s}, "
                f"c_s_per_sample={line.c_s_per_sample}."
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
    """Smallest size that was timed at 95 % or more of the best throughput: beyond it, size hardly helps."""
    loader: Loader | None = None
    """None where the user owns the loop, so that the wait for batches cannot be seen."""
    validation_s_per_sample: Amount | None = None
    """Seconds of validation for each sample of the validation data, at `eval_batch_size`; None where the user or a
    framework owns the loop, and in results of older versions.
    """
    validation_s: Amount | None = None
    """Seconds of a validation of the user's own loop, or of a framework's: from a step to the report after it; None for
    other objectives, and where it was not seen.
    """
    start_s: Amount | None = None
    """Seconds until a run begins to train, which each takes once: a program starts, data is loaded, a model is built.
    None in results of older versions, and where an epoch of a command takes so long that it was not timed.
    """
    cached: bool = False
    """The result is a stored one, whose size was run once more now."""
    longest: Size = 1
    """What the longest sample has of what sizes count, where that is tokens: no micro-batch is smaller."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables with which this answer is right; export them where you train."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The arguments that the answer depends on, as the probe was called."""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def cut_short(self) -> bool:
        """Whether larger sizes were not tried and may fit: none was of use (`max_batch`), or the time was over.

        Throughput that no longer rises (`plateau`) ends a probe as well, and larger sizes are then not faster.
        """
        return self.limited_by in ("max_batch", "timeout")

    def plot(self) -> altair.HConcatChart:
        """Return peak memory against the budget, and throughput, as charts side by side; needs the extra `report`."""
        return drawn("plot_probe", self)  # type: ignore[no-any-return]

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return str(drawn("probe_html", self))


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
    """What is expected to fit devices that are not here, and the evidence for it."""

    outlooks: tuple[Outlook, ...]
    traced_on: DeviceInfo
    traced_sizes: tuple[Size, ...]
    eval_batch_size: str
    residual: float | None
    """Relative error of the replay at the traced size that it was not fitted to; None where there is none."""
    n_train_samples: Size
    rests_on: tuple[str, ...]
    """Where each kind of figure comes from, and its known error."""
