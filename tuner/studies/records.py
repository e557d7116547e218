"""The trials of a search as it goes on, in memory. A study is this, and writes down what happens before it counts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from ..core.trial_record import TrialRecord, begun, reported
from ..core.trials import TrialReport, TrialSpec
from .optuna_parameters import Axes


class Records:
    """The records of trials by number: what the loop of a search needs of a study. Nothing is stored."""

    def __init__(self, records: Iterable[TrialRecord] = ()) -> None:
        """Begin with the trials of an earlier search."""
        self._given = tuple(records)

    @functools.cached_property
    def _records(self) -> dict[int, TrialRecord]:
        """The trials as they are now."""
        return {record.number: record for record in self._given}

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """All trials, also those that run in another process, in the order of their numbers; for any thread."""
        now = dict(self._records)
        return tuple(now[number] for number in sorted(now))

    @property
    def finished(self) -> tuple[TrialRecord, ...]:
        """The trials that have ended."""
        return tuple(record for record in self.records if record.state != "running")

    @property
    def learned(self) -> bool:
        """Whether any trial has taught something."""
        return any(record.state in ("complete", "pruned") for record in self._records.values())

    def check(self) -> None:
        """Make sure that what is written still goes where it should."""

    def record(self, number: int) -> TrialRecord:
        """Return one trial."""
        return self._records[number]

    def begin(self, spec: TrialSpec, axes: Axes, *, continues: int | None = None) -> TrialRecord:
        """Enter a run that starts now; the number in `spec` is replaced by the next."""
        record = begun(spec, None if continues is None else self._records[continues])
        return self._enter(dataclasses.replace(record, number=max(self._records, default=-1) + 1))

    def place(self, number: int, **placed: Any) -> TrialRecord:
        """Enter where a run has landed, and how its batch is split there."""
        return self._enter(dataclasses.replace(self._records[number], **placed))

    def report(self, report: TrialReport) -> TrialRecord:
        """Enter a report under the points that it is the first to reach, and return the trial so far."""
        return self._enter(reported(self._records[report.number], report))

    def finish(self, record: TrialRecord) -> None:
        """Enter how a run has ended."""
        self._enter(record)

    def forget_checkpoint(self, number: int) -> None:
        """Note, for this call, that the checkpoint of a finished trial is no longer there."""
        self._enter(dataclasses.replace(self._records[number], checkpoint=None))

    def _enter(self, record: TrialRecord) -> TrialRecord:
        self._records[record.number] = record
        return record
