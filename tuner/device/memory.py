"""Memory and cores of this machine, within the limits of the container, and room on its disks."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.probe_results import DeviceInfo

NO_CGROUP_LIMIT = 1 << 60
"""cgroup v1 says "no limit" with a number near 2**63."""
MOVED = 0.01
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What torch itself looks at when it starts."""


@dataclass(frozen=True)
class Memory:
    """What a device has and what is left of it, now."""

    total_bytes: int
    available_bytes: int
    source: str
    """What said so: `ram`, `cgroup`, `nvml` or `cuda`."""


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_set(environment: Mapping[str, str]) -> int | None:
    """Return the threads that a user has set for their programs, as torch reads it; None where they have set none.

    Example:
        >>> threads_set({"OMP_NUM_THREADS": "4,2", "MKL_NUM_THREADS": ""}), threads_set({"OMP_NUM_THREADS": "all"})
        (4, None)
    """
    first = (environment.get(name, "").partition(",")[0].strip() for name in THREAD_VARIABLES)
    return min((int(text) for text in first if text.isdecimal() and int(text) > 0), default=None)


def cpu_memory() -> Memory:
    """Return physical RAM as this process may use it: the least of what is available and what its cgroups leave."""
    import psutil

    ram = psutil.virtual_memory()
    total, available, source = int(ram.total), int(ram.available), "ram"
    for limit, used in cgroup_limits():
        if limit < total:
            total, source = limit, "cgroup"
        available = min(available, max(0, limit - used))
    return Memory(total, available, source)


def cgroup_limits(
    proc_cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[tuple[int, int]]:
    """Return (limit, used) in bytes for this process's memory cgroup and each of its ancestors that has a limit.

    Used memory leaves out inactive file pages: the kernel gives those back before it kills anyone. psutil knows nothing
    of cgroups (giampaolo/psutil#2100), so they are read here, version 2 and version 1.
    """
    found = []
    for folder, version in _cgroups("memory", proc_cgroup, root):
        names = ["memory.max", "memory.high"] if version == 2 else ["memory.limit_in_bytes"]
        limits = [value for name in names if (value := _read_number(folder / name)) is not None]
        limits = [value for value in limits if value < NO_CGROUP_LIMIT]
        used = _read_number(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
        if limits and used is not None:
            found.append((min(limits), max(0, used - _inactive_file_bytes(folder))))
    return found


def core_quota(proc_cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many cores' worth of time this process's cgroup and its ancestors allow; infinite without a limit."""
    found = [math.inf]
    for folder, version in _cgroups("cpu", proc_cgroup, root):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            found += [int(quota) / int(period)] if int(quota) > 0 else []
        except (OSError, ValueError, ZeroDivisionError):  # There is none, or it is `max`.
            continue
    return min(found)


def _cgroups(controller: str, proc_cgroup: Path, root: Path) -> Iterator[tuple[Path, Literal[1, 2]]]:
    """Yield the folder of this process's cgroup and of each of its ancestors, with the version of cgroups."""
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        here = base / path.lstrip("/")
        # Inside a container the path is often that of the host and does not exist here; the root then has the limit.
        for folder in (here, *here.parents):
            yield folder, 1 if controllers else 2
            if folder == base:
                break


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _inactive_file_bytes(folder: Path) -> int:
    try:
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def memory_moved(before: Memory, after: Memory) -> str | None:
    """Say how far the memory that is left has moved between two readings, or return None if by no more than 1 %."""
    change = after.available_bytes - before.available_bytes
    if abs(change) <= MOVED * before.available_bytes:
        return None
    gib = 1 << 30
    return (
        f"Free memory of the device changed by {change / gib:+.2f} GiB during the probe, from "
        f"{before.available_bytes / gib:.2f} to {after.available_bytes / gib:.2f} GiB: something else uses it too. "
        "The result is for what was free at the beginning; probe again, or set --memory to what is yours for sure."
    )


def cpu_info(threads: int) -> DeviceInfo:
    """Describe this machine as a device."""
    return DeviceInfo(kind="cpu", name=_cpu_name(), total_bytes=cpu_memory().total_bytes, threads=threads)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


def free_on_disk_bytes(path: str) -> int:
    """Return what is free on the disk of a file that is to be written; 0 where it has no folder."""
    try:
        return shutil.disk_usage(Path(path).parent).free
    except OSError:
        return 0
