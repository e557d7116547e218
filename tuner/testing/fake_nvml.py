"""An NVML without a driver: cards made up for a test."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .fake_device import GIB


@dataclass
class FakeCard:
    """A card as NVML sees it.

    Attributes:
        uuid: With its prefix: `GPU-...`.
        total_bytes, free_bytes: None: the query is not supported, as on cards that share the host's memory (GB10).
        mig_uuids: UUIDs of its slices, with the prefix `MIG-`; each has an equal part of the memory.
        processes: (process id, bytes) of what runs on it; bytes None: not told, as under Windows' display driver.
    """

    uuid: str
    name: str = "NVIDIA Fake"
    total_bytes: int | None = 16 * GIB
    free_bytes: int | None = 15 * GIB
    mig_uuids: tuple[str, ...] = ()
    processes: tuple[tuple[int, int | None], ...] = ()


@dataclass(frozen=True)
class _Handle:
    card: FakeCard
    mig_uuid: str | None = None


def fake_nvml(cards: Sequence[FakeCard] = (), *, driver: str | None = "580.00") -> types.ModuleType:
    """Return a stand-in for the module `pynvml`, to be put into `sys.modules`.

    It has those functions of the real module that ask for memory, names and processes, with the real signatures, and it
    raises the real error classes. Any other name is absent, so code that calls it fails here as a reminder to extend
    the fake.

    Args:
        cards: In NVML's order, which need not be torch's.
        driver: Version; None: there is no driver, and `nvmlInit` raises NVMLError_LibraryNotFound.
    """
    import pynvml

    state = _NvmlState(pynvml, tuple(cards), driver)
    module = types.ModuleType("pynvml")
    for name in dir(pynvml):
        value = getattr(pynvml, name)
        if name.startswith("NVML_ERROR_") or (isinstance(value, type) and issubclass(value, pynvml.NVMLError)):
            setattr(module, name, value)
    module.nvmlMemory_v2 = pynvml.nvmlMemory_v2  # type: ignore[attr-defined]
    for name in dir(state):
        if name.startswith("nvml"):
            setattr(module, name, getattr(state, name))
    return module


@dataclass
class _NvmlState:
    real: Any
    """The real module: by the time of a call, `sys.modules` has the fake one under its name."""
    cards: tuple[FakeCard, ...]
    driver: str | None
    initialised: int = field(default=0)

    def _error(self, code: int) -> Exception:
        error: Exception = self.real.NVMLError(code)
        return error

    def _check(self) -> None:
        if not self.initialised:
            raise self._error(self.real.NVML_ERROR_UNINITIALIZED)

    def nvmlInit(self) -> None:  # The real names.
        if self.driver is None:
            raise self._error(self.real.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.initialised += 1

    def nvmlShutdown(self) -> None:
        self._check()
        self.initialised -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self._check()
        assert self.driver is not None
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        self._check()
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> _Handle:
        self._check()
        if not 0 <= index < len(self.cards):
            raise self._error(self.real.NVML_ERROR_INVALID_ARGUMENT)
        return _Handle(self.cards[index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> _Handle:
        self._check()
        for card in self.cards:
            if uuid == card.uuid:
                return _Handle(card)
            if uuid in card.mig_uuids:
                return _Handle(card, uuid)
        raise self._error(self.real.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetName(self, handle: _Handle) -> str:
        self._check()
        return handle.card.name

    def nvmlDeviceGetUUID(self, handle: _Handle) -> str:
        self._check()
        return handle.mig_uuid or handle.card.uuid

    def nvmlDeviceGetMemoryInfo(self, handle: _Handle, version: int | None = None) -> Any:
        self._check()
        card = handle.card
        if card.total_bytes is None or card.free_bytes is None:
            raise self._error(self.real.NVML_ERROR_NOT_SUPPORTED)
        memory = self.real.c_nvmlMemory_t() if version is None else self.real.c_nvmlMemory_v2_t()
        parts = len(card.mig_uuids) if handle.mig_uuid else 1
        memory.total, memory.free = card.total_bytes // parts, card.free_bytes // parts
        memory.used = memory.total - memory.free
        return memory

    def nvmlDeviceGetMigMode(self, device: _Handle) -> list[int]:
        self._check()
        return [int(bool(device.card.mig_uuids))] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, device: _Handle) -> int:
        self._check()
        return len(device.card.mig_uuids)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: _Handle, index: int) -> _Handle:
        self._check()
        if not 0 <= index < len(device.card.mig_uuids):
            raise self._error(self.real.NVML_ERROR_NOT_FOUND)
        return _Handle(device.card, device.card.mig_uuids[index])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: _Handle) -> list[types.SimpleNamespace]:
        self._check()
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.card.processes]
