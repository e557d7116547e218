"""Runs what the service hands out on this machine's engine, and carries reports there and verdicts back.

While the service is away a trial goes on: after some seconds its reports wait here, in order, and the verdict on them
counts when it comes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import BstuneError, ObjectiveError
from ..core.plain_text import one_line
from ..core.trials import TrialReport, TrialSpec
from ..engines.base import Finished, Lost, Pool, Reported
from ..studies.spec_json import decode_spec
from .link import AwayError, Link, RefusedError, study_path, trial_path

WAIT_S = 20.0
"""Of one question for a trial."""
HOLD_S = 10.0
"""So long a trial waits for the verdict of a service that is away, before it goes on without."""
POLL_S = 0.5
BEATS = 4
"""Signs of life within one lease."""


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A trial that the service has handed out."""

    id: str
    spec: TrialSpec
    lease_s: float


def assignment(trial: Mapping[str, Any], folder: Path | None) -> Assignment:
    """Return a trial out of an answer; checkpoints are in the folder, whatever the service calls them.

    Raises:
        BstuneError: The answer is no trial.
    """
    try:
        spec = decode_spec(trial)
        found = Assignment(str(trial["id"]), spec, float(trial["lease_s"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BstuneError(
            f"The service has sent something that is not a trial ({type(error).__name__}: {error})."
        ) from error
    resume = None if spec.resume_from is None or folder is None else folder / Path(spec.resume_from).name
    if resume is None or not resume.is_file():  # It is gone, or another's: from the beginning, then.
        resume = None
    start = 0 if resume is None else spec.start_samples
    to = None if folder is None or spec.checkpoint_to is None else str(folder / Path(spec.checkpoint_to).name)
    spec = dataclasses.replace(
        spec, resume_from=None if resume is None else str(resume), start_samples=start, checkpoint_to=to
    )
    return dataclasses.replace(found, spec=spec)


def report_body(client: str, report: TrialReport) -> dict[str, Any]:
    """Return a report as it travels."""
    return {
        "client_id": client,
        "samples": report.samples,
        "val_loss": _finite(report.val_loss),
        "seconds": report.seconds,
        "metrics": {name: _finite(value) for name, value in report.metrics.items()},
        "noise": [point.to_dict() for point in report.noise],
        "interval": report.interval,
    }


def finish_body(client: str, event: Finished | Lost) -> dict[str, Any]:
    """Return how a run has ended, as it travels."""
    common = {
        "client_id": client,
        "samples": event.samples,
        "seconds": event.seconds,
        "peak_bytes": event.peak_bytes,
    }
    if isinstance(event, Finished):
        return {**common, "checkpoint": event.checkpoint is not None}
    return {
        **common,
        "lost": event.cause,
        "message": _cut(event.message),
        "error_type": None if event.error_type is None else event.error_type[:200],
        "traceback": _cut(event.traceback),
        "output": _cut(event.output),
    }


def new_client_id(host: str) -> str:
    """Return a name for this process that no other one has."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in host).strip("-")[:40] or "worker"
    return f"{plain}-{secrets.token_hex(4)}"


class Relay:
    """Asks for trials of one study, and runs them one after another."""

    def __init__(
        self,
        link: Link,
        study: str,
        client: str,
        *,
        device: str,
        folder: Path | None,
        say: Callable[[str], None],
        tell: Callable[[str, TrialSpec, TrialReport | Finished | Lost | None], None] = lambda *_: None,
    ) -> None:
        """Run trials of a study for the service.

        Args:
            link: The service.
            study: Its study.
            client: What this process is called there.
            device: The kind of device here.
            folder: Where checkpoints are kept.
            say: Takes a line for people.
            tell: Hears of every step.
        """
        self._link = link
        self._study = study
        self._client = client
        self._device = device
        self._folder = folder
        self._say = say
        self._tell = tell

    def run(self, pool: Pool) -> str:
        """Run trials until the study has ended, and return by what; `drained` when it was told to stop.

        Raises:
            ObjectiveError: The study has failed: a mistake in the objective.
            RefusedError: The service takes no part in this study any more.
            AwayError: The service was away for too long.
        """
        while not self._link.stopped.is_set():
            body = {"client_id": self._client, "device": self._device, "wait_s": WAIT_S}
            try:
                answer = self._link.post(study_path(self._study, "/ask"), body, wait_s=WAIT_S)
            except AwayError:
                if self._link.stopped.is_set():
                    break
                raise
            if answer["state"] == "trial":
                self._train(pool, assignment(answer["trial"], self._folder))
            elif answer["state"] == "ended":
                return str(answer["stopped_by"])
            elif answer["state"] == "failed":
                raise ObjectiveError(f"The study {self._study} has failed: {one_line(answer['message'])}")
        return "drained"

    def _train(self, pool: Pool, given: Assignment) -> None:
        self._tell("start", given.spec, None)
        run = _RelayedRun(self._link, self._client, pool, given, self._tell)
        try:
            ended = run.to_its_end()
        except RefusedError as error:
            if error.status not in (404, 409, 410):
                raise
            self._say(f"Trial {given.spec.number} is given up: {error}")
            ended = None
        finally:
            with contextlib.suppress(KeyError):
                pool.cancel(given.spec.number)
        if ended is None and self._link.stopped.is_set():
            with contextlib.suppress(AwayError, RefusedError):
                self._link.post(trial_path(given.id, "release"), {"client_id": self._client}, patience_s=0.0)
            self._say(f"Trial {given.spec.number} is handed back.")


class _RelayedRun:
    """One trial, from its start to what is known of its end."""

    def __init__(
        self,
        link: Link,
        client: str,
        pool: Pool,
        given: Assignment,
        tell: Callable[[str, TrialSpec, TrialReport | Finished | Lost | None], None],
    ) -> None:
        self._link = link
        self._client = client
        self._pool = pool
        self._given = given
        self._tell = tell
        self._unsent: deque[TrialReport] = deque()
        self._beat_s = time.monotonic()
        self._next_try_s = 0.0

    def to_its_end(self) -> Finished | Lost | None:
        """Run it; None where it is to be handed back."""
        number = self._given.spec.number
        self._pool.submit(self._given.spec)
        while not self._link.stopped.is_set():
            for event in self._pool.events(POLL_S):
                if isinstance(event, Reported):
                    self._pool.reply(number, self._judged(event.report))
                elif isinstance(event, Finished | Lost):
                    self._tell("finish", self._given.spec, event)
                    return self._finish(event)
            if self._unsent:
                stopped = self._send_waiting(0.0)
                if stopped is not None:
                    return self._finish(Finished(number, stopped.samples, stopped.seconds))
            elif time.monotonic() - self._beat_s > self._given.lease_s / BEATS:
                self._beat()
        return None

    def _judged(self, report: TrialReport) -> Any:
        self._tell("report", self._given.spec, report)
        self._unsent.append(report)
        return "go" if self._send_waiting(HOLD_S) is None else "stop"

    def _send_waiting(self, patience_s: float) -> TrialReport | None:
        """Send what waits, in order; return the report at which the trial was told to stop, if it was."""
        if time.monotonic() < self._next_try_s:
            return None
        while self._unsent:
            report = self._unsent[0]
            try:
                answer = self._link.post(
                    trial_path(self._given.id, "report"), report_body(self._client, report), patience_s=patience_s
                )
            except AwayError:
                self._next_try_s = time.monotonic() + 2.0
                return None
            self._unsent.popleft()
            self._beat_s = time.monotonic()
            if answer["verdict"] == "stop":
                self._unsent.clear()
                return report
        return None

    def _finish(self, event: Finished | Lost) -> Finished | Lost | None:
        """Say how it has ended, after all that it has reported."""
        self._next_try_s = 0.0
        while self._unsent:
            report = self._unsent.popleft()
            answer = self._link.post(trial_path(self._given.id, "report"), report_body(self._client, report))
            if answer["verdict"] == "stop":
                event = Finished(event.number, report.samples, report.seconds)
                break
        self._link.post(trial_path(self._given.id, "finish"), finish_body(self._client, event))
        return event

    def _beat(self) -> None:
        self._beat_s = time.monotonic()
        with contextlib.suppress(AwayError):
            self._link.post(trial_path(self._given.id, "heartbeat"), {"client_id": self._client}, patience_s=0.0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cut(text: str | None) -> str:
    """Return the end of a text, as UTF-8 can carry it: there the error is."""
    return (text or "")[-15_000:].encode("utf-8", "replace").decode()
