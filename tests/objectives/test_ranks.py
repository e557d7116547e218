"""A script under torchrun with two processes, over gloo: read as one run, and ended as one, whichever rank fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bstune
import psutil
import pytest
from bstune.tuner.core.trials import TrialReport, TrialSpec
from bstune.tuner.engines.base import Event, Finished, Lost, Reported
from bstune.tuner.engines.local import LocalPool
from bstune.tuner.workers.fork_server import Host

SCRIPT = """
import os, signal
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
for epoch in range(1, 5):
    if dist.get_rank() == 1 and epoch == WHEN:
        WHAT
    loss = torch.ones(1) / epoch
    dist.all_reduce(loss)  # Here rank 0 waits for the other.
    if dist.get_rank() == 0:
        print(f"epoch {epoch} val_loss={float(loss):.4f}", flush=True)
"""
IN_LIGHTNING = """
import argparse
import lightning, torch
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int)
parser.add_argument("--lr", type=float)
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
data = TensorDataset(torch.randn(1024, 4, generator=torch.Generator().manual_seed(0)), torch.arange(1024) % 3)

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", self.training_step(batch, index), sync_dist=True)

    def on_validation_epoch_end(self):
        assert self.trainer.world_size == 2
        if self.trainer.is_global_zero:
            loss = float(self.trainer.callback_metrics["val_loss"])
            print(f"epoch {self.current_epoch + 1} val_loss={loss:.4f}", flush=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=args.lr)

quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
trainer = lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=args.epochs, num_sanity_val_steps=0, **quiet
)
trainer.fit(Net(), DataLoader(data, args.batch_size, shuffle=True), DataLoader(data, 512))
"""
IN_TRAINER = """
import argparse
import torch, transformers

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int)
parser.add_argument("--lr", type=float)
parser.add_argument("--epochs", type=int)
args = parser.parse_args()
rows = [{"x": x, "labels": i % 3} for i, x in enumerate(torch.randn(1024, 4))]

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x, labels):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

settings = transformers.TrainingArguments(
    "never_made",
    use_cpu=True,
    ddp_backend="gloo",
    num_train_epochs=args.epochs,
    per_device_train_batch_size=args.batch_size,
    learning_rate=args.lr,
    eval_strategy="epoch",
    save_strategy="no",
    report_to="none",
)
assert settings.world_size == 2
transformers.Trainer(Net(), settings, train_dataset=rows, eval_dataset=rows).train()
"""
OUT_OF_MEMORY = 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")'
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
N = 1024
SCRIPTS = ("fails.py", "two_ranks.py")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A process that runs trials of a script, which is a parameter, under torchrun."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "{script}"]
    settings = ["--global-batch-size", "{global_batch_size}", "--lr", "{learning_rate}", "--epochs", "{max_epochs}"]
    with Host(bstune.Command([*words, *settings], samples_per_epoch=N, epochs=3), device="cpu") as host:
        yield host


def run(host: Host, script: Path, stop_at: int | None = None) -> tuple[list[TrialReport], Event]:
    """Run a trial of three epochs and return its reports and its end."""
    points = (N, 2 * N, 3 * N)
    spec = TrialSpec(0, "search", 64, 32, 1, 0.1, 0, 3 * N, points, params={"script": str(script)}, world_size=2)
    pool, reports, deadline_s = LocalPool(host), list[TrialReport](), time.monotonic() + 240
    pool.submit(spec)
    try:
        while time.monotonic() < deadline_s:
            for event in pool.events(0.2):
                if not isinstance(event, Reported):
                    return reports, event
                reports.append(event.report)
                pool.reply(0, "stop" if event.report.samples == stop_at else "go")
        raise AssertionError("the run hangs")
    finally:
        pool.close()


@pytest.fixture(autouse=True)
def _no_rank_is_left() -> Iterator[None]:
    """After every run all ranks are gone, within the moment that the kernel takes."""
    yield
    deadline_s = time.monotonic() + 10
    while (left := ranks()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert left == []


def ranks() -> list[list[str]]:
    """Return the command lines of the ranks below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            found.append(process.cmdline())
        except psutil.Error:
            continue
    return [line for line in found if any(Path(word).name in SCRIPTS for word in line)]


@pytest.mark.parametrize(
    ("package", "launcher", "text"),
    [
        ("lightning", [], IN_LIGHTNING),
        ("accelerate", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], IN_TRAINER),
    ],
    ids=["a Lightning script with two devices", "a Trainer script under torchrun"],
)
def test_a_script_of_a_framework_with_two_ranks(package: str, launcher: list[str], text: str, tmp_path: Path) -> None:
    """Searched by its flags: its losses come once an epoch, and a stop ends both ranks, whoever has started them."""
    pytest.importorskip(package, reason="needs the extras: pip install 'bstune[lightning,transformers]'")
    script = tmp_path / "two_ranks.py"
    script.write_text(text)
    flags = ["--batch-size", "{micro_batch_size}", "--lr", "{learning_rate}", "--epochs", "{max_epochs}"]
    command = bstune.Command(
        [sys.executable, *launcher, "{script}", *flags], samples_per_epoch=N, epochs=3, world_size=2
    )

    with Host(command, device="cpu") as host:
        reports, end = run(host, script, stop_at=2 * N)

    assert [report.samples for report in reports] == [N, 2 * N]
    assert 2.0 > reports[0].val_loss > 0.5
    assert isinstance(end, Finished)


def test_one_rank_out_of_memory_hangs_nobody(host: Host, tmp_path: Path) -> None:
    """While rank 0 waits for it: the run is over, with the losses so far and the reason of the rank that failed."""
    reports, end = run(host, failing(tmp_path, 3, OUT_OF_MEMORY))

    assert [report.samples for report in reports] == [N, 2 * N]
    assert isinstance(end, Lost)
    assert end.cause == "oom"
    assert end.message.startswith("the command ended with exit code 1: [rank1]: torch.OutOfMemoryError: CUDA out of")


def test_one_rank_killed_is_a_run_that_was_killed(host: Host, tmp_path: Path) -> None:
    """By somebody, or for memory where that is short; such a run is tried again, or bounds the batch size.

    The losses that it told before count.
    """
    reports, end = run(host, failing(tmp_path, 2, KILLED))

    assert [report.samples for report in reports] == [N]
    assert isinstance(end, Lost)
    assert end.cause in ("killed", "oom")


def failing(folder: Path, when: int, what: str) -> Path:
    """Return a script of which rank 1 does this in an epoch."""
    script = folder / "fails.py"
    script.write_text(SCRIPT.replace("WHEN", str(when)).replace("WHAT", what))
    return script
