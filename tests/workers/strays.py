"""A model whose trials start processes of all kinds, and what becomes of these."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from bstune.tuner.core.trials import TrialSpec
from bstune.tuner.engines.base import Event, Finished, Lost, Reported
from bstune.tuner.engines.local import LocalPool

MODEL = """
import os, signal, subprocess, sys, time
from pathlib import Path
import bstune, torch

HERE = Path(__file__).parent

def note(pid, what):
    (HERE / "pids").mkdir(exist_ok=True)
    (HERE / "pids" / f"{pid} {what}").touch()

def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:  # Holds every socket and file that the trial has.
            note(os.getpid(), "daemon")
            time.sleep(1000)
        os._exit(0)

def start_all(number):
    sleep = ["sleep", "1000"]
    note(subprocess.Popen(sleep).pid, f"child-of-{number}")
    note(subprocess.Popen(sleep, start_new_session=True).pid, "session")
    note(subprocess.Popen(sleep, start_new_session=True, env={}, close_fds=False).pid, "bare")
    # A shell in a session of its own, whose child starts another session and outlives it.
    deep = f"import subprocess as s; p = s.Popen({sleep}, start_new_session=True, stdout=s.DEVNULL); "
    deep += "print(p.pid, flush=True)"
    said = subprocess.run(["setsid", sys.executable, "-c", deep], stdout=subprocess.PIPE, text=True)
    note(int(said.stdout), "grandchild")
    daemon()
    while len(list((HERE / "pids").iterdir())) < 5:
        time.sleep(0.01)

@bstune.objective(n_samples=1000, epochs=1)
def objective(trial):
    does = trial.params["does"]
    start_all(trial.number)
    trial.report(0.5, samples=500)
    if does == "raise":
        raise KeyError("a mistake")
    if does == "exit":
        os._exit(3)
    if does == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "hang":
        time.sleep(1000)
    trial.report(0.4, samples=1000)
"""


def left_behind(folder: Path, wanted: int = 5, within_s: float = 20.0) -> dict[str, psutil.Process | None]:
    """Return the processes that a trial has noted, by what they are, once there are so many; None for an ended one."""
    deadline_s = time.monotonic() + within_s
    while not (folder / "pids").exists() or len(list((folder / "pids").iterdir())) < wanted:
        assert time.monotonic() < deadline_s, "the trial has not started its processes"
        time.sleep(0.02)
    found: dict[str, psutil.Process | None] = {}
    for path in (folder / "pids").iterdir():
        pid, _, what = path.name.partition(" ")
        found[what] = psutil.Process(int(pid)) if psutil.pid_exists(int(pid)) else None
        path.unlink()
    return found


def alive(processes: Mapping[str, psutil.Process | None], within_s: float = 3.0) -> list[str]:
    """Return those that have not ended within a time."""
    deadline_s = time.monotonic() + within_s
    while left := [what for what, process in processes.items() if process is not None and runs(process)]:
        if time.monotonic() > deadline_s:
            return left
        time.sleep(0.02)
    return []


def runs(process: psutil.Process) -> bool:
    """Tell whether a process has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def spec_of(does: str, number: int = 0) -> TrialSpec:
    """Return a run that reports at half of it and at its end."""
    return TrialSpec(number, "search", 100, 100, 1, 0.1, 0, 1000, (500, 1000), params={"does": does})


def until(pool: LocalPool, is_it: Callable[[Event], bool], within_s: float = 30.0) -> Event:
    """Answer reports until an event comes, and return it."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        for event in pool.events(0.5):
            if isinstance(event, Reported):
                pool.reply(event.report.number, "go")
            if is_it(event):
                return event
    raise AssertionError("nothing came")


def is_end(event: Event) -> bool:
    """Tell the end of a trial."""
    return isinstance(event, (Finished, Lost))
