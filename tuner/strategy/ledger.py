"""The books of a search: every run with its curve, and what it was charged.

Rebuilt from the finished records when a search resumes, so nothing here may depend on anything but those records and
on what is running now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.results import Setting
from ..core.specs import Proposal
from ..core.trial_record import TrialRecord
from ..core.trials import NoisePoint, TrialReport

Key = tuple[object, ...]

FAULTS = frozenset({"error", "no_report"})
"""Why a run failed, where it is by a fault of the code that trains."""
LOST = frozenset({"orphan", "killed", "crashed", "hung"})
"""Why a run failed, where it is through no fault of its setting."""
RETRIES = 2
"""How often such a run is started again."""
LATE = 1.5
"""A value at more than so many times the samples that were wanted says nothing of that point."""
STEP_OCTAVES = 2.0
"""A batch size is tried once one within so many octaves was: loss is smooth over batch, and near ones are alike."""


def key_of(setting: Setting) -> Key:
    """Return what tells two settings apart; the rate has 12 digits, so a trip through a database changes nothing."""
    return (setting.global_batch_size, f"{setting.learning_rate:.12g}", *key_of_params(setting.params))


def key_of_params(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the part of a key that is of the extra parameters."""
    return tuple(f"{name}={value!r}" for name, value in sorted(params.items()))


@dataclass
class Run:
    """One trial, finished or running."""

    number: int
    asked: Proposal
    """Of a run that has ended without the points, and without what it might have drawn to measure noise."""
    state: str = "running"
    samples: int = 0
    """Where it is, or where it ended."""
    granted: int = 0
    """How far it may go before it asks again; what the budget holds back for it."""
    values: dict[int, float] = field(default_factory=dict)
    """Validation loss by samples, ascending; not a number where it was not finite."""
    cause: str | None = None
    checkpoint: str | None = None
    seconds: float | None = None
    record: TrialRecord | None = None
    noise: tuple[NoisePoint, ...] = ()
    """Gradient noise measured along it."""
    interval: int = 0
    """Samples from one report to the next, at most."""
    overshoot: int = 0
    """Samples by which it passed the last point asked for, before it was stopped there."""
    key: Key = ()

    def __post_init__(self) -> None:
        """Derive the key."""
        self.key = key_of(self.setting)

    @classmethod
    def of(cls, record: TrialRecord, asked: Proposal) -> Run:
        """Return the run of a trial that has ended."""
        run = cls(
            number=record.number,
            asked=asked,
            state=record.state,
            samples=record.samples,
            values={samples: math.nan if value is None else value for samples, value in sorted(record.values)},
            cause=record.cause,
            checkpoint=record.checkpoint,
            seconds=record.seconds,
            record=record,
            noise=record.noise,
            interval=record.report_interval,
        )
        if run.state == "pruned" and run.values:
            run.overshoot = max(0, run.samples - max(run.values))
        return run

    @property
    def stage(self) -> str:
        """`anchor`, `search` or `confirm`."""
        return self.asked.stage

    @property
    def setting(self) -> Setting:
        """What it trains with."""
        return self.asked.setting

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.asked.seed

    @property
    def end_samples(self) -> int:
        """Where it was planned to end."""
        return self.asked.end_samples

    @property
    def start_samples(self) -> int:
        """Samples that it took over from the run that it continues."""
        return self.asked.start_samples

    @property
    def continues(self) -> int | None:
        """Number of the trial that it goes on from."""
        return self.asked.continues

    @property
    def noise_granted(self) -> int:
        """Samples that it may draw to measure gradient noise; what the budget holds back for that while it runs."""
        return self.asked.noise_samples

    @property
    def noise_samples(self) -> int:
        """Samples drawn to measure gradient noise."""
        return sum(point.n_samples for point in self.noise)

    @property
    def charged(self) -> int:
        """Samples that this trial itself trained, and drew to measure gradient noise."""
        return max(0, self.samples - self.start_samples) + self.noise_samples

    @property
    def committed(self) -> int:
        """Samples charged, or held back while it runs."""
        if self.state != "running":
            return self.charged
        return max(0, max(self.samples, self.granted) - self.start_samples) + max(
            self.noise_samples, self.noise_granted
        )

    @property
    def finite(self) -> bool:
        """Whether it has a value and every value is finite."""
        return bool(self.values) and all(math.isfinite(value) for value in self.values.values())

    @property
    def diverged(self) -> bool:
        """Whether a validation loss was not finite."""
        return any(not math.isfinite(value) for value in self.values.values())

    @property
    def last(self) -> float | None:
        """The last validation loss, or None."""
        return self.values[max(self.values)] if self.values else None

    def at(self, point: int) -> float | None:
        """Return the first value at or soon after `point` (at the end, if that comes first); None if there is none."""
        wanted = min(point, self.end_samples)
        found = next((samples for samples in sorted(self.values) if samples >= wanted), math.inf)
        return self.values[int(found)] if found <= LATE * wanted else None

    @property
    def complete(self) -> bool:
        """Whether it reached its planned end with a finite value there."""
        value = self.at(self.end_samples)
        return (
            self.state in ("complete", "running")
            and value is not None
            and math.isfinite(value)
            and self.samples >= self.end_samples
        )


class Ledger:
    """All runs of a study, in the order of their numbers."""

    def __init__(self, records: Sequence[TrialRecord] = ()) -> None:
        """Enter the finished records of an earlier call."""
        self._runs: dict[int, Run] = {}
        self._by_key: dict[Key, dict[int, Run]] = {}
        self._in_order: list[Run] | None = None
        self._running: dict[int, Run] = {}
        self._charged_of_ended = 0
        self.version = 0
        """Grows with every entry."""
        for record in records:
            self.finish(record)

    def __iter__(self) -> Iterator[Run]:
        """Iterate in the order of the numbers, so that the order of arrival changes nothing."""
        if self._in_order is None:
            self._in_order = [self._runs[number] for number in sorted(self._runs)]
        return iter(self._in_order)

    def near_tried(self) -> Callable[[int], bool]:
        """Return what tells whether a batch size lies within two octaves of one that was tried."""
        tried = {run.setting.global_batch_size for run in self}
        return lambda batch: any(abs(math.log2(batch / other)) <= STEP_OCTAVES + 1e-9 for other in tried)

    def _enter(self, run: Run) -> None:
        before = self._runs.get(run.number)
        if before is not None and before.state != "running":
            self._charged_of_ended -= before.charged
        self._running.pop(run.number, None)
        if run.state == "running":
            self._running[run.number] = run
        else:
            self._charged_of_ended += run.charged
        self._runs[run.number] = run
        self._by_key.setdefault(run.key, {})[run.number] = run
        self._in_order = None

    def __len__(self) -> int:
        """Return how many trials there are."""
        return len(self._runs)

    def __getitem__(self, number: int) -> Run:
        """Return the run of a trial."""
        return self._runs[number]

    def start(self, number: int, proposal: Proposal, granted: int) -> None:
        """Enter a run that starts now; a continued one brings its earlier values along."""
        self.version += 1
        values = {} if proposal.continues is None else dict(self._runs[proposal.continues].values)
        self._enter(Run(number, proposal, samples=proposal.start_samples, granted=granted, values=values))

    def adopt(self, record: TrialRecord) -> Run:
        """Enter what a running trial had reported before this ledger was made."""
        self.version += 1
        run = self._runs[record.number]
        run.values.update((samples, math.nan if loss is None else loss) for samples, loss in record.values)
        run.samples = max(run.samples, record.samples)
        run.noise, run.interval = record.noise, record.report_interval
        return run

    def report(self, report: TrialReport) -> Run:
        """Enter a report of a running trial, under the wanted points that it is the first to reach."""
        self.version += 1
        run = self._runs[report.number]
        for samples in report.points or (report.samples,):
            run.values.setdefault(samples, float(report.val_loss))
        run.samples = max(run.samples, report.samples)
        run.noise += report.noise
        run.interval = max(run.interval, report.interval)
        return run

    def finish(self, record: TrialRecord) -> None:
        """Replace what was known of a trial by its final record."""
        self.version += 1
        before = self._runs.get(record.number)
        asked = Proposal.of(record)
        if before is not None and not record.end_samples:
            asked = replace(asked, end_samples=before.end_samples)
        run = Run.of(record, asked)
        if record.state == "failed" and not run.values and before is not None:
            run.values = dict(before.values)
        self._enter(run)

    @property
    def running(self) -> list[Run]:
        """The runs that have not ended."""
        return [self._running[number] for number in sorted(self._running)]

    @property
    def charged(self) -> int:
        """Samples trained so far."""
        return self._charged_of_ended + sum(run.charged for run in self._running.values())

    @property
    def committed(self) -> int:
        """Samples trained or held back for what runs."""
        return self._charged_of_ended + sum(run.committed for run in self._running.values())

    def of(self, key: Key, seed: int | None = None) -> list[Run]:
        """Return the runs of one setting, on one seed if given."""
        runs = self._by_key.get(key, {})
        return [runs[number] for number in sorted(runs) if seed is None or runs[number].seed == seed]

    def superseded(self) -> set[int]:
        """Return the numbers of trials that another one has continued and overtaken."""
        return {
            run.continues
            for run in self
            if run.continues is not None and run.samples >= self._runs[run.continues].samples
        }

    def curves(self, seed: int) -> list[Run]:
        """Return the runs on `seed` that say something: those with values, the continued ones only once."""
        old = self.superseded()
        return [
            run
            for run in self
            if run.seed == seed
            and run.values
            and run.number not in old
            and run.cause not in ("oom", "killed", "hung", "error")
        ]
