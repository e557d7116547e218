"""What a device has, what is left of it, and which errors mean that it ran out: by stand-ins where there is no card."""

from __future__ import annotations

import socket
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bstune.tuner.core.errors import DeviceError
from bstune.tuner.core.results import DeviceInfo
from bstune.tuner.device import cuda as cuda_module
from bstune.tuner.device import memory, meter, nvml
from bstune.tuner.device.cuda import CudaFacts
from bstune.tuner.device.memory import Memory
from bstune.tuner.device.nvml import CudaProcess
from bstune.tuner.device.out_of_memory import classify
from bstune.tuner.testing.fake_device import GIB, FakeClock
from bstune.tuner.testing.fake_nvml import FakeCard, fake_nvml
from bstune.tuner.workers import fork_server, wire, worker
from bstune.tuner.workers.message_json import decode
from bstune.tuner.workers.messages import Failure, Job, TryCuda

MIB = 1 << 20

# --- containers -----------------------------------------------------------------------------------------------------


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files below a folder and return it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def limits(tmp_path: Path, proc: str, files: dict[str, str]) -> list[tuple[int, int]]:
    """Return the limits of a made-up machine."""
    (tmp_path / "cgroup").write_text(proc)
    return memory.cgroup_limits(tmp_path / "cgroup", tree(tmp_path / "fs", files))


def test_every_ancestor_of_a_version_2_group_may_limit_it(tmp_path: Path) -> None:
    """The tightest limit counts, which need not be the process's own; a level without a limit says `max`."""
    found = limits(
        tmp_path,
        "0::/user/job/step\n",
        {
            "user/memory.max": "4000",
            "user/memory.current": "3500",
            "user/memory.stat": "anon 9\ninactive_file 500\n",
            "user/job/memory.max": "max",
            "user/job/memory.current": "3000",
            "user/job/step/memory.max": "8000",
            "user/job/step/memory.current": "1000",
        },
    )

    assert found == [(8000, 1000), (4000, 3000)]


def test_a_high_water_mark_counts_as_a_limit(tmp_path: Path) -> None:
    """Above `memory.high` the kernel throttles a group until it hardly moves."""
    files = {"a/memory.max": "9000", "a/memory.high": "6000", "a/memory.current": "100"}

    assert limits(tmp_path, "0::/a\n", files) == [(6000, 100)]


def test_version_1_says_no_limit_with_a_large_number(tmp_path: Path) -> None:
    """And other controllers of version 1 have nothing to say."""
    none = {"memory/a/memory.limit_in_bytes": "9223372036854771712", "memory/a/memory.usage_in_bytes": "5"}
    proc = "12:cpu,cpuacct:/a\n5:memory:/a\n"

    assert limits(tmp_path, proc, none) == []
    some = {
        "memory/a/memory.limit_in_bytes": "7000",
        "memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 2\n",
    }
    assert limits(tmp_path, proc, some) == [(7000, 3)]


def test_inside_a_container_the_path_may_be_the_hosts(tmp_path: Path) -> None:
    """It does not exist in the container, whose root then has the limit."""
    assert limits(tmp_path, "0::/docker/4f6c\n", {"memory.max": "5000", "memory.current": "700"}) == [(5000, 700)]


def test_a_machine_without_cgroups_has_no_limits(tmp_path: Path) -> None:
    """As on macOS."""
    assert memory.cgroup_limits(tmp_path / "absent", tmp_path) == []


def test_memory_is_the_least_that_anyone_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Total and available may be bounded by different groups."""
    ram = types.SimpleNamespace(total=100, available=60)
    monkeypatch.setattr("psutil.virtual_memory", lambda: ram)

    monkeypatch.setattr(memory, "cgroup_limits", lambda: [(80, 70), (90, 40)])
    assert memory.cpu_memory() == Memory(80, 10, "cgroup")
    monkeypatch.setattr(memory, "cgroup_limits", list)
    assert memory.cpu_memory() == Memory(100, 60, "ram")


# --- NVML -----------------------------------------------------------------------------------------------------------


def use_nvml(monkeypatch: pytest.MonkeyPatch, *cards: FakeCard, **options: Any) -> None:
    """Put a stand-in in the place of pynvml."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(cards, **options))


@pytest.mark.parametrize("why", ["no module", "no driver", "a module that fails"])
def test_without_nvml_nothing_is_known_and_nothing_fails(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Three ways not to have it."""
    if why == "no module":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif why == "no driver":
        use_nvml(monkeypatch, driver=None)
    else:
        monkeypatch.setitem(sys.modules, "pynvml", types.ModuleType("pynvml"))
    monkeypatch.setattr(nvml, "DRIVER_NODES", ())

    assert nvml.nvml_devices() == []
    assert nvml.nvml_memory("GPU-a") is None
    assert nvml.cuda_processes("GPU-a") == ()
    assert not nvml.card_in_sight()


def test_a_whole_card_is_not_taken_for_the_slice_that_cuda_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA gives the card's own UUID for a slice, the totals differ, and NVML is not believed."""
    use_nvml(monkeypatch, FakeCard("GPU-a", total_bytes=80 * GIB, free_bytes=70 * GIB))

    assert nvml.nvml_memory("a", total_bytes=10 * GIB) is None
    known = nvml.nvml_memory("a", total_bytes=79 * GIB)
    assert known is not None
    assert known.available_bytes == 70 * GIB


def test_processes_are_listed_where_they_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver need not tell how much each of them holds."""
    use_nvml(monkeypatch, FakeCard("GPU-a", processes=((7, 2 * GIB), (8, None))))

    assert nvml.cuda_processes("a") == (CudaProcess(7, 2 * GIB), CudaProcess(8, None))
    assert nvml.cuda_processes("GPU-unknown") == ()


@pytest.mark.parametrize(("hidden", "seen"), [(None, True), ("0", True), ("", False), ("-1", False)])
def test_cards_that_the_user_has_hidden_are_not_tried(
    monkeypatch: pytest.MonkeyPatch, hidden: str | None, seen: bool
) -> None:
    """`CUDA_VISIBLE_DEVICES=` means: use the CPU, and say nothing of the card."""
    use_nvml(monkeypatch, FakeCard("GPU-a"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)

    assert nvml.card_in_sight() is seen


def test_a_card_without_nvml_is_in_sight_by_its_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On boards where NVML is missing."""
    use_nvml(monkeypatch, driver=None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvmap").touch()
    monkeypatch.setattr(nvml, "DRIVER_NODES", (str(tmp_path / "nvmap"),))

    assert nvml.card_in_sight()


@pytest.mark.parametrize(
    ("after_mib", "says"), [(10_000, None), (9_901, None), (10_099, None), (8_976, "-1.00 GiB"), (11_024, "+1.00 GiB")]
)
def test_free_memory_that_moves_is_reported(after_mib: int, says: str | None) -> None:
    """From 1 % on, in either direction, with the figures."""
    text = memory.memory_moved(
        Memory(20_000 * MIB, 10_000 * MIB, "nvml"), Memory(20_000 * MIB, after_mib * MIB, "nvml")
    )

    assert (text is None) == (says is None)
    assert says is None or (text is not None and says in text)


# --- torch.cuda -----------------------------------------------------------------------------------------------------


class FakeCuda:
    """The functions of torch.cuda that bstune uses, for one card; its memory is that of a `FakeCard`."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        card: FakeCard,
        *,
        bare_uuid: str,
        context_mib: int = 400,
        **properties: Any,
    ) -> None:
        """Replace the functions."""
        self.card = card
        self.context_bytes = context_mib * MIB
        self.total_bytes: int = properties.pop("total_memory", card.total_bytes)
        self.free_bytes: int = card.free_bytes if card.free_bytes is not None else self.total_bytes
        self.reserved_bytes = self.peak_bytes = self.retries = 0
        self.fraction = 1.0
        self.lost = False
        self._opened = False
        found = types.SimpleNamespace(name=card.name, uuid=bare_uuid, total_memory=self.total_bytes, **properties)
        replaced: dict[str, Callable[..., Any]] = {
            "init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "get_device_properties": lambda device: found,
            "mem_get_info": self.mem_get_info,
            "memory_reserved": lambda device: self.reserved_bytes,
            "max_memory_reserved": lambda device: self.peak_bytes,
            "memory_stats": lambda device: {"num_alloc_retries": self.retries},
            "reset_peak_memory_stats": lambda device: setattr(self, "peak_bytes", self.reserved_bytes),
            "empty_cache": lambda: None,
            "synchronize": lambda device: self.fail_if_lost(),
            "set_per_process_memory_fraction": lambda fraction, device: setattr(self, "fraction", fraction),
            "get_per_process_memory_fraction": lambda device: self.fraction,
        }
        for name, function in replaced.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(torch, "zeros", self.zeros)
        monkeypatch.setattr(cuda_module, "_context_bytes", {})
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def open(self) -> None:
        """Make the context, once."""
        if not self._opened:
            self._opened = True
            self.take(self.context_bytes)

    def zeros(self, *size: int, device: str) -> torch.Tensor:
        """Return a tensor that this machine can make."""
        self.open()
        return torch.ones(size)

    def take(self, n: int) -> None:
        """Let memory go to whoever."""
        self.free_bytes -= n
        if self.card.free_bytes is not None:
            self.card.free_bytes -= n

    def reserve(self, n: int) -> None:
        """Let the caching allocator take memory, or give it back."""
        self.take(n)
        self.reserved_bytes += n
        self.peak_bytes = max(self.peak_bytes, self.reserved_bytes)

    def fail_if_lost(self) -> None:
        """Raise what every call raises once the context is lost."""
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def mem_get_info(self, device: str) -> tuple[int, int]:
        """Return (free, total)."""
        self.fail_if_lost()
        self.open()
        return self.free_bytes, self.total_bytes


def a_card(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeCuda:
    """Return a card of 16 GiB of which 12 are free, and on which another process holds the rest."""
    card = FakeCard("GPU-a", free_bytes=12 * GIB, processes=((7, 4 * GIB),))
    use_nvml(monkeypatch, FakeCard("GPU-b", total_bytes=80 * GIB, free_bytes=80 * GIB), card)
    return FakeCuda(monkeypatch, card, bare_uuid="a", **options)


def test_a_card_is_described_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of torch is the second of NVML here; free memory is what is left beside a context of our own."""
    a_card(monkeypatch)

    facts = cuda_module.try_cuda("auto")

    assert (facts.device, facts.uuid, facts.unified) == ("cuda:0", "GPU-a", False)
    assert (facts.total_bytes, facts.free_bytes) == (16 * GIB, 12 * GIB - 400 * MIB)


def test_a_slice_has_a_uuid_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the user names it in CUDA_VISIBLE_DEVICES, or as torch gives it."""
    card = FakeCard("GPU-a", total_bytes=80 * GIB, free_bytes=80 * GIB, mig_uuids=("MIG-1", "MIG-2"))
    use_nvml(monkeypatch, card)
    FakeCuda(monkeypatch, card, bare_uuid="2", total_memory=40 * GIB)
    assert cuda_module.try_cuda("cuda").uuid == "MIG-2"

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    facts = cuda_module.try_cuda("cuda:0")

    assert facts.uuid == "MIG-1"
    found = nvml.nvml_memory(facts.uuid, total_bytes=facts.total_bytes)
    assert found == Memory(40 * GIB, (80 * GIB - 400 * MIB) // 2, "nvml")


@pytest.mark.parametrize("integrated", [{"is_integrated": 1}, {}])
def test_a_card_that_shares_the_hosts_memory(monkeypatch: pytest.MonkeyPatch, integrated: dict[str, int]) -> None:
    """NVML does not support the question; then the least counts of what CUDA and the host's kernel say."""
    card = FakeCard("GPU-d", name="NVIDIA GB10", total_bytes=None, free_bytes=None)
    use_nvml(monkeypatch, card)
    FakeCuda(monkeypatch, card, bare_uuid="d", total_memory=120 * GIB, **integrated)
    monkeypatch.setattr(memory, "cpu_memory", lambda: Memory(120 * GIB, 90 * GIB, "ram"))
    monkeypatch.setattr(cuda_module, "cpu_memory", memory.cpu_memory)

    facts = cuda_module.try_cuda("cuda")

    assert facts.unified
    assert nvml.nvml_memory(facts.uuid, total_bytes=facts.total_bytes) is None
    assert cuda_module.cuda_memory(facts) == Memory(120 * GIB, 90 * GIB, "cuda")


def test_host_memory_bounds_no_card_that_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small host with a large card."""
    monkeypatch.setattr(memory, "cpu_memory", lambda: Memory(8 * GIB, 4 * GIB, "ram"))
    monkeypatch.setattr(cuda_module, "cpu_memory", memory.cpu_memory)

    assert cuda_module.cuda_memory(CudaFacts("cuda:0", "a", "GPU-a", 80 * GIB, 79 * GIB)).available_bytes == 79 * GIB


def test_a_card_that_does_not_work_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch's words, as an error of the device."""
    with pytest.raises(DeviceError, match="sees no working CUDA driver or card"):
        cuda_module.try_cuda("cuda")
    cuda = a_card(monkeypatch)
    cuda.lost = True
    with pytest.raises(DeviceError, match=r"cuda does not work: .*illegal memory access"):
        cuda_module.try_cuda("cuda")


def test_the_context_is_what_disappears_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes hold is not counted, and a second look finds the same."""
    cuda = a_card(monkeypatch, context_mib=300)

    assert cuda_module.open_context("cuda:0") == 300 * MIB
    cuda.reserve(GIB)
    assert cuda_module.open_context("cuda:0") == 300 * MIB


def test_without_nvml_the_context_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory is then known from CUDA only, which has taken the context off already."""
    a_card(monkeypatch)
    use_nvml(monkeypatch, driver=None)

    assert cuda_module.open_context("cuda:0") == 0


def test_memory_of_a_process_that_has_just_ended_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver takes it back with a delay; but nobody waits for ever."""
    cuda, clock = a_card(monkeypatch), FakeClock()

    def sleep(seconds: float) -> None:
        clock.advance(seconds)
        if clock() > 0.5 and cuda.card.free_bytes == 12 * GIB:
            cuda.take(-4 * GIB)

    assert cuda_module.open_context("cuda:0", wait_for_bytes=15 * GIB, clock=clock, sleep=sleep) == 400 * MIB
    assert 0.5 < clock() < 0.7
    monkeypatch.setattr(cuda_module, "_context_bytes", {})
    cuda_module.open_context("cuda:0", wait_for_bytes=17 * GIB, clock=clock, sleep=sleep)
    assert clock() < 2 * cuda_module.SETTLE_S


@pytest.mark.parametrize(
    ("limit_bytes", "share"), [(8 * GIB, (8 * GIB - 400 * MIB) / (16 * GIB)), (20 * GIB, 1.0), (100 * MIB, 0.0)]
)
def test_a_limit_contains_the_context(monkeypatch: pytest.MonkeyPatch, limit_bytes: int, share: float) -> None:
    """The fraction of torch is of the card's total and of the allocator alone."""
    cuda = a_card(monkeypatch)
    monkeypatch.setattr(cuda_module, "SETTLE_S", 0.0)

    cuda_module.limit_cuda_memory("cuda:0", limit_bytes)

    assert cuda.fraction == share


def test_a_failure_is_near_the_capacity_of_card_or_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than 5 % left of either; after a lost context never."""
    cuda = a_card(monkeypatch)

    assert cuda_module.near_capacity("cpu")
    assert not cuda_module.near_capacity("cuda:0")
    cuda.fraction = 0.25
    cuda.reserve(int(3.9 * GIB))
    assert cuda_module.near_capacity("cuda:0")
    cuda.fraction = 1.0
    assert not cuda_module.near_capacity("cuda:0")
    cuda.take(7 * GIB)
    assert cuda_module.near_capacity("cuda:0")
    cuda.lost = True
    assert not cuda_module.near_capacity("cuda:0")


def test_a_meter_counts_what_this_process_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Context, allocator and what libraries take beside it; not other processes' memory, nor retries from before."""
    cuda = a_card(monkeypatch)
    cuda.retries = 5
    seen = meter.ProcessMeter("cuda:0")
    seen.phase("train")
    cuda.reserve(3 * GIB)
    cuda.take(50 * MIB)  # Kernels are loaded when they are first used.
    seen.step_done()
    cuda.reserve(-GIB)
    cuda.retries = 6
    seen.phase("validation")
    cuda.take(2 * GIB)  # Somebody else comes.

    reading = seen.read()

    assert reading.start_bytes == 400 * MIB
    assert reading.peak_bytes == 3 * GIB + 450 * MIB
    assert reading.alloc_retries == 1


def test_the_peak_on_cpu_counts_loader_workers_of_any_depth() -> None:
    """What a grandchild held when it was looked at stays in the peak after it has ended."""
    peak = meter.PeakMemory("cpu")
    alone = peak.read()
    hold = "held = bytearray(b'x') * (96 << 20); print('ready', flush=True); input()"
    between = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with subprocess.Popen([sys.executable, "-c", between], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        peak.look()
        child.communicate(b"\n")

    assert 96 * MIB < peak.read() - alone < 256 * MIB


# --- the host's side ------------------------------------------------------------------------------------------------


def a_host(facts: CudaFacts) -> fork_server.Host:
    """Return a host on a card, without its processes."""
    made = fork_server.Host.__new__(fork_server.Host)
    made.device = facts.device
    made.device_info = DeviceInfo("cuda", facts.name, facts.uuid, facts.total_bytes)
    made.memory_bytes, made.jobs = None, 1
    return made


def test_a_host_asks_cuda_where_nvml_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML is asked at every look, and the user's limit counts where it is below both."""
    cuda = a_card(monkeypatch)
    made = a_host(cuda_module.try_cuda("cuda"))
    assert made.memory() == Memory(16 * GIB, 12 * GIB - 400 * MIB, "nvml")
    made.memory_bytes = 8 * GIB
    assert made.usable_bytes() == 8 * GIB

    use_nvml(monkeypatch, driver=None)
    monkeypatch.setattr(made, "_cuda_facts", lambda name: cuda_module.try_cuda(name))
    cuda.take(5 * GIB)

    assert made.memory() == Memory(16 * GIB, 7 * GIB - 400 * MIB, "cuda")
    assert made.usable_bytes() == 7 * GIB - 400 * MIB


def test_a_host_says_who_took_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """After it has waited for the driver to take back what ended processes held."""
    cuda = a_card(monkeypatch)
    monkeypatch.setattr(fork_server, "SETTLE_S", 0.0)
    made = a_host(cuda_module.try_cuda("cuda"))
    before = made.memory()

    assert made.memory_moved(before) is None
    cuda.take(2 * GIB)
    text = made.memory_moved(before)

    assert text is not None
    assert "-2.00 GiB" in text
    assert "7 with 4.00 GiB" in text


def test_an_error_that_destroys_the_context_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be read off the card any more, and the user's bug is shown all the same."""
    cuda = a_card(monkeypatch)
    ours, theirs = socket.socketpair()

    def do(job: Job, objective: Any, connection: Any, meters: list[meter.ProcessMeter]) -> None:
        meters.append(meter.ProcessMeter(job.device))
        cuda.lost = True
        raise RuntimeError("CUDA error: device-side assert triggered")

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(worker, "_do", do)
    monkeypatch.setattr("os._exit", leave)
    with ours, theirs:
        with pytest.raises(SystemExit):
            worker.run_job(Job(TryCuda("cuda:0"), "cuda:0", 1, 8 * GIB), None, theirs)  # type: ignore[arg-type]
        failure = decode(wire.receive(ours), Failure)

    assert (failure.outcome, failure.reading) == ("error", None)
    assert "device-side assert" in failure.message


# --- errors ---------------------------------------------------------------------------------------------------------


def raised(function: Callable[[], object]) -> BaseException:
    """Return what a call raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # Any error: the caller looks at it.
        function()
    return caught.value


def wrapped() -> None:
    """Raise as a training framework does that tells of an error with one of its own."""
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    except torch.OutOfMemoryError as error:
        raise ValueError("the training step failed") from error


OUT_OF_MEMORY: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15.00 GiB"),
    torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2 GiB"),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB, max allowed: 18.13 GB)"
    ),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131, please report a bug to PyTorch.'
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4096 bytes."
    ),
    RuntimeError("could not create a primitive"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. "),
    RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory."
    ),
    OSError(12, "Cannot allocate memory"),
    MemoryError(),
    raised(lambda: np.empty(1 << 59, dtype=np.uint8)),
    raised(lambda: torch.empty(1 << 59, dtype=torch.uint8)),
    raised(wrapped),
]
LIMITS: list[BaseException] = [
    RuntimeError("CUDA error: invalid configuration argument"),
    RuntimeError("Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got false."),
    RuntimeError("batch size (dim 0) must be less than 65536"),
    raised(lambda: torch.nn.BatchNorm1d(4)(torch.ones(1, 4))),
]
ERRORS: list[BaseException] = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError(
        "CUDA error: an illegal memory access was encountered when calling cublasCreate: CUBLAS_STATUS_ALLOC_FAILED"
    ),
    RuntimeError("CUDA error: uncorrectable ECC error encountered (Xid 48)"),
    RuntimeError("error: there was an error in the training loop"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("Triton Error: out of resource: shared memory, Required: 262144, Hardware limit: 101376"),
    ValueError("CUDA out of memory is what this user's own check calls it"),
    FileNotFoundError(2, "No such file or directory"),
    KeyboardInterrupt(),
    raised(lambda: torch.nn.Linear(4, 2)(torch.ones(3, 5))),
]
EITHER: list[BaseException] = [
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm(...)`"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


def name_of(error: BaseException) -> str:
    """Return a short name for a test."""
    return f"{type(error).__name__}-{str(error)[:40]}"


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=name_of)
def test_out_of_memory_in_any_spelling(error: BaseException) -> None:
    """Wherever the device stands: these words have one meaning."""
    assert classify(error) == classify(error, near_cap=False) == "oom"


@pytest.mark.parametrize("error", LIMITS, ids=name_of)
def test_limits_of_size_are_not_memory(error: BaseException) -> None:
    """More memory would not help, and a smaller size does."""
    assert classify(error) == "limit"


@pytest.mark.parametrize("error", ERRORS, ids=name_of)
def test_bugs_are_not_memory(error: BaseException) -> None:
    """Not even where the word memory stands in them, and with the device full."""
    assert classify(error, near_cap=True) == "error"


@pytest.mark.parametrize("error", EITHER, ids=name_of)
def test_what_libraries_say_of_memory_and_of_bugs_alike(error: BaseException) -> None:
    """The state of the device decides: nearly full, it was memory."""
    assert classify(error, near_cap=True) == "oom"
    assert classify(error, near_cap=False) == "error"


def test_the_accelerators_own_error_is_read_like_any_other() -> None:
    """The class of torch for what the driver says, both for memory and for bugs."""
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is None:
        pytest.skip("this torch has no AcceleratorError")

    assert classify(accelerator_error("CUDA error: out of memory")) == "oom"
    assert classify(accelerator_error("CUDA error: device-side assert triggered")) == "error"
