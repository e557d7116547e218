"""Runs trials in worker processes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..core.probe_results import Attempt, DeviceInfo, ProbeResult
from ..core.trials import TrialReport, TrialSpec, Verdict
from ..workers import messages
from ..workers.fork_server import Host
from ..workers.template import Died, Worker
from .base import Event, Finished, LossCause, Lost, Pool, Reported

_DEVICE_LOST = (
    "gpu is lost",
    "device is lost",
    "no cuda-capable device",
    "devices are busy or unavailable",
    "device(s) is/are busy or unavailable",
    "uncorrectable ecc",
    "unspecified launch failure",
    "hardware stack error",
    "unknown error",
    "driver shutting down",
    "system not yet initialized",
)
"""What CUDA says when the card, its driver or its memory fails, whatever the code did."""


def device_lost(message: str) -> bool:
    """Tell whether an error is that of a card that fails, not of the code that used it."""
    text = message.lower()
    return "cuda" in text and any(saying in text for saying in _DEVICE_LOST)


class LocalEngine(Host):
    """Worker processes on this machine as the place where trials run; see `base.Engine`."""

    kinds: Mapping[str, DeviceInfo] = {}
    can_probe = True

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
        """Probe the objective."""
        from ..probing.run import run_probe

        return run_probe(
            self,
            max_batch=max_batch,
            timeout=timeout,
            seed=seed,
            on_attempt=on_attempt,
            on_note=on_note,
            for_search=True,
        )

    def share(
        self, probe: ProbeResult, *, seed: int, on_attempt: Callable[[Attempt], None]
    ) -> tuple[int, ProbeResult] | None:
        """Share this machine among as many trials as have cores and memory."""
        from .sharing import share

        return share(self, probe, seed=seed, on_attempt=on_attempt)

    def shares(self, folder: Path | None) -> bool:
        """Tell that any folder can be seen."""
        return True

    def make_pool(
        self, decide: Callable[[TrialReport], Verdict], probe: ProbeResult | None, probes: Mapping[str, ProbeResult]
    ) -> Pool:
        """Return who runs the trials."""
        assert probe is not None
        return LocalPool(self, slots=self.jobs, fence_bytes=probe.usable_bytes)


class LocalPool:
    """Runs up to `slots` trials side by side, each in a fresh process; see `base.Pool`."""

    places = False

    def __init__(self, host: Host, *, slots: int = 1, fence_bytes: int | None = None) -> None:
        """Run trials of the host's objective; `fence_bytes` bounds what one of them may take before it fails."""
        self.slots = slots
        self._host = host
        self._fence_bytes = fence_bytes
        self._running: dict[int, Worker] = {}
        self._last_samples: dict[int, int] = {}

    def submit(self, spec: TrialSpec) -> None:
        """Start a run in a free slot."""
        assert len(self._running) < self.slots, "no free slot"
        self._running[spec.number] = self._host.start(messages.Train(spec), fence_bytes=self._fence_bytes)
        self._last_samples[spec.number] = spec.start_samples

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Yield what has happened, waiting at most this long for the first."""
        numbers = {id(worker): number for number, worker in self._running.items()}
        for worker in self._host.news(list(self._running.values()), timeout_s):
            number = numbers[id(worker)]
            if number in self._running:  # An event before this one may have led to its end.
                yield self._event(number, worker)

    def _event(self, number: int, worker: Worker) -> Event:
        answer = worker.take()
        if isinstance(answer, TrialReport):
            self._last_samples[number] = answer.samples
            return Reported(answer)
        event = self._last_event(number, worker, answer)
        self.cancel(number)
        return event

    def _last_event(self, number: int, worker: Worker, answer: messages.Trained | messages.Failure | Died) -> Event:
        if isinstance(answer, messages.Trained):
            return Finished(number, answer.samples, answer.seconds, answer.peak_bytes, answer.checkpoint)
        samples, seconds = self._last_samples[number], time.monotonic() - worker.started_s
        if isinstance(answer, Died):
            # The kernel kills what takes too much memory with SIGKILL, and nobody else here does.
            cause: LossCause = "killed" if answer.exit_code == -9 else "crashed"
            return Lost(number, cause, answer.text, samples, seconds, output=worker.tail())
        cause = "oom" if answer.outcome == "oom" else "error"
        if cause == "error" and self._host.device.startswith("cuda") and device_lost(answer.message):
            self._host.check_device()  # Raises where no further trial could run.
            cause = "crashed"
        return Lost(
            number,
            cause,
            answer.message,
            max(samples, answer.samples),
            answer.seconds or seconds,
            error_type=answer.error_type,
            traceback=None if answer.ours else answer.traceback,
            output=worker.tail(),
        )

    def reply(self, number: int, verdict: Verdict) -> None:
        """Let a reporting run go on, or stop it."""
        self._running[number].reply(verdict)

    def cancel(self, number: int) -> None:
        """End a run at once; it has no more events."""
        self._running.pop(number).end()

    def close(self) -> None:
        """End everything that runs."""
        for number in tuple(self._running):
            self.cancel(number)
