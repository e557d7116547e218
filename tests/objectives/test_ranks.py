"""A script under torchrun with two processes, over gloo: read as one run, and ended as one, whichever rank fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bstune
import psutil
import pytest
from bstune.tests.objectives.small import run as train
from bstune.tests.objectives.small import spec_of
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
OUT_OF_MEMORY = 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")'
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
N = 1024


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
    spec = TrialSpec(0, "search", 64, 64, 1, 0.1, 0, 3 * N, points, params={"script": str(script)})
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
    return [line for line in found if any(Path(word).name in ("ddp_two_ranks.py", "fails.py") for word in line)]


def test_two_ranks_are_one_run_until_it_is_stopped(host: Host, root: Path) -> None:
    """The losses come from rank 0, once an epoch, and fall; the stop ends both ranks."""
    reports, end = run(host, root / "examples" / "ddp_two_ranks.py", stop_at=2 * N)

    assert [report.samples for report in reports] == [N, 2 * N]
    assert reports[0].val_loss > reports[-1].val_loss
    assert isinstance(end, Finished)


def test_an_accelerate_loop_is_searched_as_a_script(root: Path) -> None:
    """With two ranks: what it reports by one line counts, and it trains on micro-batches of its own."""
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'bstune[transformers]'")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    flags = ["--batch-size", "{micro_batch_size}", "--accumulate", "{accumulation_steps}", "--lr", "{learning_rate}"]
    script = str(root / "examples" / "accelerate_loop.py")
    command = bstune.Command(
        [*launch, script, *flags, "--epochs", "{max_epochs}", "--seed", "{seed}"], samples_per_epoch=N, epochs=2
    )
    sizes = {"global_batch_size": 64, "micro_batch_size": 16, "accumulation_steps": 2, "world_size": 2}

    reports = train(command, spec_of(**sizes, end_samples=2 * N, points=(N, 2 * N)))

    assert command.world_size == 2
    assert [report.samples for report in reports] == [N, 2 * N]
    assert 2.3 > reports[0].val_loss > reports[1].val_loss


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
