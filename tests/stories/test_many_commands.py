"""Thirty runs of a command, well ended or not: at the last as much is free as at the first."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import bstune
import psutil
from bstune.tests.warm_start import others_below
from bstune.tuner.core.trials import TrialSpec
from bstune.tuner.engines.base import Event, Finished, Lost, Reported
from bstune.tuner.engines.local import LocalPool
from bstune.tuner.workers.fork_server import Host

N = 64
SCRIPT = """
echo "epoch 1 val_loss=1.0"
if [ $1 = fails ]; then echo "RuntimeError: CUDA out of memory."; exit 1; fi
if [ $1 = forks ]; then sleep 600 & fi
if [ $1 = stopped ]; then trap '' TERM; sleep 600; fi
echo "epoch 2 val_loss=0.5"
"""
ENDS = ("well", "fails", "well", "forks", "well")


def run(pool: LocalPool, number: int, how: str) -> Event:
    """Run a trial of two epochs and return its end."""
    pool.submit(TrialSpec(number, "search", 32, 32, 1, 0.1, 0, 2 * N, (N, 2 * N), params={"how": how}))
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        for event in pool.events(0.2):
            if not isinstance(event, Reported):
                return event
            pool.reply(number, "stop" if how == "stopped" else "go")
    raise AssertionError("the run hangs")


def held(process: psutil.Process) -> tuple[int, int, int]:
    """Return open files, threads and resident bytes of a process."""
    gc.collect()
    return process.num_fds(), process.num_threads(), process.memory_info().rss


def at_rest(us: psutil.Process) -> list[psutil.Process]:
    """Return this process and those below it, once runs that have ended are gone, which takes a moment."""
    deadline_s, below = time.monotonic() + 20, others_below()
    while len(below) > 2:  # The template, and the process that forks for it.
        assert time.monotonic() < deadline_s, below
        time.sleep(0.05)
        below = others_below()
    return [us, *below]


def test_thirty_runs_keep_nothing(tmp_path: Path) -> None:
    """No file, no thread, no process and no memory is kept: neither here nor where runs are forked from.

    One of them is stopped and does not hear of it, and one leaves a program behind.
    """
    (tmp_path / "train.sh").write_text(SCRIPT)
    command = bstune.Command(
        ["sh", str(tmp_path / "train.sh"), "{how}", "{micro_batch_size}", "{learning_rate}"], samples_per_epoch=N
    )
    us = psutil.Process()
    with Host(command, device="cpu", threads=1) as host:
        pool = LocalPool(host)
        assert isinstance(run(pool, 0, "well"), Finished)
        ours = at_rest(us)
        before = [held(process) for process in ours]

        assert isinstance(run(pool, 1, "stopped"), Finished)
        for number in range(2, 31):
            how = ENDS[number % len(ENDS)]
            assert isinstance(run(pool, number, how), Lost if how == "fails" else Finished)

        assert at_rest(us) == ours
        after = [held(process) for process in ours]
        pool.close()

    for (files, threads, rss), (files_then, threads_then, rss_then) in zip(before, after, strict=True):
        assert files_then <= files
        assert threads_then <= threads
        assert rss_then < rss + (8 << 20)
    assert os.listdir(tmp_path) == ["train.sh"]
