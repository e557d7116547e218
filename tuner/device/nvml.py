"""CUDA cards as NVML sees them: any process may ask, because NVML makes no context."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .memory import Memory

SAME_TOTAL = 0.1
"""NVML and CUDA count the same card's memory to within this: one of them leaves out what the firmware keeps."""
DRIVER_NODES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg")
"""Of the driver on Linux, on Jetson boards and under WSL 2."""


@contextlib.contextmanager
def nvml_session() -> Iterator[Any]:
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


def handle_of(nvml: Any, uuid: str) -> Any:
    """Return NVML's handle of the card or slice with this UUID, or None; torch's bare UUID may be of either."""
    names = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"GPU-{uuid}", f"MIG-{uuid}"] if uuid else []
    for name in names:
        with contextlib.suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(name)
    return None


def nvml_devices() -> list[dict[str, Any]]:
    """Return name, uuid, total, free and the driver of each card that NVML sees; empty where there is no driver."""
    cards: list[dict[str, Any]] = []
    with nvml_session() as nvml:
        if nvml is None:
            return cards
        for index in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):  # A card that has fallen off the bus is not there.
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                card: dict[str, Any] = {
                    "name": _text(nvml.nvmlDeviceGetName(handle)),
                    "uuid": _text(nvml.nvmlDeviceGetUUID(handle)),
                }
                memory, _ = _query_memory(nvml, handle)
                card |= {"total_bytes": memory and memory.total_bytes, "free_bytes": memory and memory.available_bytes}
                cards.append({**card, "driver": _text(nvml.nvmlSystemGetDriverVersion())})
    return cards


def nvml_memory(uuid: str, *, total_bytes: int | None = None) -> Memory | None:
    """Return the memory of the card or slice with this UUID, or None where NVML cannot say.

    Args:
        uuid: With or without the prefix `GPU-` or `MIG-`.
        total_bytes: What CUDA says that the device has. Where NVML's total is another one, its handle is that of a
            whole card of which the process sees a slice, and None is returned.
    """
    with nvml_session() as nvml:
        handle = nvml and handle_of(nvml, uuid)
        memory = _query_memory(nvml, handle)[0] if handle else None
    if (
        memory is not None
        and total_bytes is not None
        and abs(memory.total_bytes - total_bytes) > SAME_TOTAL * total_bytes
    ):
        return None
    return memory


def _query_memory(nvml: Any, handle: Any) -> tuple[Memory | None, bool]:
    """Return (memory or None, whether the driver says that this card has no memory of its own to ask for)."""
    try:
        # Version 1 of the query. Versions 1 and 2 differ in whether `used` contains the driver's part; `free` is the
        # same.
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        return None, isinstance(error, nvml.NVMLError_NotSupported)
    return Memory(int(memory.total), int(memory.free), "nvml"), False


def shares_host_memory(uuid: str) -> bool:
    """Tell whether a card has no memory of its own."""
    with nvml_session() as nvml:
        handle = nvml and handle_of(nvml, uuid)
        return bool(handle) and _query_memory(nvml, handle)[1]


@dataclass(frozen=True)
class CudaProcess:
    """A process that holds memory of a card, as far as it can be seen."""

    pid: int
    """As the host numbers it, which inside a container is not how the container does."""
    used_bytes: int | None
    """None where the driver does not tell."""


def cuda_processes(uuid: str) -> tuple[CudaProcess, ...]:
    """Return the processes that compute on a card, for a report only: a container may hide or renumber them."""
    with nvml_session() as nvml:
        handle = nvml and handle_of(nvml, uuid)
        if not handle:
            return ()
        try:
            found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:
            return ()
        return tuple(CudaProcess(int(process.pid), process.usedGpuMemory) for process in found)


def card_in_sight() -> bool:
    """Tell, without touching CUDA, whether it is worth trying: NVML lists a card, or the driver has a device node."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1"):  # The user has hidden them all.
        return False
    return bool(nvml_devices()) or any(Path(node).exists() for node in DRIVER_NODES)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
