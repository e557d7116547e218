"""One trial as it is remembered: what was asked, what was reached, and how a record grows with each report."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from .record import Amount, Bytes, Count, Positive, Record, Size
from .trials import NoisePoint, TrialReport, TrialSpec

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
    """Training samples at its end, with those of the run that it continues."""
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
    """Number of the trial that it went on from; the values of that trial come first in `values`."""
    cause: str | None = None
    """Of a failed trial: `oom`, `killed`, `crashed`, `hung`, `error`, `no_report` or `orphan`.

    `orphan` means that the search itself was killed.
    """
    checkpoint: str | None = None
    """A checkpoint that a new trial can continue from; None when there is none (any more)."""
    noise: tuple[NoisePoint, ...] = ()
    """Gradient noise measured along this run itself; its samples are charged beside `samples`."""
    report_interval: Count = 0
    """Samples from one report to the next, at most."""
    device: str | None = None
    """The kind of device that it ran on, where a cluster has several.

    Micro-batch, accumulation and seconds are those of this kind.
    """

    @property
    def diverged_at(self) -> int | None:
        """Samples at which its validation loss was not finite; None where that never was."""
        return next((samples for samples, loss in self.values if loss is None), None)


ASKED = (
    "stage",
    "seed",
    "global_batch_size",
    "micro_batch_size",
    "accumulation_steps",
    "learning_rate",
    "end_samples",
    "start_samples",
    "continues",
    "device",
)
"""What a record says of what was asked, besides its `number` and `params`."""
RESULT = tuple(item.name for item in fields(TrialRecord) if item.name not in {"number", "params", "values", *ASKED})
"""What a record says of what was reached, besides the curve, which is `values`."""


def begun(spec: TrialSpec, earlier: TrialRecord | None = None) -> TrialRecord:
    """Return the record of a run that begins now, and goes on from `earlier` if there is one."""
    values = () if earlier is None else earlier.values
    start = 0 if earlier is None else spec.start_samples
    return TrialRecord(
        number=spec.number,
        stage=spec.stage,
        state="running",
        reason="",
        global_batch_size=spec.global_batch_size,
        micro_batch_size=spec.micro_batch_size,
        accumulation_steps=spec.accumulation_steps,
        learning_rate=float(spec.learning_rate),
        seed=spec.seed,
        samples=max([start, *(samples for samples, _ in values)]),
        val_loss=None,
        best_val_loss=None,
        seconds=None,
        samples_per_s=None,
        peak_bytes=None,
        params=dict(spec.params),
        values=values,
        end_samples=spec.end_samples,
        start_samples=start,
        continues=None if earlier is None else earlier.number,
    )


def reported(record: TrialRecord, report: TrialReport) -> TrialRecord:
    """Return the record of a run after a report, which counts under the points that it is the first to reach."""
    known = {step: report.val_loss for step in report.points or (report.samples,)} | dict(record.values)
    return replace(
        record,
        values=tuple(sorted(known.items())),
        samples=max(report.samples, record.samples),
        metrics={**record.metrics, **report.metrics},
        seconds=report.seconds,
        noise=(*record.noise, *report.noise),
        report_interval=max(record.report_interval, report.interval),
    )
