"""Nothing survives a trial, however it ends.

Processes that leave their group, their session, their parent or their environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import bstune
import psutil
import pytest
from bstune.tuner.core.trials import TrialSpec
from bstune.tuner.engines.base import Event, Finished, Lost, Reported
from bstune.tuner.engines.local import LocalPool
from bstune.tuner.workers import leftovers
from bstune.tuner.workers.fork_server import Host

pytestmark = [
    pytest.mark.cold_start,
    pytest.mark.skipif(not leftovers.can_adopt(), reason="orphans can be adopted on Linux only"),
]

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


def until(pool: LocalPool, is_it: Callable[[Event], bool], within_s: float = 10.0) -> Event:
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loop that starts processes of all kinds."""
    path = tmp_path_factory.mktemp("leftovers") / "model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="module")
def host(model: Path) -> Iterator[Host]:
    """The worker processes of that file."""
    with Host(bstune.load(model), device="cpu", jobs=2) as host:
        yield host


@pytest.mark.parametrize(
    ("does", "came"),
    [("end", "Finished"), ("raise", "error"), ("exit", "crashed"), ("kill", "killed"), ("hang", "cancelled")],
)
def test_what_a_trial_starts_ends_with_it(host: Host, model: Path, does: str, came: str) -> None:
    """Whichever way it ends, and at once: a daemon that has the trial's connection open does not make it look hung."""
    pool = LocalPool(host, slots=2)
    pool.submit(spec_of(does))
    began_s = time.monotonic()
    until(pool, lambda event: isinstance(event, Reported))
    processes = left_behind(model.parent)
    assert set(processes) == {"child-of-0", "session", "bare", "grandchild", "daemon"}
    if does == "hang":
        pool.cancel(0)
    else:
        event = until(pool, is_end)
        assert type(event).__name__ == came or (isinstance(event, Lost) and event.cause == came)
    assert time.monotonic() - began_s < 8

    assert alive(processes) == []
    pool.close()


def test_a_trial_that_runs_keeps_its_processes_when_another_ends(host: Host, model: Path) -> None:
    """Two side by side: each loses what is its own when it ends, and nothing before."""
    pool = LocalPool(host, slots=2)
    pool.submit(spec_of("hang", 1))
    until(pool, lambda event: isinstance(event, Reported))
    running = left_behind(model.parent)
    pool.submit(spec_of("kill", 2))
    until(pool, is_end)
    ended = left_behind(model.parent)

    assert alive(ended) == []
    assert sorted(alive(running, within_s=0.3)) == sorted(running)
    pool.close()
    assert alive(running) == []


OWN_HELPER = """
import subprocess, sys
helper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
# Started by a process that goes on for a while, and then leaves it behind.
late = subprocess.run([sys.executable, "-c", '''
import os, subprocess, time
server = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
print(server.pid, flush=True)
os.close(1)
if os.fork() == 0:
    time.sleep(1)
'''], stdout=subprocess.PIPE, text=True).stdout
"""


def test_what_a_file_starts_when_it_is_loaded_serves_all_trials(tmp_path: Path) -> None:
    """A server of data, say: it stays while trials come and go, and ends with the search."""
    path = tmp_path / "model.py"
    path.write_text(MODEL + OWN_HELPER + "note(helper.pid, 'helper')\nnote(int(late), 'late')\n")
    with Host(bstune.load(path), device="cpu") as host:
        own = left_behind(tmp_path, 2)
        for number in range(2):
            pool = LocalPool(host)
            pool.submit(spec_of("kill", number))
            until(pool, is_end)
            assert alive(left_behind(tmp_path)) == []
            time.sleep(0.6)
        assert sorted(alive(own, within_s=0)) == ["helper", "late"]

    assert alive(own) == []


A_THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"


@pytest.mark.parametrize("victim", ["template", "above it", "both"])
@pytest.mark.parametrize("forks", [True, False], ids=["forked", "program"])
def test_nothing_is_left_when_bstunes_own_processes_are_killed(tmp_path: Path, forks: bool, victim: str) -> None:
    """The template, the process above it that only waits for its end, or both; also where each trial is a program."""
    path = tmp_path / "model.py"
    path.write_text(MODEL if forks else A_THREAD + MODEL)
    with Host(bstune.load(path), device="cpu") as host:
        assert host.fork == forks
        pool = LocalPool(host)
        pool.submit(spec_of("hang"))
        until(pool, lambda event: isinstance(event, Reported))
        processes = left_behind(tmp_path)
        above = psutil.Process(host._first._process.pid)
        (template,) = above.children()
        for ours in {"template": [template], "above it": [above], "both": [above, template]}[victim]:
            ours.kill()

        assert isinstance(until(pool, is_end), Lost)
        if victim == "template":
            assert alive(processes) == []
    # A process that left its session and its environment leads nowhere once all above it are killed at the same moment.
    lost = {"bare"} if victim == "both" or (victim == "above it" and not forks) else set()
    found = set(alive(processes, within_s=1.0))
    for what in found:
        process = processes[what]
        assert process is not None
        process.kill()
    assert found <= lost


CALLER = """
import sys, time
import bstune
from bstune.tuner.core.trials import TrialSpec
from bstune.tuner.workers.fork_server import Host
from bstune.tuner.engines.local import LocalPool

pool = LocalPool(Host(bstune.load("model.py"), device="cpu"))
pool.submit(TrialSpec(0, "search", 100, 100, 1, 0.1, 0, 1000, (500, 1000), params={"does": "hang"}))
for event in pool.events(60):
    pool.reply(0, "go")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("forks", [True, False], ids=["forked", "program"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_the_search_is_killed(tmp_path: Path, number: signal.Signals, forks: bool) -> None:
    """By SIGKILL too, which gives it no time to clear up."""
    (tmp_path / "model.py").write_text(MODEL if forks else A_THREAD + MODEL)
    (tmp_path / "caller.py").write_text(CALLER)
    caller = subprocess.Popen(
        [sys.executable, "caller.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert caller.stdout is not None
    with caller.stdout as said:
        assert said.readline() == "ready\n"
    processes = left_behind(tmp_path)
    processes |= {f"ours {child.pid}": child for child in psutil.Process(caller.pid).children(recursive=True)}

    caller.send_signal(number)
    caller.wait(10)

    assert len(processes) >= 8
    assert alive(processes) == []


def test_a_process_is_ended_only_if_it_bears_the_word() -> None:
    """A search ends what it started, and what another one started, or the user, it leaves alone."""
    sleep = ["sleep", "1000"]
    ours = subprocess.Popen(sleep, env=leftovers.marked(dict(os.environ), "a-word-of-ours"), start_new_session=True)
    nested = subprocess.Popen(sleep, env=leftovers.marked({leftovers.MARK: "a-word-of-ours"}, "another-word"))
    others = subprocess.Popen(sleep, env=leftovers.marked(dict(os.environ), "another-word"))
    try:
        deadline_s = time.monotonic() + 5  # Until they have become the program that they are to be.
        while (
            any(psutil.Process(process.pid).name() != "sleep" for process in (ours, nested, others))
            and time.monotonic() < deadline_s
        ):
            time.sleep(0.01)

        leftovers.end_marked("a-word-of-ours")

        assert (ours.wait(5), nested.wait(5)) == (-signal.SIGKILL, -signal.SIGKILL)
        assert others.poll() is None
    finally:
        for process in (ours, nested, others):
            process.kill()
            process.wait()


SHARED = """
import os, signal, time
from multiprocessing import shared_memory
import bstune

@bstune.objective(n_samples=1000, epochs=1)
def objective(trial):
    memory = shared_memory.SharedMemory(create=True, size=4096)
    trial.report(0.5, samples=500)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory cannot be seen here")
def test_shared_memory_goes_with_a_trial_that_is_killed(tmp_path: Path) -> None:
    """Python starts a process that clears it away: that one is given the time to."""
    before = set(os.listdir("/dev/shm"))
    (tmp_path / "model.py").write_text(SHARED)
    with Host(bstune.load(tmp_path / "model.py"), device="cpu") as host:
        pool = LocalPool(host)
        pool.submit(spec_of("kill"))
        assert isinstance(until(pool, is_end), Lost)

    assert set(os.listdir("/dev/shm")) <= before
