"""What the checks of `gpu.py` run on: a CUDA card, or this machine's CPU and the simulated allocator in its place."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from bstune.tuner.core.probe_results import Outcome
from bstune.tuner.device import cuda
from bstune.tuner.device import nvml as nvml_module
from bstune.tuner.device.cuda import near_capacity
from bstune.tuner.device.out_of_memory import classify, first_line
from bstune.tuner.memory.caching_allocator import replay
from bstune.tuner.memory.cuda_recorder import HistoryRecorder, history, slim, trace_of
from bstune.tuner.memory.dispatch_recorder import recording
from bstune.tuner.memory.trace import Trace, TraceModel
from bstune.tuner.testing.fake_device import FakeDevice, Fault
from bstune.tuner.testing.fake_nvml import FakeCard, fake_nvml
from gpu_models import GPT2, RESNET50
from model_kinds import SMALL, Kind
from torch import nn
from torch.nn import functional

MIB, GIB = 1 << 20, 1 << 30
CHILD_S = 90.0
DEVICE = "cuda:0"


class NotRunError(Exception):
    """A check that cannot be made here, and why."""


class Model(Protocol):
    """A kind of model with its data."""

    @property
    def name(self) -> str:
        """How it is called in the results."""

    def model(self) -> nn.Module:
        """Return a fresh model."""

    def batch(self, n: int) -> tuple[Any, torch.Tensor]:
        """Return n samples and their labels."""


@dataclass(frozen=True)
class Seen:
    """What training steps of one size did."""

    outcome: Outcome
    allocated_bytes: int
    """Peak."""
    reserved_bytes: int
    """Peak."""
    retries: int
    s_per_step: float
    trace: Trace | None = None
    snapshot: dict[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class ErrorSeen:
    """An error at the edge of the card, and what bstune takes it for."""

    where: str
    kind: str
    message: str
    outcome: Outcome
    expected: Outcome


@dataclass(frozen=True)
class ContextSeen:
    """What a fresh process reads before and after its CUDA context."""

    context_bytes: int
    nvml_free_bytes: int
    nvml_total_bytes: int
    cuda_free_bytes: int
    cuda_total_bytes: int
    uuid: str
    n_processes: int


@dataclass(frozen=True)
class Case:
    """One search: a model on an emulated card."""

    kind: Model
    limit_bytes: int
    cap: int


class Card(Protocol):
    """What a check needs."""

    name: str
    kinds: Sequence[Model]
    limits: Sequence[int]
    cases: Sequence[Case]
    timed: Sequence[int]
    large: int
    """A size whose activations fill segments of their own."""

    def run(
        self, kind: Model, n: int, *, limit_bytes: int | None = None, traced: bool = False, benchmark: bool = False
    ) -> Seen:
        """Run training steps at a size."""

    def expandable(self, kind: Model, sizes: Sequence[int], limit_bytes: int) -> list[bool]:
        """Say which sizes fit with expandable segments."""

    def fake_backward(self) -> int:
        """Return how many gradients a backward pass on fake tensors of the device gives."""

    def context(self) -> ContextSeen:
        """Read the memory of the card around a context."""

    def errors(self) -> list[ErrorSeen]:
        """Make the libraries fail at the edge of the card."""

    def time_block(self, kind: Model, n: int) -> tuple[float, float]:
        """Return seconds of a step by the device's events, and by the host's clock."""


def training(kind: Model, n: int, device: str) -> tuple[nn.Module, torch.optim.Optimizer, Any, torch.Tensor]:
    """Build model, optimizer and a batch on the device."""
    with torch.device(device):
        model = kind.model()
        x, y = kind.batch(n)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4), x, y


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: torch.Tensor) -> None:
    """Run one training step."""
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()


class CudaCard:
    """The first CUDA card of this machine."""

    def __init__(self) -> None:
        """Make the context."""
        torch.cuda.init()
        self.name = torch.cuda.get_device_name(DEVICE)
        self.kinds: Sequence[Model] = (
            Kind("mlp", 4096, 0),
            Kind("cnn", 64, 64),
            Kind("gpt", 512, 256),
            Kind("lstm", 512, 64),
        )
        free_bytes, self.total_bytes = torch.cuda.mem_get_info(DEVICE)
        fitting = [limit for limit in (8, 16, 24, 40) if limit * GIB < 0.95 * free_bytes]
        self.limits: Sequence[int] = [limit * GIB for limit in (1, 4) if limit * GIB < 0.95 * free_bytes]
        self.cases: Sequence[Case] = [Case(kind, limit * GIB, 4096) for limit in fitting for kind in (RESNET50, GPT2)]
        self.timed: Sequence[int] = (4, 16, 64, 256)
        self.large = 256

    def run(
        self, kind: Model, n: int, *, limit_bytes: int | None = None, traced: bool = False, benchmark: bool = False
    ) -> Seen:
        """Run two training steps, from an empty allocator on."""
        self._begin(limit_bytes)
        torch.backends.cudnn.benchmark = benchmark
        retries = torch.cuda.memory_stats(DEVICE).get("num_alloc_retries", 0)
        torch.cuda.reset_peak_memory_stats(DEVICE)
        outcome: Outcome = "ok"
        recorder, times, message = history(n, DEVICE) if traced else None, [0.0], ""
        if traced and recorder is None:
            raise NotRunError(f"torch {torch.__version__} keeps the allocator's history under another interface")
        seen: HistoryRecorder | None = None
        try:
            with recorder or contextlib.nullcontext() as seen:
                times = self._steps(kind, n)
        except RuntimeError as error:
            outcome, message = (
                classify(error, near_capacity(DEVICE)),
                f"{type(error).__name__}: {first_line(str(error))}",
            )
        return Seen(
            outcome,
            torch.cuda.max_memory_allocated(DEVICE),
            torch.cuda.max_memory_reserved(DEVICE),
            int(torch.cuda.memory_stats(DEVICE).get("num_alloc_retries", 0) - retries),
            times[-1],
            None if seen is None else seen.trace(),
            None if seen is None or seen.snapshot is None else dict(seen.snapshot),
            message,
        )

    def _begin(self, limit_bytes: int | None = None) -> None:
        """Empty the allocator and set its limit."""
        gc.collect()
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(
            1.0 if limit_bytes is None else min(1.0, limit_bytes / self.total_bytes), DEVICE
        )

    def _steps(self, kind: Model, n: int) -> list[float]:
        parts, times = training(kind, n, DEVICE), []
        for _ in range(2):
            start_s = time.perf_counter()
            step(*parts)
            torch.cuda.synchronize(DEVICE)
            times.append(time.perf_counter() - start_s)
        return times

    def expandable(self, kind: Model, sizes: Sequence[int], limit_bytes: int) -> list[bool]:
        """Run the sizes in a process with that setting, which is read when CUDA starts."""
        at = [other.name for other in self.kinds].index(kind.name)
        answer: list[bool] = _child("expandable", {"kind": at, "sizes": list(sizes), "limit_bytes": limit_bytes})
        return answer

    def fake_backward(self) -> int:
        """Run a small model on fake tensors of the card, whose context lives."""
        self._begin()
        return fake_backward(DEVICE)

    def context(self) -> ContextSeen:
        """Ask a fresh process: this one has its context already."""
        answer = _child("context", {})
        if answer is None:
            raise NotRunError(
                "NVML cannot tell this card's memory (module nvidia-ml-py, driver library or permission missing)"
            )
        return ContextSeen(**answer)

    def errors(self) -> list[ErrorSeen]:
        """Fail in processes of their own: some of these errors destroy the context."""
        self._begin()
        return [ErrorSeen(*row) for row in [*_child("edge", {}), *_child("sticky", {})]]

    def time_block(self, kind: Model, n: int) -> tuple[float, float]:
        """Time blocks of steps, warm, by a pair of events around each."""
        self._begin()
        parts, pairs = training(kind, n, DEVICE), []
        for _ in range(3):
            step(*parts)
        for _ in range(5):
            torch.cuda.synchronize(DEVICE)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start_s = time.perf_counter()
            start.record()
            for _ in range(10):
                step(*parts)
            end.record()
            torch.cuda.synchronize(DEVICE)
            pairs.append((start.elapsed_time(end) / 1e4, (time.perf_counter() - start_s) / 10))
        event_s, wall_s = (statistics.median(times) for times in zip(*pairs, strict=True))
        return event_s, wall_s


class DryCard:
    """A stand-in: real steps of tiny models on CPU, whose allocations run through the allocator's simulator.

    Sizes above `LARGEST_RUN` are not run: their allocations are predicted from two small sizes, so that all takes
    seconds.
    """

    LARGEST_RUN = 48

    def __init__(self) -> None:
        """Begin without traces."""
        self.name = "dry"
        self.kinds: Sequence[Model] = tuple(kind for kind in SMALL if kind.name in ("mlp", "cnn", "gpt"))
        self.limits: Sequence[int] = [48 * MIB]
        self.cases: Sequence[Case] = [Case(self.kinds[1], 96 * MIB, 4096)]
        self.timed: Sequence[int] = (4, 16, 64, 256)
        self.large = 4000
        self._traces: dict[tuple[str, int], Trace] = {}

    def run(
        self, kind: Model, n: int, *, limit_bytes: int | None = None, traced: bool = False, benchmark: bool = False
    ) -> Seen:
        """Trace two steps on CPU, and let the simulator serve them."""
        trace = self._trace(kind, n)
        result = replay(
            trace.signs.tolist(), trace.storages.tolist(), trace.nbytes.tolist(), capacity_bytes=limit_bytes
        )
        seconds = (0.01 + 0.001 * n) * (1.3 if result.retries else 1.0)
        outcome: Outcome = "ok" if result.fits else "oom"
        return Seen(
            outcome, result.allocated_bytes, result.reserved_bytes, result.retries, seconds, trace if traced else None
        )

    def _trace(self, kind: Model, n: int) -> Trace:
        if (kind.name, n) not in self._traces:
            if n <= self.LARGEST_RUN:
                with recording(n, "cpu") as recorder:
                    parts = training(kind, n, "cpu")
                    for _ in range(2):
                        step(*parts)
                self._traces[kind.name, n] = recorder.trace()
            else:
                like = self._trace(kind, 9)
                nbytes = TraceModel.fit([self._trace(kind, 5), like]).nbytes_at(n)
                self._traces[kind.name, n] = replace(like, batch=n, nbytes=nbytes)
        return self._traces[kind.name, n]

    def expandable(self, kind: Model, sizes: Sequence[int], limit_bytes: int) -> list[bool]:
        """Such segments leave no fragments: allocated memory is what counts."""
        return [self.run(kind, n).allocated_bytes <= limit_bytes for n in sizes]

    def fake_backward(self) -> int:
        """Run a small model on fake CPU tensors."""
        return fake_backward("cpu")

    def context(self) -> ContextSeen:
        """Read a made-up NVML around a made-up context."""
        card = FakeCard("GPU-dry", processes=((1, None),))
        real = sys.modules.get("pynvml")
        try:
            sys.modules["pynvml"] = fake_nvml([card])
            before = nvml_module.nvml_memory("dry")
            assert card.free_bytes is not None
            card.free_bytes -= 400 * MIB
            after = nvml_module.nvml_memory("GPU-dry")
            assert before is not None
            assert after is not None
            taken, n = before.available_bytes - after.available_bytes, len(nvml_module.cuda_processes("dry"))
            return ContextSeen(
                taken, after.available_bytes, after.total_bytes, card.free_bytes, after.total_bytes, "GPU-dry", n
            )
        except ImportError as error:
            raise NotRunError("the module nvidia-ml-py is not installed") from error
        finally:
            sys.modules.pop("pynvml", None)
            if real is not None:
                sys.modules["pynvml"] = real

    def errors(self) -> list[ErrorSeen]:
        """Let a fake device fail in each of its ways."""
        found = []
        for kind, expected in (
            ("oom", "oom"),
            ("cublas", "oom"),
            ("cudnn", "oom"),
            ("sticky", "error"),
            ("limit", "limit"),
        ):
            try:
                FakeDevice(gib_per_sample=0.1, faults=[Fault(kind)]).step(1)  # type: ignore[arg-type]
            except RuntimeError as error:
                name = type(error).__name__
                found.append(ErrorSeen(kind, name, str(error), classify(error), expected))  # type: ignore[arg-type]
        return found

    def time_block(self, kind: Model, n: int) -> tuple[float, float]:
        """Return a formula: the clock of a busy machine would say something else each time."""
        return 0.01 + 0.001 * n, 0.0101 + 0.00101 * n


def fake_backward(device: str) -> int:
    """Return how many gradients a backward pass on fake tensors gives."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.ones(1, device=device).sum().item()  # A live context: without one, fake tensors of CUDA end the process.
    with FakeTensorMode(), torch.device(device):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        functional.cross_entropy(model(torch.randn(4, 8)), torch.zeros(4, dtype=torch.long)).backward()
        return sum(parameter.grad is not None for parameter in model.parameters())


# --- what has to run in a process of its own ------------------------------------------------------------------------


def _child(name: str, arguments: dict[str, Any]) -> Any:
    environment = dict(os.environ)
    if name == "expandable":
        environment |= {
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        }
    command = [
        sys.executable,
        str(Path(__file__).with_name("gpu.py")),
        "--child",
        name,
        "--arguments",
        json.dumps(arguments),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CHILD_S, check=False)
    if done.returncode:
        raise RuntimeError(f"the process for {name!r} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, arguments: dict[str, Any]) -> Any:
    """Do what was asked of this process."""
    jobs: dict[str, Callable[..., Any]] = {
        "context": _read_context,
        "edge": _fail_at_the_edge,
        "sticky": _lose_the_context,
        "expandable": _run_sizes,
    }
    return jobs[name](**arguments)


def _read_context() -> dict[str, Any] | None:
    taken = cuda.open_context(DEVICE)
    facts = cuda.try_cuda(DEVICE)
    nvml = nvml_module.nvml_memory(facts.uuid, total_bytes=facts.total_bytes)
    if nvml is None:
        return None
    return {
        "context_bytes": taken,
        "nvml_free_bytes": nvml.available_bytes,
        "nvml_total_bytes": nvml.total_bytes,
        "cuda_free_bytes": torch.cuda.mem_get_info(DEVICE)[0],
        "cuda_total_bytes": facts.total_bytes,
        "uuid": facts.uuid,
        "n_processes": len(nvml_module.cuda_processes(facts.uuid)),
    }


def _fail_at_the_edge() -> list[tuple[str, ...]]:
    """Fill the card, then use each library for the first time: it cannot get its handle or its workspace."""
    a, product = torch.randn(512, 512, device=DEVICE), torch.empty(512, 512, device=DEVICE)
    image, kernel = torch.randn(64, 64, 128, 128, device=DEVICE), torch.randn(64, 64, 3, 3, device=DEVICE)
    held = []
    for chunk in (GIB, 64 * MIB, 2 * MIB):
        with contextlib.suppress(torch.OutOfMemoryError):
            while True:
                held.append(torch.empty(chunk, dtype=torch.uint8, device=DEVICE))
    found: list[tuple[str, ...]] = []
    for where, use in (
        ("cuBLAS", lambda: torch.mm(a, a, out=product)),
        ("cuDNN", lambda: functional.conv2d(image, kernel)),
        ("cuSOLVER", lambda: torch.linalg.inv(a)),
        ("cuFFT", lambda: torch.fft.fft(a)),
        ("allocator", lambda: torch.empty(GIB, dtype=torch.uint8, device=DEVICE)),
    ):
        try:
            use()
            torch.cuda.synchronize(DEVICE)
        except RuntimeError as error:
            found.append(
                (where, type(error).__name__, first_line(str(error)), classify(error, near_capacity(DEVICE)), "oom")
            )
    return found


def _lose_the_context() -> list[tuple[str, ...]]:
    try:
        torch.arange(4, device=DEVICE)[torch.tensor([10**6], device=DEVICE)].sum().item()
    except RuntimeError as error:
        return [
            ("assert", type(error).__name__, first_line(str(error)), classify(error, near_capacity(DEVICE)), "error")
        ]
    return [("assert", "", "an index out of range raised nothing", "ok", "error")]


def _run_sizes(kind: int, sizes: list[int], limit_bytes: int) -> list[bool]:
    card = CudaCard()
    runs = [card.run(card.kinds[kind], n, limit_bytes=limit_bytes) for n in sizes]
    return [seen.outcome == "ok" and not seen.retries for seen in runs]


# --- golden traces --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Golden:
    """Allocator events recorded on a card, and what the card's own allocator counted."""

    card: str
    torch_version: str
    kind: str
    batch: int
    limit_bytes: int | None
    snapshot: dict[str, Any] = field(repr=False)
    allocated_bytes: int
    reserved_bytes: int
    retries: int

    def save(self, path: Path) -> None:
        """Write gzipped JSON, the same bytes for the same content."""
        path.write_bytes(gzip.compress(json.dumps(vars(self), separators=(",", ":")).encode(), mtime=0))

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read what `save` wrote."""
        return cls(**json.loads(gzip.decompress(path.read_bytes())))

    def differences(self) -> list[str]:
        """Say where the simulator, on these events, counts otherwise than the card did."""
        trace = trace_of(self.snapshot, batch=self.batch)
        result = replay(
            trace.signs.tolist(), trace.storages.tolist(), trace.nbytes.tolist(), capacity_bytes=self.limit_bytes
        )
        pairs = {
            "allocated_bytes": (result.allocated_bytes, self.allocated_bytes),
            "reserved_bytes": (result.reserved_bytes, self.reserved_bytes),
            "retries": (result.retries, self.retries),
        }
        return [f"{name}: simulator {ours}, card {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]


def record_golden(card: CudaCard, folder: Path, label: str) -> list[str]:
    """Record each kind at one size, free and under a limit that makes it tight; return the names of the files."""
    names = []
    for kind in card.kinds:
        free = card.run(kind, 16, traced=True)
        for limit_bytes, suffix in ((None, ""), (int(0.92 * free.reserved_bytes), "-tight")):
            seen = card.run(kind, 16, limit_bytes=limit_bytes, traced=True) if limit_bytes else free
            if seen.outcome != "ok" or seen.snapshot is None:
                continue
            golden = Golden(
                card.name,
                torch.__version__,
                kind.name,
                16,
                limit_bytes,
                slim(seen.snapshot, 0),
                seen.allocated_bytes,
                seen.reserved_bytes,
                seen.retries,
            )
            path = folder / f"golden-{kind.name}{suffix}-{label}.json.gz"
            golden.save(path)
            names.append(path.name)
    return names
