"""What a step took: peak memory and time, read inside the process that took it.

On CPU a byte counts when it is resident and not a shared file page: the peak of the process (VmHWM less RssFile) and of
its loader workers. On CUDA it counts when the caching allocator has reserved it, plus the context and what grows beside
both: kernels that are loaded when they are first used, and what libraries take for themselves.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from .cuda import open_context
from .run_clock import RunClock

STATUS = Path("/proc/self/status")
RANKS: set[int] = set()
"""Processes below this one that train with it: each counts with its own peak, as this one does."""
MOST_BESIDE_BYTES = 1 << 30
"""More than this beside context and allocator counts as another process's.

Assumed: loaded kernels take some 100 MiB.
"""


@dataclass(frozen=True)
class Reading:
    """What the meter of one process saw, from the beginning of its work to the end."""

    peak_bytes: int | None
    start_bytes: int
    """In use before the user's code began: the interpreter and its libraries on CPU, the context on CUDA."""
    phase: str
    steps: int
    step_s: tuple[float, ...]
    """Seconds of each optimizer step."""
    timed_step_s: tuple[float, ...] = ()
    """Those of the steps that were run to be timed."""
    phase_peaks: dict[str, int] = field(default_factory=dict)
    """Highest peak until the end of each phase."""
    parameters_bytes: int | None = None
    gradients_bytes: int | None = None
    optimizer_state_bytes: int | None = None
    alloc_retries: int = 0
    waiting_counts: bool = True
    """Whether what the timed steps waited for a core is in their seconds."""


def _status_bytes(*names: str, status: Path = STATUS) -> dict[str, int]:
    values = dict.fromkeys(names, 0)
    for line in status.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in values:
            values[name] = int(rest.split()[0]) * 1024
    return values


def reset_peak_rss() -> None:
    """Set the kernel's record of this process's peak resident memory back to what is resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # Not Linux, or forbidden: the peak then includes what was resident before.
        return


def peak_rss_bytes(status: Path = STATUS) -> int:
    """Return the peak resident memory of this process since the last reset, without shared file pages."""
    if status.exists():
        rows = _status_bytes("VmHWM", "RssFile", status=status)
        return rows["VmHWM"] - rows["RssFile"]
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def data_segment_bytes() -> int:
    """Return the private writable memory of this process, touched or not: what RLIMIT_DATA counts."""
    return _status_bytes("VmData")["VmData"] if STATUS.exists() else 0


def children_bytes() -> int:
    """Return the anonymous memory that is proportionally this process's children's, and the peaks of its ranks."""
    import psutil

    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            if child.pid in RANKS:
                total += peak_rss_bytes(Path(f"/proc/{child.pid}/status"))
                continue
            lines = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # It has ended, or this is not Linux.
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total


class PeakMemory:
    """The peak memory of the process that it is made in, from then on: what both a probe and a trial read.

    On CPU the peak of loader workers counts as far as `look` saw it; on CUDA `look` does nothing.
    """

    def __init__(self, device: str) -> None:
        """Forget the peak before now; on CUDA this opens the context."""
        self._device = device
        self._cuda = device.startswith("cuda")
        self._children_bytes = 0
        self._beside_bytes = 0
        self.context_bytes = 0
        if self._cuda:
            import torch

            self.context_bytes = open_context(device)
            self._unreserved_bytes = self._free_and_reserved()
            torch.cuda.reset_peak_memory_stats(device)
        reset_peak_rss()

    def look(self) -> None:
        """Look at the memory of loader workers now."""
        if not self._cuda:
            self._children_bytes = max(self._children_bytes, children_bytes())

    @property
    def has_children(self) -> bool:
        """Whether loader workers or ranks were seen."""
        return self._children_bytes > 0

    def read(self) -> int:
        """Return the peak in bytes: process and loader workers; on CUDA context, allocator and what grows beside it."""
        if not self._cuda:
            return peak_rss_bytes() + self._children_bytes
        import torch

        beside_bytes = self._unreserved_bytes - self._free_and_reserved()
        if beside_bytes <= MOST_BESIDE_BYTES:
            self._beside_bytes = max(self._beside_bytes, beside_bytes)
        return self.context_bytes + self._beside_bytes + torch.cuda.max_memory_reserved(self._device)

    def _free_and_reserved(self) -> int:
        """Return the bytes of the card that neither another process nor this one's allocator has."""
        import torch

        return int(torch.cuda.mem_get_info(self._device)[0]) + int(torch.cuda.memory_reserved(self._device))


class ProcessMeter:
    """Reads peaks and times of the process that it is made in; see `objectives.base.Meter`."""

    def __init__(self, device: str) -> None:
        """Begin to measure now."""
        self._device = device
        self._cuda = device.startswith("cuda")
        self._phase = "build"
        self._phase_peaks: dict[str, int] = {}
        self._step_s: list[float] = []
        self._timed_s: list[float] = []
        self._held: tuple[int, int, int] | None = None
        self._peak = PeakMemory(device)
        self._retries_before = self._retries()
        self._start_bytes = self._peak.context_bytes if self._cuda else peak_rss_bytes()
        self._clock = RunClock(alone=not self._cuda)
        self._last_s = self._clock()

    @property
    def steps(self) -> int:
        """Optimizer steps that have ended."""
        return len(self._step_s)

    def phase(self, name: str) -> None:
        """Close the phase before, and begin this one."""
        self._close_phase()
        self._phase = name
        self._clock = RunClock(alone=not self._cuda and not self._peak.has_children)
        self._last_s = self._clock()

    def _close_phase(self) -> None:
        self._synchronize()
        self._peak.look()
        self._phase_peaks[self._phase] = self._peak.read()

    def step_done(self) -> None:
        """End one optimizer step."""
        self._synchronize()
        now_s = self._clock()
        if self._phase == "timing":  # To look takes milliseconds in which a loader would work ahead: done at the end.
            self._timed_s.append(now_s - self._last_s)
        else:
            self._step_s.append(now_s - self._last_s)
            self._peak.look()
        self._last_s = self._clock()

    def holds(self, *, parameters_bytes: int, gradients_bytes: int, optimizer_state_bytes: int) -> None:
        """Keep what the objective says of its tensors."""
        self._held = (parameters_bytes, gradients_bytes, optimizer_state_bytes)

    def read(self) -> Reading:
        """Return all that was seen."""
        self._close_phase()
        held = self._held or (None, None, None)
        return Reading(
            peak_bytes=self._peak.read(),
            start_bytes=self._start_bytes,
            phase=self._phase,
            steps=len(self._step_s) + len(self._timed_s),
            step_s=tuple(self._step_s),
            timed_step_s=tuple(self._timed_s),
            phase_peaks=dict(self._phase_peaks),
            parameters_bytes=held[0],
            gradients_bytes=held[1],
            optimizer_state_bytes=held[2],
            alloc_retries=self._retries() - self._retries_before,
            waiting_counts=not self._clock.leaves_out_waiting,
        )

    def _retries(self) -> int:
        if not self._cuda:
            return 0
        import torch

        return int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))

    def _synchronize(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.synchronize(self._device)
