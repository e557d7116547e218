"""A study of the service as a training script sees it: it asks for trials and trains them itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from ...objectives.base import Trial
from ..core.errors import BstuneError, ObjectiveError
from ..core.plain_text import one_line
from ..core.results import SearchResult
from ..core.trials import TrialReport, Verdict
from ..engines.base import Finished, Lost
from .link import Link, RefusedError, study_path, trial_path
from .relay import BEATS, WAIT_S, Assignment, assignment, finish_body, report_body


class RemoteStudy:
    """A study that a service leads.

    Attributes:
        name: Its name at the service.
        learned: What another study has found of the same model, where this one began: `study`, `batch_size`,
            `learning_rate`; None: nothing.
    """

    def __init__(
        self, link: Link, name: str, client: str, device: str, *, learned: dict[str, Any] | None = None
    ) -> None:
        """Take part in a study; use `bstune.connect`."""
        self.name = name
        self.learned = learned
        self._link = link
        self._client = client
        self._device = device

    def trials(self) -> Iterator[Trial]:
        """Yield trials to train until the search has ended.

        The body of the loop trains the trial. `trial.report` raises `bstune.TrialPruned` when it is to stop: catch it
        within the body, and go on with the loop. A body that raises anything else hands its trial back.

        Raises:
            ObjectiveError: The study has failed.
            AwayError: The service was away for too long.
        """
        while True:
            body = {"client_id": self._client, "device": self._device, "wait_s": WAIT_S}
            answer = self._link.post(study_path(self.name, "/ask"), body, wait_s=WAIT_S)
            if answer["state"] == "trial":
                yield from self._one(assignment(answer["trial"], None))
            elif answer["state"] == "ended":
                return
            elif answer["state"] == "failed":
                raise ObjectiveError(f"The study {self.name} has failed: {one_line(answer['message'])}")

    def _one(self, given: Assignment) -> Iterator[Trial]:
        start_s = time.monotonic()
        refused: list[RefusedError] = []

        def send(report: TrialReport) -> Verdict:
            try:
                answer = self._link.post(trial_path(given.id, "report"), report_body(self._client, report))
            except RefusedError as error:
                if error.status not in (404, 409, 410):
                    raise
                refused.append(error)  # Another client has it by now: this run is of no use.
                return "stop"
            verdict: Verdict = answer["verdict"]
            return verdict

        trial = Trial(given.spec, device=self._device, send=send, clock=time.monotonic)
        with self._alive(given):
            try:
                yield trial
            except GeneratorExit:
                with contextlib.suppress(BstuneError):
                    self._link.post(trial_path(given.id, "release"), {"client_id": self._client}, patience_s=0.0)
                raise
        if refused:
            return
        samples = trial.last_samples if trial.stopped_at is None else trial.stopped_at
        event: Finished | Lost = Finished(given.spec.number, samples, time.monotonic() - start_s)
        if trial.n_reports == 0:
            event = Lost(given.spec.number, "no_report", "the trial ended without a report")
        with contextlib.suppress(RefusedError):
            self._link.post(trial_path(given.id, "finish"), finish_body(self._client, event))

    @contextlib.contextmanager
    def _alive(self, given: Assignment) -> Iterator[None]:
        """Say now and then that this client is there, also while the body of the loop trains."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(given.lease_s / BEATS):
                with contextlib.suppress(BstuneError):
                    self._link.post(trial_path(given.id, "heartbeat"), {"client_id": self._client}, patience_s=0.0)

        thread = threading.Thread(target=beat, name="bstune-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def result(self) -> SearchResult:
        """Return the best so far, with the evidence for it.

        Raises:
            RefusedError: Nothing was learned yet.
            AwayError: The service is away.
        """
        return result_of(self._link, self.name)

    def close(self) -> None:
        """Close the connection."""
        self._link.close()


def result_of(link: Link, study: str) -> SearchResult:
    """Return what the service recommends in a study.

    Raises:
        BstuneError: Nothing was learned yet, or the service is away.
    """
    return SearchResult.from_dict(link.get(study_path(study, "/recommendation")))
