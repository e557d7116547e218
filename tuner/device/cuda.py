"""CUDA itself: only in a child, because a process that has touched CUDA cannot be forked."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from ..core.errors import DeviceError
from .memory import MOVED, Memory, cpu_memory
from .nvml import handle_of, nvml_memory, nvml_session, shares_host_memory

NEAR = 0.05
SETTLE_S = 3.0

Clock = Callable[[], float]


def check_device_name(device: str) -> str:
    """Return `device` when bstune knows it: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: It is another one; the message says what to do.
    """
    kind, _, index = device.partition(":")
    if device in ("auto", "cpu") or (kind == "cuda" and (not index or index.isdigit())):
        return device
    raise DeviceError(
        f"device={device!r} is not supported: expected auto, cpu, cuda or cuda:N. bstune measures memory on CPU and "
        "CUDA only; use device='cpu' to tune on this machine without its accelerator."
    )


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
            raise DeviceError(
                f"{device} is not available: torch {torch.__version__} sees no working CUDA driver or card."
            )
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
            unified=bool(getattr(properties, "is_integrated", False)) or shares_host_memory(uuid),
        )
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"{device} does not work: {error}") from error


def cuda_of_torch() -> str | None:
    """Return the release of CUDA that torch was built for, or None; torch is not loaded for that."""
    if (torch := sys.modules.get("torch")) is not None:
        return cast("str | None", torch.version.cuda)
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return cast("str | None", runpy.run_path(os.path.join(os.path.dirname(spec.origin), "version.py")).get("cuda"))


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
    with nvml_session() as nvml:
        is_slice = (
            nvml is not None and handle_of(nvml, f"GPU-{bare}") is None and handle_of(nvml, f"MIG-{bare}") is not None
        )
    return f"MIG-{bare}" if is_slice else f"GPU-{bare}"


_context_bytes: dict[str, int] = {}


def open_context(
    device: str, *, wait_for_bytes: int = 0, clock: Clock = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Make this process's CUDA context on a device and return what it took: the drop in NVML's free memory.

    Where NVML cannot say, 0 is returned: free memory is then known from CUDA only, with a context already taken off. A
    second call returns what the first one found.

    Args:
        device: `cuda:N`.
        wait_for_bytes: Wait up to `SETTLE_S` until so much is free, give or take 1 %: the driver takes back the memory
            of a process some time after its end.
        clock: Tells seconds.
        sleep: Waits for seconds.
    """
    import torch

    if device not in _context_bytes:
        torch.cuda.init()
        uuid, total_bytes = _card_uuid(device), torch.cuda.get_device_properties(device).total_memory
        deadline_s = clock() + SETTLE_S
        enough_bytes = (1 - MOVED) * wait_for_bytes
        while (
            (before := nvml_memory(uuid, total_bytes=total_bytes))
            and before.available_bytes < enough_bytes
            and clock() < deadline_s
        ):
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
    # torch takes the share of one of these two, depending on its release; with the larger one, the limit is never above
    # what was asked for.
    total_bytes = max(torch.cuda.get_device_properties(device).total_memory, torch.cuda.mem_get_info(device)[1])
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, limit_bytes - context_bytes) / total_bytes), device)


def near_capacity(device: str) -> bool:
    """Tell whether a failure here may be for lack of memory: less than 5 % of the card, or of the limit, is free.

    On CPU it always may. After an error that has destroyed the CUDA context the answer is no, since that is no lack of
    memory.
    """
    if not device.startswith("cuda"):
        return True
    if (torch := sys.modules.get("torch")) is None:
        return False
    try:
        if not torch.cuda.is_initialized():
            return False
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)  # Since torch 2.5.
        return bool(
            free_bytes < NEAR * total_bytes
            or torch.cuda.max_memory_reserved(device) > (1 - NEAR) * fraction * total_bytes
        )
    except RuntimeError:
        return False
