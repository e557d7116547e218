"""Runs trials in the calling process, one at a time: for cheap, trusted functions such as a table or a formula."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...objectives.base import Trial
from ..core.errors import ObjectiveError, TrialPruned
from ..core.probe_results import Attempt, DeviceInfo, ProbeResult
from ..core.trials import TrialReport, TrialSpec, Verdict
from ..studies.model_files import write_model
from .base import Event, Finished, Lost, Pool

if TYPE_CHECKING:
    from ...objectives.loop import LoopObjective


class InlineEngine:
    """The calling process as the place where trials run; see `base.Engine`."""

    device_info = DeviceInfo("cpu", "the calling process")
    kinds: Mapping[str, DeviceInfo] = {}
    warnings = ()
    jobs = 1
    can_probe = False
    chooses_threads = False

    def __init__(self, objective: LoopObjective, *, batch_sizes: Sequence[int] = ()) -> None:
        """Take the user's function; `batch_sizes` are those that the search names, for the facts."""
        self._objective = objective
        self.facts = objective.describe(batch_sizes)

    def use_threads(self, threads: int) -> None:
        """Refuse: this process has the threads that it has."""
        raise AssertionError("threads of the calling process are not for bstune to choose")

    def run_probe(
        self,
        kind: str | None,
        *,
        timeout: float | None,
        seed: int,
        on_attempt: Callable[[Attempt], None],
        on_note: Callable[[str], None],
        max_batch: int | None = None,
    ) -> ProbeResult:
        """Refuse: a size that does not fit would end the calling process."""
        raise AssertionError("nothing is probed in the calling process")

    def share(
        self, probe: ProbeResult, *, seed: int, on_attempt: Callable[[Attempt], None]
    ) -> tuple[int, ProbeResult] | None:
        """Return None: trials run one after another."""
        return None

    def shares(self, folder: Path | None) -> bool:
        """Tell that any folder can be seen."""
        return True

    def make_pool(
        self, decide: Callable[[TrialReport], Verdict], probe: ProbeResult | None, probes: Mapping[str, ProbeResult]
    ) -> Pool:
        """Return who runs the trials."""
        return InlinePool(self._objective, decide)

    def close(self) -> None:
        """Do nothing: nothing was started."""


class InlinePool:
    """Runs a submitted trial within `events`; see `base.Pool`.

    There is no process to wait in while a report is answered, so reports go to a function and never come as events.
    """

    slots = 1
    places = False

    def __init__(self, objective: LoopObjective, decide: Callable[[TrialReport], Verdict]) -> None:
        """Run trials of the user's function; `decide` answers its reports."""
        self._objective = objective
        self._decide = decide
        self._waiting: list[TrialSpec] = []

    def submit(self, spec: TrialSpec) -> None:
        """Take a run; it starts when events are asked for."""
        self._waiting.append(spec)

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Run what was submitted and yield how it ended."""
        while self._waiting:
            yield self._run(self._waiting.pop(0))

    def _run(self, spec: TrialSpec) -> Event:
        judging_s = 0.0

        def clock() -> float:
            return time.perf_counter() - judging_s

        def decide(report: TrialReport) -> Verdict:
            nonlocal judging_s
            start_s = time.perf_counter()
            try:
                return self._decide(report)
            finally:
                judging_s += time.perf_counter() - start_s

        start_s = clock()
        trial = Trial(spec, device="cpu", send=decide, clock=clock, keep=write_model)
        try:
            self._objective.train(trial, spec)
        except TrialPruned:
            if trial.stopped_at is None:  # The user's own, without a verdict of ours.
                return _lost(
                    spec,
                    trial,
                    ObjectiveError("The function raised TrialPruned without being told to stop."),
                    clock() - start_s,
                )
        except (Exception, SystemExit) as error:
            return _lost(spec, trial, error, clock() - start_s)
        samples = trial.last_samples if trial.stopped_at is None else trial.stopped_at
        return Finished(spec.number, samples, clock() - start_s)

    def reply(self, number: int, verdict: Verdict) -> None:
        """Do nothing: a report was answered when it was made."""

    def cancel(self, number: int) -> None:
        """Forget a run that has not started."""
        self._waiting = [spec for spec in self._waiting if spec.number != number]

    def close(self) -> None:
        """Forget everything that has not started."""
        self._waiting.clear()


def _lost(spec: TrialSpec, trial: Trial, error: BaseException, seconds: float) -> Lost:
    ours = isinstance(error, ObjectiveError)
    return Lost(
        spec.number,
        "oom" if isinstance(error, MemoryError) else "error",
        str(error),
        trial.last_samples,
        seconds,
        error_type=type(error).__qualname__,
        traceback=None if ours else "".join(traceback.format_exception(error)),
    )
