"""What a search returns: frozen dataclasses whose names have their units, and which survive a trip through JSON.

Every result has `to_dict()`, `to_json()` and `from_dict()`. A number that is not finite becomes None when the
result is made, so a result always equals what is read back from its own JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .attributes import apply_setting, training_arguments
from .pictures import drawn
from .probe_results import ProbeResult
from .record import Amount, Bytes, Count, Positive, Record, Size
from .trial_record import TRIAL_COLUMNS, TrialRecord

if TYPE_CHECKING:
    import altair
    import pandas
    from typing_extensions import Self

Goal = Literal["loss", "time", "largest"]
Decider = Literal["memory", "hardware", "noise", "data set", "space"]
USUAL_BATCH = 32
"""What many frameworks begin with."""


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
class Comparison(Record):
    """The recommended setting beside one that people know."""

    name: str
    """`your present setting`, or `batch 32`."""
    setting: Candidate
    times_sooner: Amount | None
    """By what factor the recommended setting reaches the target sooner.

    None where no step time is known, or where the other one is not expected at the target within two full runs.
    """
    loss_ratio: Amount | None
    """Loss expected of a full run of the recommended setting, over that of this one; None unless both are above 0."""


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
    """Each kind of device, where a cluster has several.

    Micro-batch, seconds and peak above are for the first.
    """
    seconds_per_full_run: Amount | None = None
    full_runs_to_best: Amount | None = None
    """Full runs after which it reaches the lowest loss expected of any setting, along its curve; 1 where it is that."""
    curve_slope: Amount | None = None
    """Slope of -ln loss against ln samples near the end of good runs: what turns a gap in loss into time."""
    lowest_loss: Candidate | None = None
    """The lowest loss at equal samples; None where it is this setting."""
    lowest_loss_at_equal_seconds: Candidate | None = None
    """The lowest loss after the seconds of a full run of this setting; None where it is this setting."""
    frontier: tuple[Candidate, ...] = ()
    """Settings that no other one beats both in loss and in seconds of a full run, the fastest first."""
    compared: tuple[Comparison, ...] = ()
    """The user's present setting and batch 32, as far as they were run to the end and are not this setting."""
    larger: Comparison | None = None
    """The soonest setting of the next larger batch size that was tried; None where no larger one was."""

    def apply(self, module: Any, datamodule: Any = None) -> dict[str, Any]:
        """Set batch size and learning rate in a LightningModule and its data module.

        They are set where the objects have them: attributes and `hparams` called `batch_size`, and `learning_rate` or
        `lr`. A validation batch size is set where it has a name of its own (`eval_batch_size`, `val_batch_size`).

        Returns:
            What the Trainer needs: `Trainer(**recommendation.apply(module, datamodule))`.

        Raises:
            ArgumentError: There is no place for one of the two.
        """
        apply_setting(
            [module, datamodule],
            batch_size=self.micro_batch_size,
            learning_rate=self.learning_rate,
            eval_batch_size=self.eval_batch_size,
        )
        return {"accumulate_grad_batches": self.accumulation_steps}

    def to_training_arguments(self) -> dict[str, Any]:
        """Return the fields of Transformers' TrainingArguments: `TrainingArguments(..., **these)`.

        Other parameters of the space are among them under their own names.
        """
        fields = training_arguments(
            self.micro_batch_size, self.accumulation_steps, self.learning_rate, self.eval_batch_size
        )
        return {**self.params, **fields}

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return str(drawn("recommendation_html", self))


@dataclass(frozen=True)
class Spent(Record):
    """What the search trained, with confirmation and without the probe."""

    full_runs: Amount
    """Samples over those of a full run."""
    samples: Count
    seconds: Amount
    """As measured."""
    reference_runs: Amount = 0.0
    """What the budget counts: predicted seconds over those of a reference run."""
    predicted_seconds: Amount | None = None
    """By the step-time line; None where no step time is known."""


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
class BatchReach(Record):
    """What a batch size has needed to the loss that samples are counted to, with the best of its learning rates."""

    global_batch_size: Size
    samples: Amount
    reached: bool = True
    """Otherwise it needs more than this."""


@dataclass(frozen=True)
class BatchAnswer(Record):
    """Which batch size reaches a target first, from E(B) = E_min + S_min * B and the step time t(B) = a + c * B.

    What was not measured, or could not be told, is None. Every `low` and `high` is a 90 % interval; a `high` of None
    beside a `low` means that no upper end could be told.
    """

    source: Literal["trials", "noise scale"] | None = None
    """What the critical batch size is from.

    Either samples to target of trials, or gradient noise, which tends to be too low.
    """
    target: float | None = None
    """Validation loss that the samples were counted to.

    Above the search's target where too few batch sizes have come down to that.
    """
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
    """None beside a `low`: samples to the target did not clearly grow with the batch.

    Then only the prior bounds it from above.
    """
    noise_scale: float | None = None
    """tr(Sigma) / |G|^2 along the measured runs, in samples.

    None where noise dominates: then only a lower end is known.
    """
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
    reaches: tuple[BatchReach, ...] = ()
    """What E(B) was fitted to."""
    step_times: tuple[tuple[Size, Amount], ...] = ()
    """Batch sizes that are searched, ascending, with the seconds of an optimizer step; accumulated beyond memory."""


@dataclass(frozen=True)
class SearchResult(Record):
    """The recommendation and all the evidence for it."""

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
    model_path: str | None = None
    """Where the best model of the confirmation runs is kept, if that was asked for (`save_model`)."""
    importance: dict[str, Amount] | None = None
    """By name of a dimension, its share of how the loss that is expected of a full run varies; 1 together.

    The largest first, `batch_size` and `learning_rate` among them. Shares are first-order Sobol indices of the
    surrogate's mean, over their sum: at equal samples, over the batch sizes and learning rates from the least to the
    most that were run and over all of the other dimensions, as far as one dimension explains the (compressed) loss
    without the others. None where that cannot be told; `no_importance` says why.
    """
    no_importance: str | None = None
    target_source: str | None = None
    """Where the target is from: the user, the present setting, or the lowest loss that is expected of any setting."""

    @property
    def trials(self) -> pandas.DataFrame:
        """One row per trial: fixed columns, extra parameters, metrics, and the device if there are several kinds."""
        import pandas

        rows = []
        for record in self.records:
            row = {name: getattr(record, name) for name in TRIAL_COLUMNS}
            row |= {name: value for name, value in (record.params | record.metrics).items() if name not in row}
            rows.append(row if not self.probes else {**row, "device": record.device})
        frame: pandas.DataFrame = pandas.DataFrame(rows, columns=None if rows else list(TRIAL_COLUMNS))
        return frame

    def plot_landscape(self) -> altair.LayerChart:
        """Return batch size by learning rate, with the loss as colour; needs the extra `report`."""
        return drawn("plot_landscape", self)  # type: ignore[no-any-return]

    def plot_curves(self) -> altair.HConcatChart:
        """Return the learning curves by samples and by seconds; needs the extra `report`."""
        return drawn("plot_curves", self)  # type: ignore[no-any-return]

    def plot_frontier(self) -> altair.LayerChart:
        """Return loss against seconds of a full run, with the settings that nothing beats; needs the extra `report`."""
        return drawn("plot_frontier", self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        """Return the answer as one line; `to_json()` has all of it."""
        best, n = self.recommendation, len(self.records)
        setting = f"batch {best.global_batch_size}, learning rate {best.learning_rate:.3g}"
        return f"<SearchResult: {setting}, {'' if best.verified else 'not '}verified, {n} trials>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return str(drawn("search_html", self))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; the trials are under `trials`, one object each."""
        data = super().to_dict()
        data["trials"] = data.pop("records")
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` wrote."""
        if isinstance(data, Mapping) and "trials" in data:
            data = {**data, "records": data["trials"]}
        return super().from_dict(data)
