"""Stand-ins for what is slow, expensive or absent: a device whose memory is a formula, and a clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from ..core.probe_results import DeviceInfo, ProbeResult, ThroughputRow
from ..device.out_of_memory import classify
from ..memory.caching_allocator import CachingAllocator, OutOfReserveError
from ..memory.trace import TraceModel
from ..probing.memory_fit import SizeTried
from ..theory.step_time import fit_step_time

GIB = 1 << 30

FaultKind = Literal["oom", "cublas", "cudnn", "sticky", "spill", "killed", "limit", "too_few"]


def known_probe(
    micro_batch_size: int = 512,
    *,
    step_s: tuple[float, float] | None = (0.01, 0.0001),
    n_train_samples: int = 1024,
    **changes: Any,
) -> ProbeResult:
    """Return the probe of a device that is made up, to hand to a search.

    Args:
        micro_batch_size: The largest that fits.
        step_s: (a, c), where a step of n samples takes a + c * n seconds; None leaves step times unknown.
        n_train_samples: Of the objective that it is for.
        changes: Other fields of the result.

    Example:
        >>> known_probe(step_s=(0.01, 0.0001)).step_time_line.saturation_batch
        100.0
    """
    rows: tuple[ThroughputRow, ...] = ()
    if step_s is not None:
        times = {n: step_s[0] + step_s[1] * n for n in (4, 32, 256, 1024)}
        rows = tuple(ThroughputRow(n, n / seconds, seconds, 0.02) for n, seconds in times.items())
    values: dict[str, Any] = {
        "eval_batch_size": micro_batch_size,
        "limited_by": "memory",
        "proof": "bracket",
        "capacity_bytes": GIB,
        "usable_bytes": GIB,
        "budget_bytes": GIB,
        "peak_bytes": GIB,
        "memory_line": None,
        "memory_by_category": None,
        "throughput": rows,
        "step_time_line": fit_step_time(rows),
        "attempts": (),
        "device": DeviceInfo("cpu", "made up"),
    }
    return ProbeResult(micro_batch_size, n_train_samples=n_train_samples, **(values | changes))


class FakeClock:
    """A clock that stands still until it is told to move; give it wherever a `Clock` is wanted."""

    def __init__(self, now_s: float = 0.0) -> None:
        """Start at a time."""
        self.now_s = now_s

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass; it also serves as `sleep`."""
        self.now_s += seconds


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong on a `FakeDevice`.

    Attributes:
        kind: `oom`: torch.OutOfMemoryError at one allocation or step, whatever is free. `cublas`, `cudnn`: their words
            for no memory, as plain RuntimeError. `sticky`: an illegal access, after which every call fails until
            `restart`. `spill`: from then on memory goes to the host, as on Windows: nothing fails and steps take ten
            times as long. `killed`: the process is gone, as by SIGKILL. `limit`: a size from `from_size` on is too
            large for a kernel, whatever the memory. `too_few`: one sample is too few, as for BatchNorm.
        at_step: Step since the last restart, counted from 1, at which it happens; None: at every step it applies to.
        from_size: It applies to sizes from this on.
    """

    kind: FaultKind
    at_step: int | None = None
    from_size: int = 1


class ProcessDied(BaseException):  # Not an error of the program: what a parent sees when a child is killed.
    """The simulated process was ended by a signal; only `FakeDevice.restart` helps."""

    def __init__(self, exit_code: int) -> None:
        """Keep the exit code: the negative number of the signal."""
        super().__init__(f"the process was ended by signal {-exit_code}")
        self.exit_code = exit_code


class FakeDevice:
    """A device of a known capacity on which a training step takes a known amount of memory.

    The memory of a step is a formula (`gib_per_sample`, or any function `memory` of the size), or a `TraceModel` that
    is run through a model of CUDA's caching allocator, fragmentation and retries included.

    Args:
        capacity_gib: What the device has.
        gib_per_sample: Slope of the formula.
        fixed_gib: Its constant: weights, gradients, optimizer state.
        memory: Peak bytes at a size; instead of the slope and the constant.
        trace: Allocations of a traced step; instead of a formula.
        context_gib: What the driver takes for the process.
        foreign_gib: What other processes use; change the attribute `foreign_bytes` while it runs.
        noise: Standard deviation of a measured peak, as a share of it.
        seconds: Seconds of a step at a size; advances `clock`.
        faults: What goes wrong.
        seed: Of the noise.

    Example:
        >>> device = FakeDevice(capacity_gib=80, gib_per_sample=1.0)
        >>> device.largest_fit(budget_bytes=72 * GIB)
        72
        >>> device.attempt(81, budget_bytes=72 * GIB).outcome
        'oom'
    """

    def __init__(
        self,
        *,
        capacity_gib: float = 8.0,
        gib_per_sample: float | None = None,
        fixed_gib: float = 0.0,
        memory: Callable[[int], float] | None = None,
        trace: TraceModel | None = None,
        context_gib: float = 0.0,
        foreign_gib: float = 0.0,
        noise: float = 0.0,
        seconds: Callable[[int], float] = lambda size: 0.01 + 0.001 * size,
        faults: Sequence[Fault] = (),
        seed: int = 0,
    ) -> None:
        """Make the device; it starts idle."""
        if sum(given is not None for given in (gib_per_sample, memory, trace)) != 1:
            raise ValueError("FakeDevice needs exactly one of gib_per_sample, memory and trace.")
        slope = gib_per_sample or 0.0
        self._memory = memory or (lambda size: (fixed_gib + slope * size) * GIB)
        self._trace = trace
        self.capacity_bytes = round(capacity_gib * GIB)
        self.context_bytes = round(context_gib * GIB)
        self.foreign_bytes = round(foreign_gib * GIB)
        self.noise = noise
        self.seconds = seconds
        self.faults = tuple(faults)
        self.clock = FakeClock()
        self.sizes: list[int] = []
        """Sizes of all steps so far, in order."""
        self._random = random.Random(seed)
        self.restart()

    def restart(self) -> None:
        """Begin a fresh process: memory is free, retries are forgotten, a lost context works again."""
        self.steps = 0
        self.retries = 0
        self.peak_bytes = self.context_bytes
        self._spilling = False
        self._lost: Exception | ProcessDied | None = None

    @property
    def usable_bytes(self) -> int:
        """What the allocator of this process may reserve."""
        return max(0, self.capacity_bytes - self.context_bytes - self.foreign_bytes)

    def step(self, size: int) -> int:
        """Run one training step and return its peak bytes, context included, noise not.

        Raises:
            torch.OutOfMemoryError: It does not fit.
            RuntimeError: A fault of a library, in its words; torch.AcceleratorError where the context is lost.
            ValueError: One sample is too few.
            ProcessDied: The process was killed.
        """
        if self._lost is not None:
            raise self._lost
        self.steps += 1
        self.sizes.append(size)
        for fault in self.faults:
            if size >= fault.from_size and fault.at_step in (None, self.steps):
                self._fail(fault, size)
        reserved = self._reserve(size)
        self.clock.advance(self.seconds(size) * (10 if self._spilling and reserved > self.usable_bytes else 1))
        self.peak_bytes = max(self.peak_bytes, self.context_bytes + reserved)
        return self.context_bytes + reserved

    def attempt(self, size: int, *, budget_bytes: int | None = None, n_steps: int = 2) -> SizeTried:
        """Try a size in a fresh process and say what came of it, as the probe does: `Growth.add` takes the answer.

        Args:
            size: Micro-batch size.
            budget_bytes: A peak above it does not count as fitting; default: all that is usable, and the context.
            n_steps: Steps to run.

        Raises:
            RuntimeError: An error that is not about memory, as it was raised.
        """
        budget = self.usable_bytes + self.context_bytes if budget_bytes is None else budget_bytes
        self.restart()
        try:
            for _ in range(n_steps):
                self.step(size)
        except ProcessDied:
            return SizeTried(size, False, None, "oom")
        except (RuntimeError, ValueError) as error:
            outcome = classify(error)
            if outcome == "error":
                raise
            return SizeTried(size, False, None, outcome)
        peak = round(self.peak_bytes * (1 + self.noise * self._random.gauss(0, 1)))
        return SizeTried(size, peak <= budget and self.retries == 0, peak, "ok")

    def fits(self, size: int, *, budget_bytes: int | None = None) -> bool:
        """Say whether a size fits, without noise, faults and retries."""
        budget = self.usable_bytes + self.context_bytes if budget_bytes is None else budget_bytes
        if self._trace is None:
            return self.context_bytes + self._memory(size) <= min(budget, self.capacity_bytes - self.foreign_bytes)
        allocator = self._run_trace(size)
        return (
            allocator is not None
            and not allocator.retries
            and self.context_bytes + allocator.peak_reserved_bytes <= budget
        )

    def largest_fit(self, *, budget_bytes: int | None = None, limit: int = 4096) -> int | None:
        """Return the largest size up to `limit` that fits, by trying every one: the truth for the test of a search."""
        return max((size for size in range(1, limit + 1) if self.fits(size, budget_bytes=budget_bytes)), default=None)

    def _reserve(self, size: int) -> int:
        if self._trace is not None:
            allocator = self._run_trace(size)
            if allocator is None:
                self._out_of_memory(size * GIB // 64)
            self.retries += allocator.retries
            return allocator.peak_reserved_bytes
        needed = round(self._memory(size))
        if needed > self.usable_bytes and not self._spilling:
            self._out_of_memory(needed)
        return needed

    def _run_trace(self, size: int) -> CachingAllocator | None:
        assert self._trace is not None
        allocator = CachingAllocator(None if self._spilling else self.usable_bytes)
        signs, storages, nbytes = (array.tolist() for array in self._trace.events_at(size))
        addresses: dict[int, int] = {}
        try:
            for sign, storage in zip(signs, storages, strict=True):
                if sign > 0:
                    addresses[storage] = allocator.allocate(nbytes[storage])
                else:
                    allocator.free(addresses.pop(storage))
        except OutOfReserveError:
            return None
        return allocator

    def _out_of_memory(self, requested_bytes: int) -> NoReturn:
        import torch

        wanted, total, free = (n / GIB for n in (requested_bytes, self.capacity_bytes, self.usable_bytes))
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {wanted:.2f} GiB. GPU 0 has a total capacity of {total:.2f} GiB "
            f"of which {free:.2f} GiB is free."
        )

    def _fail(self, fault: Fault, size: int) -> None:
        import torch

        if fault.kind == "oom":
            self._out_of_memory(GIB)
        elif fault.kind == "cublas":
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        elif fault.kind == "cudnn":
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        elif fault.kind == "sticky":
            accelerator_error: Callable[[str], Exception] = getattr(
                torch, "AcceleratorError", RuntimeError
            )  # Since torch 2.8.
            self._lost = accelerator_error("CUDA error: an illegal memory access was encountered")
            raise self._lost
        elif fault.kind == "killed":
            self._lost = ProcessDied(-9)
            raise self._lost
        elif fault.kind == "limit":
            raise RuntimeError("CUDA error: invalid configuration argument")
        elif fault.kind == "too_few" and size == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size torch.Size([{size}, 8])"
            )
        elif fault.kind == "spill":
            self._spilling = True
