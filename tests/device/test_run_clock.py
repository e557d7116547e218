"""The clock of steps: waiting for a core is left out, all else counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from bstune.tuner.device import run_clock
from bstune.tuner.device.run_clock import RunClock


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch was told by other tests in this process."""
    monkeypatch.setattr(run_clock, "_threads", lambda: 1)


@pytest.fixture
def _shared_core() -> Iterator[None]:
    """One core for this process and two that never rest."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind a process to a core")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.usefixtures("_shared_core")
def test_waiting_for_a_core_does_not_count() -> None:
    """A step costs what it would cost on an idle machine, however many others want the core."""
    clock = RunClock(alone=True)
    start_s, own_start_s, core_start_s = time.perf_counter(), clock(), time.thread_time()

    while time.thread_time() - core_start_s < 0.3:
        pass

    wall_s, own_s = time.perf_counter() - start_s, clock() - own_start_s
    assert wall_s > 0.45
    assert 0.29 < own_s < (0.3 + 0.3 * (wall_s - 0.3) if clock.leaves_out_waiting else wall_s + 0.01)


def test_a_wait_of_its_own_counts() -> None:
    """Such as that of a loader for the disk."""
    clock = RunClock(alone=True)
    start_s = clock()

    time.sleep(0.05)

    assert clock() - start_s >= 0.05


def test_a_core_that_is_lost_between_the_two_clocks_counts_in_both_or_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a short step would have taken less than no time."""
    clock = RunClock(alone=True)
    if not clock.leaves_out_waiting:
        return  # There is only one clock.
    waited = iter([0, 10**9, 10**9, 10**9, 10**9])
    monkeypatch.setattr(os, "pread", lambda *_: f"1 {next(waited)} 1".encode())

    start_s = clock()

    assert clock() >= start_s


@pytest.mark.parametrize("content", [None, "", "0 x 1", "0 0 0"])
def test_a_system_that_does_not_say_has_a_plain_clock(
    content: str | None, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a missing file nor one of other content is an error."""
    path = os.path.join(tmp_path, "schedstat")
    if content is not None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
    monkeypatch.setattr(run_clock, "WAITED", path)

    clock = RunClock(alone=True)

    assert not clock.leaves_out_waiting
    assert time.perf_counter() <= clock() <= time.perf_counter()


def test_what_others_of_ours_do_meanwhile_counts() -> None:
    """A card, loader workers and ranks go on while the thread waits, perhaps for a core that they have."""
    assert not RunClock(alone=False).leaves_out_waiting


def test_threads_that_work_with_it_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more of them than cores, they wait for each other."""
    monkeypatch.setattr(run_clock, "_threads", lambda: 2)

    assert not RunClock(alone=True).leaves_out_waiting


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds when the model is trained, too."""
    monkeypatch.setattr(run_clock, "core_quota", lambda: 0.5)

    assert not RunClock(alone=True).leaves_out_waiting
