"""A study that tests write trials into, and those trials."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.core.trials import TrialReport, TrialSpec
from bstune.tuner.studies import trial_writes
from bstune.tuner.studies.catalog import (
    find_study,
    make_study,
)
from bstune.tuner.studies.optuna_parameters import Axes
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.studies.study import Study

AXES = Axes((4, 256), (1e-4, 1.0), {})


def spec(**changes: Any) -> TrialSpec:
    """A run of 640 samples at batch 64."""
    values: dict[str, Any] = {
        "number": -1,
        "stage": "search",
        "global_batch_size": 64,
        "micro_batch_size": 32,
        "accumulation_steps": 2,
        "learning_rate": 0.1 / 3,
        "seed": 0,
        "end_samples": 640,
        "points": (64, 320, 640),
    }
    return TrialSpec(**(values | changes))


def report(number: int, points: tuple[int, ...], loss: float, samples: int | None = None) -> TrialReport:
    """A report as a worker sends it."""
    return TrialReport(number, points, samples or max(points), loss, {"accuracy": 0.5}, 1.5)


def finished(record: TrialRecord, **changes: Any) -> TrialRecord:
    """The record of a run that came to its end."""
    loss = record.values[-1][1] if record.values else None
    return dataclasses.replace(
        record, **({"state": "complete", "reason": "", "val_loss": loss, "seconds": 2.0} | changes)
    )


def run_one(study: Study, **changes: Any) -> TrialRecord:
    """Run one trial from its beginning to its end."""
    record = study.begin(spec(**changes), AXES)
    for point in (64, 320, 640):
        record = study.report(report(record.number, (point,), 1 / point))
    record = finished(record)
    study.finish(record)
    return record


@contextlib.contextmanager
def opened(url: str, name: str = "digits") -> Iterator[Study]:
    """The study of this name, open for writing."""
    with open_storage(url) as storage:
        yield find_study(storage, name) or make_study(storage, name)


def killed_between_the_writes(backend: Any, trial_id: int, state: Any, value: Any, attributes: Any) -> None:
    """Store the result of a trial and no more, as a process does that is killed then, on storages of two writes."""
    del state, value
    trial_writes.write_trial(backend, trial_id, attributes=attributes)
    raise SystemExit
