"""Nothing survives a trial, however it ends.

Processes that leave their group, their session, their parent or their environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import bstune
import psutil
import pytest
from bstune.tests.workers.strays import MODEL, alive, is_end, left_behind, spec_of, until
from bstune.tuner.engines.base import Lost, Reported
from bstune.tuner.engines.local import LocalPool
from bstune.tuner.workers import leftovers
from bstune.tuner.workers.fork_server import Host

pytestmark = pytest.mark.skipif(not leftovers.can_adopt(), reason="orphans can be adopted on Linux only")


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
    until(pool, lambda event: isinstance(event, Reported))
    processes = left_behind(model.parent)
    began_s = time.monotonic()
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
