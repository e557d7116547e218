"""What CUDA says of a card and what a process takes of it, on a stand-in for `torch.cuda`."""

from __future__ import annotations

import socket
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bstune.tuner.core.errors import DeviceError
from bstune.tuner.core.probe_results import DeviceInfo
from bstune.tuner.device import cuda as cuda_module
from bstune.tuner.device import memory, meter, nvml
from bstune.tuner.device.cuda import CudaFacts
from bstune.tuner.device.memory import Memory
from bstune.tuner.testing.fake_device import GIB, FakeClock
from bstune.tuner.testing.fake_nvml import FakeCard, fake_nvml
from bstune.tuner.workers import fork_server, wire, worker
from bstune.tuner.workers.message_json import decode
from bstune.tuner.workers.messages import Failure, Job, TryCuda

MIB = 1 << 20


def use_nvml(monkeypatch: pytest.MonkeyPatch, *cards: FakeCard, **options: Any) -> None:
    """Put a stand-in in the place of pynvml."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(cards, **options))


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
    peak.look()
    alone = peak.read()
    hold = "held = bytearray(b'x') * (96 << 20); print('ready', flush=True); input()"
    between = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with subprocess.Popen([sys.executable, "-c", between], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        peak.look()
        child.communicate(b"\n")

    assert 96 * MIB < peak.read() - alone < 256 * MIB


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
