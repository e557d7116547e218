"""The memory of the processes below this one: what a command of the user's takes that runs in no process of ours.

On CPU the peak of the largest process counts as the kernel keeps it, and what the others hold when they are looked at.
On CUDA it is what the card has less than it had before: inside a container NVML cannot say which process holds it.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from .meter import Reading
from .nvml import nvml_devices, nvml_memory

LOOK_S = 0.02
"""Between two looks, at least: a look takes up to some milliseconds."""


@dataclass(frozen=True)
class _Process:
    pid: int
    peak_bytes: int
    """Of its resident memory, without shared file pages."""


def _descendants() -> list[int]:
    """Return the numbers of all processes below this one."""
    found = [os.getpid()]
    for pid in found:
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # It has ended since.
                found += map(int, tasks.read_text().split())
    return found[1:]


def _process(pid: int) -> _Process | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    rows = dict(line.split(":", 1) for line in text.splitlines() if line.startswith(("VmHWM", "RssFile")))
    if "VmHWM" not in rows:  # It has ended and waits to be noticed.
        return None
    peak, shared = (int(rows.get(name, "0").split()[0]) * 1024 for name in ("VmHWM", "RssFile"))
    return _Process(pid, max(0, peak - shared))


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


class TreePeak:
    """The peak memory of all processes below this one, as far as `look` saw it.

    Attributes:
        peak_bytes: The peak so far.
        cpu_s: Seconds of processor time that those have used which live now.
    """

    def __init__(self, device: str, *, uuid: str = "") -> None:
        """Begin to look; `uuid` is that of the card, which without it is the first one."""
        self._cuda = device.startswith("cuda")
        self._uuid = uuid or (_card_of(device) if self._cuda else "")
        self._free_bytes = self._free()
        self._looked_s = 0.0
        self.peak_bytes = 0
        self.cpu_s = 0.0

    def look(self, *, again: bool = False) -> None:
        """Look at what they hold now; soon after the last look only where it is asked for `again`."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S and not again:
            return
        self._looked_s = now_s
        below = _descendants()
        self.cpu_s = sum(map(_cpu_s, below))
        if self._cuda:
            self.peak_bytes = max(self.peak_bytes, self._free_bytes - self._free())
            return
        found = [seen for pid in below if (seen := _process(pid)) is not None]
        if found:
            largest = max(found, key=lambda process: process.peak_bytes)
            others = sum(_proportional_bytes(process.pid) for process in found if process is not largest)
            self.peak_bytes = max(self.peak_bytes, largest.peak_bytes + others)

    def read(self) -> int:
        """Return the peak in bytes."""
        return self.peak_bytes

    def _free(self) -> int:
        memory = nvml_memory(self._uuid) if self._cuda else None
        return 0 if memory is None else memory.available_bytes


def _card_of(device: str) -> str:
    """Return the UUID of a card without touching CUDA, by its place among those that NVML lists."""
    cards, index = nvml_devices(), int(device.partition(":")[2] or 0)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if index < len(visible):
        if not visible[index].isdigit():
            return visible[index]
        index = int(visible[index])
    return str(cards[index]["uuid"]) if index < len(cards) else ""


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class TreeMeter:
    """Reads the peak of a command of the user's; see `objectives.base.Meter`. It has seen no step from within.

    Attributes:
        timed_step_s: Seconds of a step, where an epoch was timed.
    """

    def __init__(self, device: str) -> None:
        """Begin to measure now."""
        self.timed_step_s: tuple[float, ...] = ()
        self.peak = TreePeak(device)
        self._phase = "start"
        self._steps = 0

    def phase(self, name: str) -> None:
        """Begin a phase."""
        self._phase = name

    def step_done(self) -> None:
        """Count one optimizer step that is known to have ended."""
        self._steps += 1

    def holds(self, *, parameters_bytes: int, gradients_bytes: int, optimizer_state_bytes: int) -> None:
        """Nothing is known of that."""

    def read(self) -> Reading:
        """Return all that was seen."""
        return Reading(self.peak.read(), 0, self._phase, self._steps, (), self.timed_step_s)
