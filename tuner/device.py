"""The only door to devices: what they have, what is left of it, and which errors mean that it ran out.

On CPU the memory that counts is physical RAM, cut by the container's limit. On CUDA, free and total memory come from NVML
by UUID, never by index: torch and NVML number cards differently, and `CUDA_VISIBLE_DEVICES` renumbers them once more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DeviceError
from .results import DeviceInfo, Outcome

NO_CGROUP_LIMIT = 1 << 60
"""cgroup v1 says "no limit" with a number near 2**63."""


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


def cgroup_limits(proc_cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[tuple[int, int]]:
    """Return (limit, used) in bytes for this process's memory cgroup and each of its ancestors that has a limit.

    Used memory leaves out inactive file pages: the kernel gives those back before it kills anyone. psutil knows nothing of
    cgroups (giampaolo/psutil#2100), so they are read here, version 2 and version 1.
    """
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit_names, used_name = root, ["memory.max", "memory.high"], "memory.current"
        elif "memory" in controllers.split(","):
            base, limit_names, used_name = root / "memory", ["memory.limit_in_bytes"], "memory.usage_in_bytes"
        else:
            continue
        here = base / path.lstrip("/")
        # Inside a container the path is often that of the host and does not exist here; the root then holds the limit.
        for folder in (here, *here.parents):
            limits = [value for name in limit_names if (value := _read_number(folder / name)) is not None and value < NO_CGROUP_LIMIT]
            used = _read_number(folder / used_name)
            if limits and used is not None:
                found.append((min(limits), max(0, used - _inactive_file_bytes(folder))))
            if folder == base:
                break
    return found


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


def nvml_devices() -> list[dict[str, Any]]:
    """Return name, uuid, total, free and the driver of each card that NVML sees; empty where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        cards = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            card: dict[str, Any] = {"name": _text(pynvml.nvmlDeviceGetName(handle)), "uuid": _text(pynvml.nvmlDeviceGetUUID(handle))}
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                card |= {"total_bytes": int(memory.total), "free_bytes": int(memory.free)}
            except pynvml.NVMLError:  # Cards that share the host's memory, such as GB10, do not support this query.
                card |= {"total_bytes": None, "free_bytes": None}
            card["driver"] = _text(pynvml.nvmlSystemGetDriverVersion())
            cards.append(card)
        return cards
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def nvml_memory(uuid: str) -> Memory | None:
    """Return the memory of the card (or MIG slice) with this UUID, or None where NVML cannot say."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # No module, no driver, no permission: all of them mean that NVML cannot say.
        return None
    try:
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(name))
        return Memory(int(memory.total), int(memory.free), "nvml")
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def check_device_name(device: str) -> str:
    """Return `device` when bstune knows it: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: It is another one; the message says what to do.
    """
    kind, _, index = device.partition(":")
    if device in ("auto", "cpu") or (kind == "cuda" and (not index or index.isdigit())):
        return device
    raise DeviceError(
        f"device={device!r} is not supported: expected auto, cpu, cuda or cuda:N. bstune measures memory on CPU and CUDA only; "
        "use device='cpu' to tune on this machine without its accelerator."
    )


@dataclass(frozen=True)
class CudaFacts:
    """What a process that may touch CUDA found out about a card."""

    device: str
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    """With a context of our own already taken off."""


def try_cuda(device: str) -> CudaFacts:
    """Use the card once and describe it. Run it in a child only: a process that touched CUDA cannot be forked.

    Raises:
        DeviceError: The card does not work, with torch's own reason.
    """
    import torch

    try:
        if not torch.cuda.is_available():
            raise DeviceError(f"{device} is not available: torch {torch.__version__} sees no working CUDA driver or card.")
        name = "cuda:0" if device in ("auto", "cuda") else device
        torch.zeros(8, device=name).sum().item()
        properties = torch.cuda.get_device_properties(name)
        free_bytes, total_bytes = torch.cuda.mem_get_info(name)
        return CudaFacts(name, properties.name, str(getattr(properties, "uuid", "")), total_bytes, free_bytes)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"{device} does not work: {error}") from error


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


# --- which errors mean what ---------------------------------------------------------------------------------------

OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "XPU out of memory",
    "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "std::bad_alloc",
    "Cannot allocate memory",
    "Unable to allocate",
    "could not create a primitive",
    "could not create a memory object",
    "unable to mmap",
    "is killed by signal: Killed",
)
"""How backends spell it. Each was seen in a thread or a run: torch's CPU allocator raises a plain RuntimeError, oneDNN says
"could not create a primitive", cuBLAS cannot allocate its handle, a loader's worker is killed by the kernel."""

SIZE_LIMIT = (
    "Expected more than 1 value per channel when training",
    "Expected more than 1 spatial element when training",
    "canUse32BitIndexMath",
    "must fit into 32-bit index math",
    "more than INT_MAX elements",
    "invalid configuration argument",
    "batch size (dim 0) must be less than 65536",
)
"""Limits of a kernel or a layer on the size itself, which no memory would lift."""


def classify(error: BaseException) -> Outcome:
    """Return `oom`, `limit` or `error` for an exception of user code, by its type and then by the table of spellings."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    text = str(error)
    if isinstance(error, (RuntimeError, OSError)) and any(words in text for words in OUT_OF_MEMORY):
        return "oom"
    if isinstance(error, (RuntimeError, ValueError)) and any(words in text for words in SIZE_LIMIT):
        return "limit"
    return "error"


def asked_bytes(message: str) -> int | None:
    """Return the bytes that a failed allocation asked for, where its message says so.

    Example:
        >>> asked_bytes("you tried to allocate 4096 bytes"), asked_bytes("Tried to allocate 1.50 GiB.")
        (4096, 1610612736)
    """
    match = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", message)
    if match is None:
        return None
    return int(float(match[1]) * {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[match[2]])


def first_line(text: str, *, width: int = 200) -> str:
    """Return the first line of a message, cut to `width`."""
    line = next(iter(text.strip().splitlines()), "")
    return line if len(line) <= width else line[: width - 1] + "…"


Clock = Callable[[], float]
