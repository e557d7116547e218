"""The study that remembers a search: settings, probe and trials, written as they happen and read back exactly.

It is an ordinary Optuna study. Each trial carries the learning curve as intermediate values at `step = samples`; what
it was asked to do is in its user attributes, how it ended in one more of them, `result`, which is written just
before Optuna's own state. So a search that is killed at any moment leaves each trial finished or unfinished, never in
between: one with a `result` is finished, one without is an orphan, failed at the next start and charged for the
samples of its last report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..core.amounts import written_duration
from ..core.errors import BstuneError, StudyError
from ..core.probe_results import ProbeResult
from ..core.trial_record import ASKED, RESULT, TrialRecord, begun, reported
from ..core.trials import TrialReport, TrialSpec
from . import trial_writes
from .optuna_parameters import Axes
from .records import Records
from .spec_json import decode_plan, encode_spec
from .storage import Storage
from .trial_rows import StoredTrial, read_trials

SCHEMA = 1
"""Version of the attributes below; a study of a higher one belongs to a newer bstune."""
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""By version: what turns a study's attributes into those of the next version.

They are applied on reading; the writer stores the outcome.
"""


def stored_arguments(study: Study) -> dict[str, Any]:
    """Return the arguments of the last search of a study, by the names that `bstune.search` gives them."""
    if "plan" not in study.attributes:
        return {}
    plan = decode_plan(study.attributes["plan"])
    asked: dict[str, Any] = dict(study.attributes.get("asked", {}))
    if asked.pop("probe_given", False):
        asked["probe"] = study.probe
    space = {name: dimension.raw for name, dimension in plan.space.items()}
    arguments = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)} | {"space": space} | asked
    seconds = arguments.pop("budget_s")
    return arguments if seconds is None else {**arguments, "budget": written_duration(seconds)}


class Study(Records):
    """One study, mirrored in memory: its trials are read once and never again.

    Attributes:
        storage: Where it is kept.
        name: Its name.
        attributes: Its user attributes.
        orphans: Trials that `sweep` found cut off.
    """

    def __init__(self, storage: Storage, study_id: int, name: str) -> None:
        """Read a study that exists; use `find_study` or `make_study`."""
        super().__init__()
        self.storage = storage
        self.name = name
        self._id = study_id
        self._ids: dict[int, int] = {}
        """Optuna's ids of the trials that are running, by number."""
        self.orphans: list[TrialRecord] = []
        self.keeps_specs = False
        """Each trial carries its whole spec, so that another process can take it up while it runs."""
        with storage.guard():
            self._stored: dict[str, Any] = dict(storage.backend.get_study_user_attrs(study_id))
        self.attributes = upgraded(self._stored)

    @functools.cached_property
    def _trials(self) -> dict[int, StoredTrial]:
        """The trials as they were when they were first asked for."""
        with self.storage.guard():
            return read_trials(self.storage.backend, self._id)

    @functools.cached_property
    def _records(self) -> dict[int, TrialRecord]:
        """The trials that bstune made, as they are now."""
        with intact(self.name):
            return {
                number: record for number, trial in self._trials.items() if (record := read_record(trial)) is not None
            }

    @property
    def probe(self) -> ProbeResult | None:
        """The probe that is stored here."""
        data = self.attributes.get("probe")
        return None if data is None else ProbeResult.from_dict(data)

    @property
    def probes(self) -> dict[str, ProbeResult]:
        """The probes of the kinds of device of a cluster that has several; the first is also `probe`."""
        return {entry["device"]: ProbeResult.from_dict(entry["probe"]) for entry in self.attributes.get("probes", ())}

    def check(self) -> None:
        """Make sure that the storage is still the one that this search locked.

        Raises:
            StudyError: It is not.
        """
        self.storage.check()

    def set(self, **attributes: Any) -> None:
        """Store user attributes of the study; what is the same already is not written again."""
        with self.storage.guard():
            for key, value in attributes.items():
                plain = json.loads(json.dumps(value))
                if key not in self._stored or self._stored[key] != plain:
                    self.storage.backend.set_study_user_attr(self._id, key, plain)
                    self._stored[key] = plain
                self.attributes[key] = plain

    def sweep(self) -> list[TrialRecord]:
        """Bring to an end what a killed search left running, and return the orphans among it.

        Call it only as the one writer: whatever is still called running then runs nowhere.
        """
        self.orphans = []
        for number, record in list(self._records.items()):
            if record.state != "running":
                continue
            trial = self._trials[number]
            self._ids[number] = trial.id
            if "result" in trial.user_attrs:  # Killed between the two writes of `finish`.
                self.finish(_ended(trial))
                continue
            with self.storage.guard():
                self.storage.backend.set_trial_user_attr(trial.id, "orphan", True)
            said = f"the search was killed while it ran; its last report was at {record.samples} samples"
            self.finish(dataclasses.replace(record, state="failed", cause="orphan", reason=said))
            self.orphans.append(self._records[number])
        return self.orphans

    def adopt(self) -> dict[int, dict[str, Any]]:
        """Return the user attributes of the trials that run and can be taken up, by number; `sweep` the others.

        Their `spec` is what `spec_json.encode_spec` wrote.
        """
        running = {
            number: self._trials[number] for number, record in self._records.items() if record.state == "running"
        }
        lasting = {
            number: trial
            for number, trial in running.items()
            if "spec" in trial.user_attrs and "result" not in trial.user_attrs
        }
        records = {number: self._records.pop(number) for number in lasting}
        self.sweep()
        self._records.update(records)
        self._ids.update((number, trial.id) for number, trial in lasting.items())
        return {number: dict(trial.user_attrs) for number, trial in lasting.items()}

    def note(self, number: int, **attributes: Any) -> None:
        """Store user attributes of a trial that are no part of its record."""
        trial_id = self._ids[number]
        with self.storage.guard():
            trial_writes.write_trial(self.storage.backend, trial_id, attributes=attributes)

    def noted(self, name: str) -> dict[int, Any]:
        """Return what was noted under this name of trials when the study was read, by number."""
        return {number: trial.user_attrs[name] for number, trial in self._trials.items() if name in trial.user_attrs}

    def begin(self, spec: TrialSpec, axes: Axes, *, continues: int | None = None) -> TrialRecord:
        """Enter a run that starts now; the number in `spec` is replaced by the next of the study."""
        from optuna.trial import TrialState, create_trial

        parameters, distributions = axes.parameters(spec)
        record = begun(spec, None if continues is None else self._records[continues])
        asked = {**_asked(record), **({"spec": encode_spec(spec)} if self.keeps_specs else {})}
        earlier = {step: math.nan if loss is None else loss for step, loss in record.values}
        trial = create_trial(
            state=TrialState.RUNNING,
            params=parameters,
            distributions=distributions,
            user_attrs=asked,
            intermediate_values=earlier,
        )
        with self.storage.guard():
            trial_id, number = trial_writes.create_trial(self.storage.backend, self._id, trial)
        self._ids[number] = trial_id
        return self._enter(dataclasses.replace(record, number=number))

    def place(self, number: int, **placed: Any) -> TrialRecord:
        """Enter where a run has landed, and how its batch is split there."""
        with self.storage.guard():
            trial_writes.write_trial(self.storage.backend, self._ids[number], attributes=placed)
        return super().place(number, **placed)

    def report(self, report: TrialReport) -> TrialRecord:
        """Enter a report under the points that it is the first to reach, and return the trial so far."""
        before = self._records[report.number]
        after = reported(before, report)
        known = {step for step, _ in before.values}
        trial_id = self._ids[report.number]
        values = {step: report.val_loss for step, _ in after.values if step not in known}
        attributes: dict[str, Any] = {}
        if report.noise:  # Not only at the end: an orphan is charged for the samples that were drawn for it, too.
            attributes["noise"] = [point.to_dict() for point in after.noise]
        if report.samples != after.values[-1][0]:  # What an orphan is charged, where the curve does not say it.
            attributes["samples"] = report.samples
        with self.storage.guard():
            trial_writes.write_trial(self.storage.backend, trial_id, values, attributes)
        return self._enter(after)

    def finish(self, record: TrialRecord) -> None:
        """Enter how a run has ended."""
        from optuna.trial import TrialState

        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[record.state]
        trial_id = self._ids.pop(record.number)
        data = record.to_dict()
        value = (
            record.val_loss
            if state == TrialState.COMPLETE or (state == TrialState.PRUNED and record.val_loss is not None)
            else None
        )
        result = {name: data[name] for name in RESULT if data[name] not in (None, [])}
        with self.storage.guard():
            trial_writes.end_trial(self.storage.backend, trial_id, state, value, {"result": result})
        self._enter(record)


def read_record(trial: StoredTrial) -> TrialRecord | None:
    """Return one trial of Optuna's as a record; None for a trial that bstune did not make."""
    if "stage" not in trial.user_attrs:
        return None
    if trial.finished:
        return _ended(trial)
    asked = trial.user_attrs
    samples = max([asked.get("start_samples", 0), asked.get("samples", 0), *trial.intermediate_values])
    return _record(trial, {"state": "running", "reason": "", "samples": samples, "noise": asked.get("noise", [])})


def _asked(record: TrialRecord) -> dict[str, Any]:
    """Return what a trial was asked to do as its user attributes say it: what is not the default."""
    defaults = {item.name: item.default for item in dataclasses.fields(record)}
    asked = {name: value for name in ASKED if (value := getattr(record, name)) != defaults[name]}
    return {**asked, "params": dict(record.params)} if record.params else asked


def _ended(trial: StoredTrial) -> TrialRecord:
    return _record(trial, trial.user_attrs["result"])


def _record(trial: StoredTrial, result: Mapping[str, Any]) -> TrialRecord:
    asked = trial.user_attrs
    missing = {name: None for name in ("val_loss", "best_val_loss", "seconds", "samples_per_s", "peak_bytes")}
    try:
        record = TrialRecord.from_dict(
            missing
            | {name: asked[name] for name in ASKED if name in asked}
            | {name: result[name] for name in RESULT if name in result}
            | {
                "number": trial.number,
                "params": asked.get("params", {}),
                "values": sorted(trial.intermediate_values.items()),
            }
        )
    except BstuneError as error:
        raise ValueError(str(error)) from error
    if (
        min(record.global_batch_size, record.micro_batch_size, record.accumulation_steps) < 1
        or not record.learning_rate > 0
    ):
        raise ValueError(
            f"trial {record.number} trained at batch size {record.global_batch_size}, learning rate "
            f"{record.learning_rate}"
        )
    return record


def has_search(study: Study) -> bool:
    """Tell whether a search has begun in a study: a probe or a diagnosis alone may have made it."""
    return {"plan", "facts"} <= study.attributes.keys()


@contextlib.contextmanager
def intact(name: str) -> Iterator[None]:
    """Say in one sentence that what is stored of a study is not what bstune has written."""
    try:
        yield
    except BstuneError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise StudyError(
            f"What is stored of the study {name!r} cannot be read ({type(error).__name__}: {error}). Another program "
            "may have changed it. Use another name with --study, or restore a copy of the storage."
        ) from error


def upgraded(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's attributes as this version stores them; those of a newer one, and others, stay as they are."""
    current = dict(attributes)
    while isinstance(version := current.get("bstune_schema"), int) and version in UPGRADES:
        current = {**UPGRADES[version](current), "bstune_schema": version + 1}
    return current
