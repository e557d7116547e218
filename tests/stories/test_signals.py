"""Signals, a terminal that goes and a reader that goes end a search in order."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import bstune
import psutil
import pytest
from bstune.tests.stories.faulty import PROBE, SCRIPT, command, records
from bstune.tests.warm_start import others_below
from bstune.tuner.core.interrupts import uninterrupted
from bstune.tuner.core.specs import Plan
from bstune.tuner.core.trial_record import TrialRecord
from bstune.tuner.searching.loop import Drive
from bstune.tuner.searching.result import make_strategy
from bstune.tuner.studies.catalog import find_study, make_study
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.testing.replay import TablePool
from bstune.tuner.testing.tables import synthetic
from bstune.tuner.workers import messages
from bstune.tuner.workers.fork_server import Host


@pytest.fixture
def folder(folder: Path) -> Path:
    """The working directory, with a script beside the model, and a probe that was made before."""
    (folder / "train.py").write_text(SCRIPT)
    (folder / "probe.json").write_text(PROBE.to_json())
    return folder


def start(*arguments: str, script: bool = False, **options: Any) -> subprocess.Popen[str]:
    """Start a search that takes its time."""
    environment = {**os.environ, "SLOWLY": "0.3"}
    return subprocess.Popen(
        command("--budget", "40", "--probe", "probe.json", *arguments, script=script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def read_until(process: subprocess.Popen[str], word: str) -> None:
    """Read what a search says until it says this word."""
    assert process.stderr is not None
    assert any(word in line for line in process.stderr)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that a search has started."""
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    """Tell whether these processes end within seconds."""
    return psutil.wait_procs(processes, timeout=10)[1] == []


@pytest.mark.parametrize(("number", "script"), [(signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_a_signal_to_end_is_an_interruption(folder: Path, number: signal.Signals, script: bool) -> None:
    """As Ctrl-C: the best so far on stdout, exit 130, everything stored, no process left; however often it is sent."""
    process = start(script=script)
    read_until(process, "trial 2")
    children = family(process)
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.02)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "not verified" in stdout.splitlines()[0]
    assert "Traceback" not in stderr
    assert children
    assert gone(children)
    assert all(record.state != "running" for record in records(folder))


@pytest.mark.parametrize(
    "write", ["create_new_trial", "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_state_values"]
)
def test_a_signal_waits_for_the_end_of_what_is_written(write: str) -> None:
    """Whichever write it meets: what is stored is what the search believes, and no trial of it runs."""
    table = synthetic()
    with open_storage("sqlite:///:memory:") as storage, pytest.MonkeyPatch.context() as patch:
        study = make_study(storage, "interrupted")
        strategy = make_strategy(Plan(budget=4, space=table.space), table.facts(), None, study)
        real = getattr(storage.backend, write)

        def interrupted(*arguments: Any, **named: Any) -> Any:
            patch.undo()
            answer = real(*arguments, **named)
            signal.raise_signal(signal.SIGINT)
            return answer

        patch.setattr(storage.backend, write, interrupted)
        with pytest.raises(KeyboardInterrupt):
            Drive(study, strategy, None, tell=lambda *_: None).run(TablePool(table, 1))
        stored = find_study(storage, "interrupted")
        assert stored is not None
        assert stored.records
        assert all(record.state != "running" for record in stored.records)
        assert stored.records == study.records


def test_a_second_interrupt_does_not_wait() -> None:
    """What is written may hang, on a server that has gone silent; the handlers are as before then."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    reached = []

    def write_for_ever() -> None:
        with uninterrupted():
            for _ in range(3):
                reached.append("interrupted")
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        write_for_ever()
    assert len(reached) == 2
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_signal_before_all_are_held_keeps_what_it_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first SIGTERM makes the next one ignored, so it cannot end the clean-up, even while handlers are replaced."""
    before = signal.getsignal(signal.SIGTERM)

    def terminate(*_: object) -> None:
        set_handler(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    def at_a_bad_moment(number: int, handler: Any) -> Any:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGTERM)
        return set_handler(number, handler)

    def hold() -> None:
        with uninterrupted():
            pytest.fail("the signal should have come before")

    set_handler = signal.signal
    set_handler(signal.SIGTERM, terminate)
    monkeypatch.setattr(signal, "signal", at_a_bad_moment)
    try:
        with pytest.raises(KeyboardInterrupt):
            hold()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        set_handler(signal.SIGTERM, before)


@pytest.mark.timeout(60)
def test_a_signal_waits_for_the_end_of_a_message(folder: Path) -> None:
    """Half a message taken from the template would spoil all that it says later, such as which process has ended."""
    with Host(bstune.load(folder / "model.py"), device="cpu") as host, pytest.MonkeyPatch.context() as patch:
        control = host._first._control
        real = control._part

        def interrupted() -> bytes:
            patch.undo()
            part = real()
            signal.raise_signal(signal.SIGINT)
            return part

        patch.setattr(control, "_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            host.start(messages.Describe())
        assert host.facts.n_samples == 320
    assert others_below() == []


def test_a_terminal_that_goes_ends_the_search_in_order(folder: Path) -> None:
    """Its window is closed: it gets SIGHUP and every write fails; what was finished is stored, no process is left."""
    master, slave = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command("--budget", "40", "--probe", "probe.json", script=True),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=take_terminal,
        env={**os.environ, "SLOWLY": "0.3"},
    )
    os.close(slave)
    deadline_s = time.monotonic() + 60
    while not (folder / "bstune.db").exists() or len([r for r in try_records(folder) if r.state != "running"]) < 2:
        assert time.monotonic() < deadline_s
        os.set_blocking(master, False)
        with contextlib.suppress(BlockingIOError):
            os.read(master, 65536)
        time.sleep(0.5)
    children = psutil.Process(process.pid).children(recursive=True)
    os.close(master)
    assert process.wait(30) != 0
    assert children
    assert gone(children)
    stored = records(folder)
    assert len(stored) >= 2
    assert all(record.state != "running" for record in stored)


def try_records(folder: Path) -> list[TrialRecord]:
    """The trials that are stored; none while there is no study."""
    with contextlib.suppress(bstune.StudyError, AssertionError):
        return records(folder)
    return []


def test_a_terminal_and_a_reader_that_go_change_nothing_under_nohup(folder: Path) -> None:
    """Who asked for the search to stay gets its result, also as in `nohup bstune search model.py 2>&1 | head`.

    Progress is for whoever reads it.
    """
    process = start("--budget", "3", script=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    read_until(process, "trial 0")
    assert process.stderr is not None
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.stdout is not None
    with process.stdout as pipe:
        stdout = pipe.read()
    assert process.wait(60) == 0
    assert "checked by" in stdout.splitlines()[0], stdout
