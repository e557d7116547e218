"""Workers that are stopped, killed or cut off, and a clock that is set back: each trial ends once."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from bstune.tuner.client import link, relay
from bstune.tuner.engines.base import Event
from bstune.tuner.testing.fake_device import known_probe
from bstune.tuner.testing.tables import synthetic

from .conftest import KeepingPool, Service, new_study
from .test_same_as_local import locally, told, trials_of

TABLE = synthetic(n_samples=1024, epochs=16)
MODEL = """
import time
import bstune
import torch

@bstune.objective(n_samples=256, epochs=2, evals=8, optimizer="SGD")
def objective(trial):
    weight = torch.nn.Parameter(torch.ones(1))
    samples = 0
    while samples < trial.max_samples:
        samples = min(samples + 32, trial.max_samples)
        time.sleep(0.3)
    trial.report(1 / samples, samples=samples)
"""


class Finishes:
    """Counts how often each trial of a study ends, by the events of the service."""

    def __init__(self, url: str, study: str) -> None:
        """Listen from now on."""
        self.counted: Counter[int] = Counter()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(url, study), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _listen(self, url: str, study: str) -> None:
        events = f"{url}/v1/studies/{study}/events"
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("GET", events, trust_env=False, timeout=60) as answer,
        ):
            kind = ""
            for line in answer.iter_lines():
                self._ready.set()
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: ") and kind == "finish":
                    self.counted[json.loads(line[6:])["trial"]["number"]] += 1


def wait_for(what: Any, within_s: float = 120) -> Any:
    """Return what a function returns as soon as that is something."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def running(calls: httpx.Client, study: str) -> dict[str, Any] | None:
    """Return a trial that a client is in the middle of."""
    answer = calls.get(f"/v1/studies/{study}")
    if answer.status_code == 200:
        numbers = [seen["trial"] for seen in answer.json()["workers"]]
        for trial in answer.json()["trials"]:
            if trial["number"] in numbers and trial["state"] == "running":
                found: dict[str, Any] = trial
                return found
    return None


def taken_over(calls: httpx.Client, study: str, number: int, heir: str) -> None:
    """Have another client get a trial when its lease is over, and end it."""
    workers = f"/v1/studies/{study}"
    wait_for(lambda: number not in [seen["trial"] for seen in calls.get(workers).json()["workers"]])
    asked = {"client_id": heir, "device": "a CPU", "wait_s": 20}
    trial = calls.post(f"/v1/studies/{study}/ask", json=asked).json()["trial"]
    assert trial["number"] == number
    path, samples = f"/v1/trials/{trial['id']}", 0
    for point in trial["points"]:
        samples = min(point, trial["end_samples"])
        body = {"client_id": heir, "samples": samples, "val_loss": 0.5}
        if calls.post(f"{path}/report", json=body).json()["verdict"] == "stop":
            break
    ended = calls.post(f"{path}/finish", json={"client_id": heir, "samples": samples})
    assert ended.status_code == 200, ended.text


def test_a_worker_that_is_stopped_and_then_killed(make_service: Any, tmp_path: Path) -> None:
    """SIGSTOP for longer than its lease, then SIGKILL in the middle of its next trial: each trial ends once.

    The stopped worker is told that its trial is another's, and goes on; of the killed one no process is left.
    """
    service = make_service("--lease", "2", "--rate", "0").start()
    (tmp_path / "slow.py").write_text(MODEL)
    (tmp_path / "probe.json").write_text(known_probe(64, step_s=(0.01, 1e-4)).to_json())
    command = [sys.executable, "-m", "bstune", "worker", service.url, "slow.py", "--probe", "probe.json"]
    with (
        (tmp_path / "worker.log").open("w") as log,
        httpx.Client(base_url=service.url, trust_env=False, timeout=40) as calls,
        subprocess.Popen(command, cwd=tmp_path, stderr=log) as worker,
    ):
        try:
            first = wait_for(lambda: running(calls, "slow"))
            ends = Finishes(service.url, "slow")
            worker.send_signal(signal.SIGSTOP)
            taken_over(calls, "slow", first["number"], "heir-1")
            worker.send_signal(signal.SIGCONT)
            wait_for(lambda: "is given up: " in (tmp_path / "worker.log").read_text())
            second = wait_for(lambda: running(calls, "slow"))
            family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
            worker.kill()
            worker.wait()
            taken_over(calls, "slow", second["number"], "heir-2")
            wait_for(lambda: ends.counted[second["number"]])
        finally:
            worker.kill()
        records = calls.get("/v1/studies/slow").json()["trials"]

    assert len(family) > 1
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert {first["number"], second["number"]} <= set(ends.counted)
    assert set(ends.counted.values()) == {1}
    assert len({record["number"] for record in records}) == len(records)
    assert "has ended. End this run and ask for the next." in (tmp_path / "worker.log").read_text()


class Proxy:
    """A way to a service that can be cut: then nothing comes through, and nobody is told."""

    def __init__(self, port: int) -> None:
        """Lead to a port of this machine."""
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_cut = False
        self._over = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._over:
            with contextlib.suppress(OSError):
                near = self._listener.accept()[0]
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._to)) as far, contextlib.suppress(OSError):
            while not self._over:
                for end in select.select([near, far], [], [], 0.1)[0]:
                    part = end.recv(65536)
                    if not part:
                        return
                    if not self.is_cut:
                        (far if end is near else near).sendall(part)

    def close(self) -> None:
        """Lead nowhere any more."""
        self._over = True
        self._listener.close()


class SlowPool(KeepingPool):
    """A table that takes some time for each report."""

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Yield what happens, slowly."""
        time.sleep(0.02)
        yield from super().events(timeout_s)


def test_a_network_that_is_cut_changes_nothing(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice nothing comes through for a while: the trial goes on, its reports follow, and all is as without that."""
    monkeypatch.setattr(link, "CALL_S", 0.5)
    monkeypatch.setattr(relay, "HOLD_S", 0.5)
    monkeypatch.setattr(relay, "WAIT_S", 1.0)
    assert httpx.post(f"{service.url}/v1/studies", json=new_study(TABLE, "cut", budget=3), trust_env=False).is_success
    proxy, ended = Proxy(service.port), []

    def run() -> None:
        with contextlib.closing(link.Link(proxy.url)) as way:
            worker = relay.Relay(way, "cut", "one", device="table", folder=tmp_path, say=lambda _: None)
            ended.append(worker.run(SlowPool(TABLE)))

    thread = threading.Thread(target=run)
    thread.start()
    with contextlib.closing(proxy):
        for _ in range(2):
            time.sleep(0.7)
            proxy.is_cut = True
            time.sleep(1.0)
            proxy.is_cut = False
        thread.join(60)

    assert ended
    assert told(trials_of(service, "cut")) == told([record.to_dict() for record in locally(TABLE, budget=3)])


def test_a_clock_that_is_set_back_holds_nobody_up(tmp_path: Path) -> None:
    """Of the service, by an hour, in the middle of a trial: the lease is as long as before, and the trial ends once."""
    flag = tmp_path / "back"
    program = (
        "import os, sys, time\n"
        "now = time.time\n"
        f"time.time = lambda: now() - 3600 * os.path.exists({str(flag)!r})\n"
        "from bstune.cli import main\n"
        "main()\n"
    )
    service = Service(tmp_path, "--lease", "2", program=program).start()
    try:
        with httpx.Client(base_url=service.url, trust_env=False, timeout=40) as calls:
            body = new_study(TABLE, "back", n_trials=1, confirm=0, pruner="none", budget=4)
            assert calls.post("/v1/studies", json=body).is_success
            ask = {"client_id": "slow", "wait_s": 10}
            trial = calls.post("/v1/studies/back/ask", json=ask).json()["trial"]
            flag.touch()
            kept = calls.post(f"/v1/trials/{trial['id']}/heartbeat", json={"client_id": "slow"})
            taken_over(calls, "back", trial["number"], "heir")
            late = calls.post(f"/v1/trials/{trial['id']}/finish", json={"client_id": "slow", "samples": 0})
            state = calls.get("/v1/studies/back").json()
    finally:
        service.close()

    assert kept.status_code == 200
    assert late.status_code == 409
    assert "End this run" in late.json()["detail"]
    assert (state["state"], [each["state"] for each in state["trials"]]) == ("ended", ["complete"])


def test_a_script_that_is_stopped_is_told_so(service: Service) -> None:
    """SIGSTOP of a client in a process of its own: another gets the trial, and the first goes on with the next."""
    table = synthetic()
    with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as calls:
        calls.post("/v1/studies", json=new_study(table, "stopped", n_trials=1, confirm=0, pruner="none", budget=4))
        code = (
            f"import bstune, time\n"
            f"study = bstune.connect({service.url!r}, study='stopped', n_samples=1024, epochs=16)\n"
            "for trial in study.trials():\n"
            "    print('has', trial.number, flush=True)\n"
            "    time.sleep(3)\n"
            "    try:\n"
            "        trial.report(0.5, samples=trial.max_samples)\n"
            "    except bstune.TrialPruned:\n"
            "        print('pruned', flush=True)\n"
            "print('over', flush=True)\n"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as client:
            try:
                assert client.stdout is not None
                assert client.stdout.readline() == "has 0\n"
                client.send_signal(signal.SIGSTOP)
                heir = calls.post("/v1/studies/stopped/ask", json={"client_id": "heir", "wait_s": 20}).json()["trial"]
                path, end = f"/v1/trials/{heir['id']}", heir["end_samples"]
                calls.post(f"{path}/report", json={"client_id": "heir", "samples": end, "val_loss": 0.25})
                finished = calls.post(f"{path}/finish", json={"client_id": "heir", "samples": end})
                assert finished.status_code == 200
                client.send_signal(signal.SIGCONT)
                assert client.stdout.readline() == "pruned\n"
                assert client.stdout.readline() == "over\n"
            finally:
                client.kill()
        [record] = calls.get("/v1/studies/stopped").json()["trials"]

    assert record["state"] == "complete"
    assert record["val_loss"] == 0.25
