"""The only door to devices: what they have, what is left of it, and which errors mean that it ran out.

On CPU the memory that counts is physical RAM, cut by the container's limit. On CUDA, free and total memory come from NVML
by UUID, never by index: torch and NVML number cards differently, and `CUDA_VISIBLE_DEVICES` renumbers them once more. Where
NVML cannot say, CUDA is asked: without the module or the driver's library, on slices that it hides, and on cards that share
the host's memory. Windows is not supported: its driver moves what does not fit to the host's memory, and nothing ever fails.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DeviceError
from .results import DeviceInfo, Outcome

NO_CGROUP_LIMIT = 1 << 60
"""cgroup v1 says "no limit" with a number near 2**63."""
SAME_TOTAL = 0.1
"""NVML and CUDA count the same card's memory to within this: one of them leaves out what the firmware keeps."""
MOVED = 0.01
NEAR = 0.05
SETTLE_S = 3.0
DRIVER_NODES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg")
"""Of the driver on Linux, on Jetson boards and under WSL 2."""

Clock = Callable[[], float]


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


# --- CUDA cards, as NVML sees them: the caller's process may ask, because NVML makes no context ---------------------


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """Yield the started module `pynvml`, or None where there is no module, no driver or no permission."""
    module: Any = None
    with contextlib.suppress(Exception):  # All of these, and a library that does not load, mean that NVML cannot say.
        import pynvml

        pynvml.nvmlInit()
        module = pynvml
    try:
        yield module
    finally:
        if module is not None:
            module.nvmlShutdown()


def _handle(nvml: Any, uuid: str) -> Any:
    """Return NVML's handle of the card or slice with this UUID, or None. A bare UUID, as torch gives it, may be either's."""
    names = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"] if uuid else []
    for name in names:
        with contextlib.suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(name)
    return None


def nvml_devices() -> list[dict[str, Any]]:
    """Return name, uuid, total, free and the driver of each card that NVML sees; empty where there is no driver."""
    cards: list[dict[str, Any]] = []
    with _nvml() as nvml:
        if nvml is None:
            return cards
        for index in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):  # A card that has fallen off the bus is not there.
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                card: dict[str, Any] = {"name": _text(nvml.nvmlDeviceGetName(handle)), "uuid": _text(nvml.nvmlDeviceGetUUID(handle))}
                memory, _ = _query_memory(nvml, handle)
                card |= {"total_bytes": memory and memory.total_bytes, "free_bytes": memory and memory.available_bytes}
                cards.append({**card, "driver": _text(nvml.nvmlSystemGetDriverVersion())})
    return cards


def nvml_memory(uuid: str, *, total_bytes: int | None = None) -> Memory | None:
    """Return the memory of the card or slice with this UUID, or None where NVML cannot say.

    Args:
        uuid: With or without the prefix `GPU-` or `MIG-`.
        total_bytes: What CUDA says that the device has. Where NVML's total is another one, its handle is that of a whole card of
            which the process sees a slice, and None is returned.
    """
    with _nvml() as nvml:
        handle = nvml and _handle(nvml, uuid)
        memory = _query_memory(nvml, handle)[0] if handle else None
    if memory is not None and total_bytes is not None and abs(memory.total_bytes - total_bytes) > SAME_TOTAL * total_bytes:
        return None
    return memory


def _query_memory(nvml: Any, handle: Any) -> tuple[Memory | None, bool]:
    """Return (memory or None, whether the driver says that this card cannot be asked, since it has no memory of its own)."""
    try:
        # Version 1 of the query. Versions 1 and 2 differ in whether `used` contains the driver's part; `free` is the same.
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        return None, isinstance(error, nvml.NVMLError_NotSupported)
    return Memory(int(memory.total), int(memory.free), "nvml"), False


def _shares_host_memory(uuid: str) -> bool:
    with _nvml() as nvml:
        handle = nvml and _handle(nvml, uuid)
        return bool(handle) and _query_memory(nvml, handle)[1]


@dataclass(frozen=True)
class CudaProcess:
    """A process that holds memory of a card, as far as it can be seen."""

    pid: int
    """As the host numbers it, which inside a container is not how the container does."""
    used_bytes: int | None
    """None where the driver does not tell."""


def cuda_processes(uuid: str) -> tuple[CudaProcess, ...]:
    """Return the processes that compute on a card, for a report only: in a container, they may be hidden or numbered otherwise."""
    with _nvml() as nvml:
        handle = nvml and _handle(nvml, uuid)
        if not handle:
            return ()
        try:
            found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:
            return ()
        return tuple(CudaProcess(int(process.pid), process.usedGpuMemory) for process in found)


def memory_moved(before: Memory, after: Memory) -> str | None:
    """Say how far the memory that is left has moved between two readings, or return None if by no more than 1 %."""
    change = after.available_bytes - before.available_bytes
    if abs(change) <= MOVED * before.available_bytes:
        return None
    gib = 1 << 30
    return (
        f"Free memory of the device changed by {change / gib:+.2f} GiB during the probe, from {before.available_bytes / gib:.2f} to "
        f"{after.available_bytes / gib:.2f} GiB: something else uses it too. The result holds for what was free at the beginning; probe "
        "again, or set --memory to what is yours for sure."
    )


def card_in_sight() -> bool:
    """Tell, without touching CUDA, whether it is worth trying: NVML lists a card, or the system has a node of its driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1"):  # The user has hidden them all.
        return False
    return bool(nvml_devices()) or any(Path(node).exists() for node in DRIVER_NODES)


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


# --- CUDA itself: only in a child, because a process that touched CUDA cannot be forked ----------------------------


@dataclass(frozen=True)
class CudaFacts:
    """What a process that may touch CUDA found out about a card."""

    device: str
    name: str
    uuid: str
    """As NVML knows it, `GPU-...` or `MIG-...`; empty where torch cannot tell."""
    total_bytes: int
    free_bytes: int
    """With a context of our own already taken off."""
    unified: bool = False
    """The card has no memory of its own and shares the host's."""


def try_cuda(device: str) -> CudaFacts:
    """Use the card once and describe it.

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
        uuid = _card_uuid(name)
        return CudaFacts(
            device=name,
            name=properties.name,
            uuid=uuid,
            total_bytes=total_bytes,
            free_bytes=free_bytes + torch.cuda.memory_reserved(name),
            unified=bool(getattr(properties, "is_integrated", False)) or _shares_host_memory(uuid),
        )
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"{device} does not work: {error}") from error


def cuda_memory(facts: CudaFacts) -> Memory:
    """Return the memory of a card by what CUDA said of it, for when NVML cannot say."""
    available = facts.free_bytes
    if facts.unified:  # CUDA counts what the host could still page out; the kernel's own figure is the safer one.
        available = min(available, cpu_memory().available_bytes)
    return Memory(facts.total_bytes, available, "cuda")


def _card_uuid(device: str) -> str:
    """Return the UUID under which NVML knows a torch device. CUDA is initialised, but no context is made."""
    import torch

    index = torch.device(device).index or 0
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if index < len(visible) and visible[index].startswith("MIG-"):
        return visible[index]
    bare = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))  # Older releases of torch do not tell.
    if not bare or bare.startswith(("GPU-", "MIG-")):
        return bare
    with _nvml() as nvml:
        is_slice = nvml is not None and _handle(nvml, f"GPU-{bare}") is None and _handle(nvml, f"MIG-{bare}") is not None
    return f"MIG-{bare}" if is_slice else f"GPU-{bare}"


_context_bytes: dict[str, int] = {}


def open_context(
    device: str, *, wait_for_bytes: int = 0, clock: Clock = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Make this process's CUDA context on a device and return what it took: NVML's free memory before it less that after it.

    Where NVML cannot say, 0 is returned: free memory is then known from CUDA only, with a context already taken off. A second
    call returns what the first one found.

    Args:
        device: `cuda:N`.
        wait_for_bytes: Wait up to `SETTLE_S` until so much is free, give or take 1 %: the driver takes back the memory of a
            process some time after its end.
        clock: Tells seconds.
        sleep: Waits for seconds.
    """
    import torch

    if device not in _context_bytes:
        torch.cuda.init()
        uuid, total_bytes = _card_uuid(device), torch.cuda.get_device_properties(device).total_memory
        deadline_s = clock() + SETTLE_S
        enough_bytes = (1 - MOVED) * wait_for_bytes
        while (before := nvml_memory(uuid, total_bytes=total_bytes)) and before.available_bytes < enough_bytes and clock() < deadline_s:
            sleep(0.05)
        torch.zeros(1, device=device)
        torch.cuda.empty_cache()
        after = nvml_memory(uuid, total_bytes=total_bytes)
        taken = before.available_bytes - after.available_bytes if before and after else 0
        _context_bytes[device] = max(0, taken)
    return _context_bytes[device]


def limit_cuda_memory(device: str, limit_bytes: int) -> None:
    """Let allocations fail before this process holds more than `limit_bytes` of a card, its context included."""
    import torch

    context_bytes = open_context(device, wait_for_bytes=limit_bytes)
    # torch takes the share of one of these two, by release; of the larger one, the limit is never above what was asked for.
    total_bytes = max(torch.cuda.get_device_properties(device).total_memory, torch.cuda.mem_get_info(device)[1])
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, limit_bytes - context_bytes) / total_bytes), device)


def near_capacity(device: str) -> bool:
    """Tell whether a failure here may be for want of memory: less than 5 % of the card, or of the process's limit, is left.

    On CPU it always may. After an error that has destroyed the CUDA context the answer is no, since that is no want of memory.
    """
    if not device.startswith("cuda"):
        return True
    import torch

    try:
        if not torch.cuda.is_initialized():
            return False
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)  # Since torch 2.5.
        return free_bytes < NEAR * total_bytes or torch.cuda.max_memory_reserved(device) > (1 - NEAR) * fraction * total_bytes
    except RuntimeError:
        return False


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
    "CUDA driver error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "Triton Error [CUDA]: out of memory",
    "HIP out of memory",
    "HIP error: out of memory",
    "XPU out of memory",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    "UR_RESULT_ERROR_OUT_OF_HOST_MEMORY",
    "MPS backend out of memory",
    "RESOURCE_EXHAUSTED: Out of memory",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "Cuda failure 2 'out of memory'",
    "Cuda failure 'out of memory'",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "Unable to allocate",
    "could not create a primitive",
    "could not create a memory object",
    "unable to mmap",
    "is killed by signal: Killed",
    "dataloader's workers are out of shared memory",
)
"""How backends spell it. Each was seen in a thread, a run or the source: torch's CPU allocator raises a plain RuntimeError,
oneDNN says "could not create a primitive", torch's CUDA allocator fails an assertion where it cannot ask NVML for the text of
its message, NCCL names the failure of CUDA, a loader's worker is killed by the kernel."""

OUT_OF_MEMORY_OR_NOT = (
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
)
"""What cuBLAS and cuDNN say when they cannot get a handle or a workspace, and also when they are used wrongly."""

CONTEXT_LOST = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "hardware stack error",
    "uncorrectable ECC error",
    "an illegal address",
    "unknown error",
    "Xid",
)
"""In a message that names CUDA: the process can use the card no more. A bug or broken hardware, never memory, whatever the
failing call says besides."""

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


def classify(error: BaseException, near_cap: bool = True) -> Outcome:
    """Return `oom`, `limit` or `error` for an exception of user code, by its type and then by the table of spellings.

    Args:
        error: The exception. One that was raised `from` another is what that other is.
        near_cap: Whether the device was nearly full. Only then is an error that cuBLAS and cuDNN also raise for other reasons
            taken for want of memory; see `near_capacity`.
    """
    text = str(error)
    if isinstance(error, RuntimeError) and "CUDA" in text.upper() and any(words in text for words in CONTEXT_LOST):
        return "error"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    if isinstance(error, (RuntimeError, OSError)):
        if any(words in text for words in OUT_OF_MEMORY):
            return "oom"
        if may_be_memory(text):
            return "oom" if near_cap else "error"
    if isinstance(error, (RuntimeError, ValueError)) and any(words in text for words in SIZE_LIMIT):
        return "limit"
    return "error" if error.__cause__ is None else classify(error.__cause__, near_cap)


def may_be_memory(message: str) -> bool:
    """Whether an error message is one that cuBLAS and cuDNN give for want of memory and for other reasons alike."""
    return any(words in message for words in OUT_OF_MEMORY_OR_NOT)


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
