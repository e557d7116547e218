"""The stand-ins themselves: they must behave, and fail, as the real things do."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pynvml
import pytest
import torch
from bstune.tuner.core.specs import Plan
from bstune.tuner.device import nvml as nvml_module
from bstune.tuner.device import out_of_memory
from bstune.tuner.memory.trace import Trace, TraceModel
from bstune.tuner.probing.size_search import Bounds, Growth
from bstune.tuner.searching.loop import Drive
from bstune.tuner.strategy.strategy import Strategy
from bstune.tuner.studies.catalog import make_study
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.testing.fake_device import GIB, FakeClock, FakeDevice, Fault, ProcessDied
from bstune.tuner.testing.fake_nvml import FakeCard, fake_nvml
from bstune.tuner.testing.replay import TablePool, replay
from bstune.tuner.testing.tables import synthetic


def search(device: FakeDevice, budget_bytes: int, *, cap: int = 10_000) -> Growth:
    """Search for the largest size on a fake device."""
    growth = Growth(Bounds(1, cap), budget_bytes=budget_bytes)
    while (size := growth.next_size()) is not None:
        growth.add(device.attempt(size, budget_bytes=budget_bytes))
    return growth


def test_a_device_is_a_formula_with_a_capacity() -> None:
    """At 1 GiB a sample on 80 GiB, 80 samples fit, 81 do not, and the error is torch's own."""
    device = FakeDevice(capacity_gib=80, gib_per_sample=1.0)

    assert device.step(80) == 80 * GIB
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        device.step(81)
    assert device.largest_fit(limit=200) == 80


def test_the_context_and_other_processes_take_their_part() -> None:
    """And what others use may change while it runs."""
    device = FakeDevice(capacity_gib=10, gib_per_sample=1.0, context_gib=0.5, foreign_gib=2)

    assert device.largest_fit() == 7
    assert device.attempt(7).peak_bytes == 7 * GIB + GIB // 2
    device.foreign_bytes = 0
    assert device.largest_fit() == 9


def test_a_search_finds_the_largest_fit_of_a_device() -> None:
    """The truth is known by trying every size."""
    device = FakeDevice(capacity_gib=8, memory=lambda n: 1e9 + 1e7 * n)
    budget = int(0.95 * 8 * GIB)

    growth = search(device, budget)

    assert growth.answer.size == device.largest_fit(budget_bytes=budget)
    assert device.sizes == [m.size for m in growth.history for _ in range(2)]


def test_a_traced_step_runs_through_the_caching_allocator() -> None:
    """Reserved memory counts, not live bytes, and a size that needs retries does not fit."""
    events = [(1, 0), (1, 1), (-1, 1), (1, 2), (-1, 2)]

    def trace(n: int) -> Trace:
        return Trace(
            batch=n,
            signs=np.array([sign for sign, _ in events], dtype=np.int8),
            storages=np.array([storage for _, storage in events], dtype=np.int32),
            nbytes=np.array([100 << 20, n << 20, n * 3 << 19], dtype=np.int64),
            born_in=np.zeros(3, dtype=np.int16),
        )

    model = TraceModel.fit([trace(2), trace(4)])
    device = FakeDevice(capacity_gib=1, trace=model)

    assert device.step(100) == (100 + 100 + 150) << 20
    assert not device.attempt(
        500
    ).fits  # 100 + 500 + 750 MiB do not fit at once: the allocator gives 500 back and retries.
    assert device.retries == 2
    assert device.attempt(700).outcome == "oom"


@pytest.mark.parametrize(
    ("kind", "words"), [("cublas", "CUBLAS_STATUS_ALLOC_FAILED"), ("cudnn", "CUDNN_STATUS_ALLOC_FAILED")]
)
def test_libraries_run_out_of_memory_in_their_own_words(kind: Any, words: str) -> None:
    """Plain RuntimeErrors, which the classifier must know."""
    device = FakeDevice(gib_per_sample=0.1, faults=[Fault(kind, from_size=4)])

    assert device.attempt(3).fits
    with pytest.raises(RuntimeError, match=words):
        device.step(4)
    assert device.attempt(4).outcome == "oom"


def test_a_fault_at_one_step_spares_the_others() -> None:
    """The second step fails where the first succeeded, as was seen on real cards."""
    device = FakeDevice(gib_per_sample=0.1, faults=[Fault("oom", at_step=2)])

    device.step(1)
    with pytest.raises(torch.OutOfMemoryError):
        device.step(1)
    device.step(1)
    assert device.attempt(1).outcome == "oom"


def test_a_lost_context_stays_lost_until_the_process_is_fresh() -> None:
    """An illegal access is a bug, not memory, and every later call fails with it."""
    device = FakeDevice(gib_per_sample=0.1, faults=[Fault("sticky", at_step=1, from_size=8)])

    for size in (8, 1):
        with pytest.raises(RuntimeError, match="illegal memory access") as error:
            device.step(size)
        assert out_of_memory.classify(error.value) == "error"
    device.restart()
    device.step(1)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        device.attempt(8)


def test_a_killed_process_ran_out_of_memory() -> None:
    """SIGKILL is how the kernel says it."""
    device = FakeDevice(gib_per_sample=0.1, faults=[Fault("killed", from_size=8)])

    with pytest.raises(ProcessDied, match="signal 9"):
        device.step(8)
    assert device.attempt(8).outcome == "oom"
    assert device.attempt(7).fits


def test_spilled_memory_does_not_fail_but_takes_its_time() -> None:
    """As on Windows, where the driver moves allocations to the host."""
    device = FakeDevice(capacity_gib=8, gib_per_sample=1.0, faults=[Fault("spill")], seconds=lambda size: 1.0)

    device.step(8)
    assert device.clock() == 1.0
    device.step(9)
    assert device.clock() == 11.0


def test_limits_that_are_not_memory() -> None:
    """A grid that is too large, and a batch of one that is too small."""
    device = FakeDevice(gib_per_sample=0.01, faults=[Fault("limit", from_size=100), Fault("too_few")])

    assert device.attempt(100).outcome == "limit"
    assert device.attempt(1).outcome == "limit"
    assert device.attempt(2).fits
    growth = search(FakeDevice(capacity_gib=80, gib_per_sample=0.01, faults=[Fault("limit", from_size=100)]), 80 * GIB)
    assert (growth.answer.size, growth.answer.limited_by) == (99, "max_batch")


def test_noise_scatters_what_is_measured_but_not_what_is_true() -> None:
    """With one seed the same scatter."""
    peaks = [
        [FakeDevice(gib_per_sample=1.0, noise=0.01, seed=s).attempt(4).peak_bytes for _ in range(2)] for s in (0, 1)
    ]

    assert peaks[0][0] == peaks[0][1] != peaks[1][0]
    assert peaks[0][0] == pytest.approx(4 * GIB, rel=0.05)


def test_a_device_needs_exactly_one_description_of_its_memory() -> None:
    """Neither none nor two."""
    with pytest.raises(ValueError, match="exactly one"):
        FakeDevice()
    with pytest.raises(ValueError, match="exactly one"):
        FakeDevice(gib_per_sample=1.0, memory=float)


def test_a_fake_clock_moves_when_told() -> None:
    """And not before."""
    clock = FakeClock(5.0)
    assert clock() == clock() == 5.0
    clock.advance(2.5)
    assert clock() == 7.5


# --- recorded tables ---


@pytest.mark.parametrize("slots", [1, 3])
def test_a_replay_is_the_search_that_a_study_remembers(slots: int) -> None:
    """The figures from replays are those of a real search: the same trials to the last word."""
    table = synthetic()
    plan = Plan(budget=4, space=table.space, jobs=slots)

    replayed = replay(Strategy(plan, table.facts(), None), table, slots=slots)
    with open_storage("sqlite:///:memory:") as storage:
        study = make_study(storage, "stored")
        Drive(study, Strategy(plan, table.facts(), None), None, tell=lambda *_: None).run(TablePool(table, slots))

        assert len(replayed) > 4
        assert tuple(sorted(replayed, key=lambda record: record.number)) == study.records


# --- NVML -----------------------------------------------------------------------------------------------------------


def test_the_fake_nvml_has_the_real_names_and_signatures() -> None:
    """A fake that drifts from the real module would let wrong calls pass."""
    fake = fake_nvml()
    functions = [name for name in vars(fake) if name.startswith("nvml") and callable(getattr(fake, name))]

    assert len(functions) >= 12
    for name in functions:
        real = getattr(pynvml, name)
        assert list(inspect.signature(getattr(fake, name)).parameters) == list(inspect.signature(real).parameters), name
    for name, parameter in inspect.signature(pynvml.nvmlDeviceGetMemoryInfo).parameters.items():
        assert inspect.signature(fake.nvmlDeviceGetMemoryInfo).parameters[name].default == parameter.default
    assert fake.NVMLError is pynvml.NVMLError
    assert fake.NVMLError_NotSupported is pynvml.NVMLError_NotSupported


def test_a_machine_without_a_driver() -> None:
    """`nvmlInit` raises what the real one raises there."""
    with pytest.raises(pynvml.NVMLError_LibraryNotFound):
        fake_nvml(driver=None).nvmlInit()


def test_calls_before_init_fail() -> None:
    """As with the real one."""
    nvml = fake_nvml([FakeCard("GPU-1")])
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        nvml.nvmlDeviceGetCount()
    nvml.nvmlInit()
    assert nvml.nvmlDeviceGetCount() == 1
    nvml.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        nvml.nvmlDeviceGetCount()


def test_memory_is_found_by_uuid_whatever_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bstune's own reading of a card, against cards in an order of their own, a slice, and a card that cannot say."""
    cards = [
        FakeCard("GPU-b", total_bytes=40 * GIB, free_bytes=39 * GIB),
        FakeCard("GPU-a", total_bytes=16 * GIB, free_bytes=8 * GIB),
        FakeCard("GPU-c", total_bytes=80 * GIB, free_bytes=80 * GIB, mig_uuids=("MIG-1", "MIG-2")),
        FakeCard("GPU-d", name="NVIDIA GB10", total_bytes=None),
    ]
    monkeypatch.setitem(__import__("sys").modules, "pynvml", fake_nvml(cards))

    memory = nvml_module.nvml_memory("a")
    assert memory is not None
    assert (memory.total_bytes, memory.available_bytes) == (16 * GIB, 8 * GIB)
    part = nvml_module.nvml_memory("MIG-1")
    assert part is not None
    assert part.total_bytes == 40 * GIB
    assert nvml_module.nvml_memory("GPU-d") is None
    assert nvml_module.nvml_memory("GPU-unknown") is None
    assert [card["name"] for card in nvml_module.nvml_devices()][-1] == "NVIDIA GB10"


def test_slices_and_processes_can_be_listed() -> None:
    """Under Windows' display driver the memory of a process is not told."""
    nvml = fake_nvml([FakeCard("GPU-1", mig_uuids=("MIG-1",), processes=((7, 2 * GIB), (8, None)))])
    nvml.nvmlInit()
    card = nvml.nvmlDeviceGetHandleByIndex(0)

    assert nvml.nvmlDeviceGetMigMode(card) == [1, 1]
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, 0)) == "MIG-1"
    assert [(p.pid, p.usedGpuMemory) for p in nvml.nvmlDeviceGetComputeRunningProcesses(card)] == [
        (7, 2 * GIB),
        (8, None),
    ]
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(1)
    with pytest.raises(pynvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetHandleByUUID("GPU-2")
