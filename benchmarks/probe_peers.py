"""Runs the batch-size finders of other projects on a task that `probe.py` describes; prints one JSON object.

It runs in an environment of its own that has Lightning and Accelerate. Two kinds of task: a simulated device whose
memory is a replay of traced steps, and real training steps on CPU with a limit on resident memory. Ultralytics' rule
(`utils/autobatch.py` of 8.4, as documented) is written out here: the package measures its own models only.
"""

from __future__ import annotations

import importlib
import json
import logging
import pickle
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".typing"))
DEFAULT_ACCELERATE = 128
ULTRALYTICS_SIZES = (1, 2, 4, 8, 16, 32, 64)
ULTRALYTICS_SHARE = 0.6


class Counter:
    """Counts training steps and failures, and fails a step whose peak is over the limit."""

    def __init__(self, step: Callable[[int], int]) -> None:
        """`step` runs one step at a size and returns its peak, or raises."""
        self.n_steps = self.n_failures = self.n_samples = 0
        self._step = step

    def __call__(self, size: int) -> int:
        """Run one step."""
        self.n_steps += 1
        self.n_samples += size
        try:
            return self._step(size)
        except RuntimeError:
            self.n_failures += 1
            raise


def lightning(step: Counter, cap: int, mode: str) -> int:
    """Return what Lightning's batch size finder finds, at its defaults."""
    import lightning.pytorch as pl
    from lightning.pytorch.tuner.tuning import Tuner

    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 2
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            step(len(batch[0]))
            return self.layer(batch[0]).mean()

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(torch.zeros(cap, 1)), batch_size=self.batch_size
            )

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
    )
    module = Module()
    Tuner(trainer).scale_batch_size(module, mode=mode)
    return int(module.batch_size)


def accelerate(step: Counter, cap: int) -> int:
    """Return what Accelerate's decorator ends at, from its default start, with three steps of the user's function."""
    from accelerate.utils import find_executable_batch_size

    def train(batch_size: int) -> int:
        for _ in range(3):
            step(batch_size)
        return batch_size

    return int(find_executable_batch_size(train, starting_batch_size=min(cap, DEFAULT_ACCELERATE))())


def ultralytics(step: Counter, cap: int, limit_bytes: int) -> int:
    """Return what Ultralytics' rule says: a line through measured memory, aimed at 60 % of the device."""
    peaks: list[tuple[int, int]] = []
    failed = None
    for size in ULTRALYTICS_SIZES:
        if size > cap:
            break
        try:
            peaks.append((size, step(size)))
        except RuntimeError:
            failed = size
            break
    if len(peaks) < 2:
        return 16
    mean_x, mean_y = (sum(part) / len(peaks) for part in zip(*peaks, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in peaks) / sum((x - mean_x) ** 2 for x, _ in peaks)
    size = int((ULTRALYTICS_SHARE * limit_bytes - (mean_y - slope * mean_x)) / slope) if slope > 0 else 16
    if failed is not None and size >= failed:
        size = peaks[-1][0]
    return size if 1 <= size <= 1024 else 16


def simulated(task: dict[str, Any]) -> Callable[[int], int]:
    """Return a step on a simulated device."""
    from bstune.tuner.testing.fake_device import FakeDevice

    model = pickle.loads(Path(task["model"]).read_bytes())
    return FakeDevice(capacity_gib=task["capacity_gib"], trace=model).step


def on_cpu(task: dict[str, Any]) -> Callable[[int], int]:
    """Return a real training step of a model kind on CPU, which fails where its resident memory passes the limit."""
    from bstune.tuner.device.meter import peak_rss_bytes, reset_peak_rss
    from model_kinds import Kind

    torch.set_num_threads(1)
    torch.manual_seed(0)
    for package in ("lightning.pytorch", "accelerate.utils"):
        if package.split(".")[0] in task["peers"][0]:
            importlib.import_module(package)
    limit_bytes = peak_rss_bytes() + task["limit_bytes"]
    kind = Kind(**task["kind"])
    model = kind.model()
    optimizer = torch.optim.AdamW(model.parameters())

    def step(size: int) -> int:
        x, y = kind.batch(size)
        reset_peak_rss()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        peak = peak_rss_bytes()
        if peak > limit_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. (Resident memory passed the limit of this benchmark.)")
        return peak

    return step


def main() -> None:
    """Do the task given as JSON on the command line."""
    task = json.loads(sys.argv[1])
    limit = task["limit_bytes"]
    answers = {}
    for name in task["peers"]:
        start_s = time.perf_counter()
        step = Counter(simulated(task) if "model" in task else on_cpu(task))
        finders: dict[str, Callable[[], int]] = {
            "lightning binsearch": lambda step=step: lightning(step, task["cap"], "binsearch"),  # type: ignore[misc]
            "lightning power": lambda step=step: lightning(step, task["cap"], "power"),  # type: ignore[misc]
            "accelerate": lambda step=step: accelerate(step, task["cap"]),  # type: ignore[misc]
            "ultralytics' rule": lambda step=step: ultralytics(step, task["cap"], limit),  # type: ignore[misc]
        }
        try:
            size = finders[name]()
        except RuntimeError:
            size = 0
        seconds = time.perf_counter() - start_s
        answers[name] = {
            "size": size,
            "steps": step.n_steps,
            "oom": step.n_failures,
            "samples": step.n_samples,
            "seconds": seconds,
        }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
