"""Nothing survives a search whose own processes are killed, or that is killed itself."""

from __future__ import annotations

import signal
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("number", "forks"),
    [(signal.SIGKILL, True), (signal.SIGKILL, False), (signal.SIGINT, True), (signal.SIGTERM, False)],
)
def test_nothing_is_left_when_the_search_is_killed(tmp_path: Path, number: signal.Signals, forks: bool) -> None:
    """By SIGKILL too, which gives it no time to clear up; whether trials are forked or each is a program."""
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
