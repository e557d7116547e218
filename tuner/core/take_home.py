"""What users take home from a search: a setting at another batch size, the price of a ramp, a trained model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .record import Amount, Bytes, Count, Positive, Record, Size
from .results import Setting


@dataclass(frozen=True)
class Scaled(Record):
    """A recommended setting, moved to another batch size by a rule; nothing of it was run."""

    global_batch_size: Size
    """`micro_batch_size * accumulation_steps * world_size`, exactly."""
    micro_batch_size: Size
    accumulation_steps: Size
    world_size: Size
    learning_rate: Positive
    learning_rate_low: Positive | None
    """By the ends of the interval of `alpha`; None where it has none."""
    learning_rate_high: Positive | None
    rule: str
    """What moved the learning rate, with its source."""
    alpha: float
    """Double the batch, multiply the learning rate by 2**alpha."""
    alpha_low: float | None
    alpha_high: float | None
    valid_low: Size
    """Batch sizes for which the rule may be relied on: from here ..."""
    valid_high: Size
    """... to here: the largest that was measured, or the critical batch where that is known and larger."""
    betas: tuple[float, ...] | None = None
    eps: Positive | None = None
    weight_decay: Amount | None = None
    warmup_steps: Count | None = None
    """For as many samples as before."""
    params: dict[str, Any] = field(default_factory=dict)
    """The other parameters of the recommendation, as they were."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RampForecast(Record):
    """What a batch ramp is expected to save, beside the same schedule at its first batch size."""

    updates: Count
    updates_of_schedule: Count
    updates_saved: float
    """Share of the updates."""
    seconds: Amount | None
    """By the step-time line of a probe, without validation; None where no probe was given."""
    seconds_of_schedule: Amount | None
    seconds_saved: float | None
    """Share of the seconds; below 0 where a ramp takes longer."""
    stages: tuple[tuple[Count, Size], ...]
    """(samples, global batch size): where each batch size begins."""
    top_batch_size: Size
    top_micro_batch_size: Size
    top_accumulation_steps: Size
    peak_bytes: Bytes | None
    """At the top, by the memory line of a probe: that of the largest micro-batch, since accumulation adds none."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainResult(Record):
    """A model that was trained to the end of a full run and saved."""

    path: str
    """`torch.load(path, weights_only=True)["model"]` is its state_dict."""
    study: str
    setting: Setting
    micro_batch_size: Size
    accumulation_steps: Size
    seed: Count
    samples: Count
    val_loss: float | None
    """At the end."""
    expected_low: float | None
    """The study's 90 % prediction interval for one fresh full run."""
    expected_high: float | None
    seconds: Amount
    metrics: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
