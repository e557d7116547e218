"""The service under load: many clients, killed and started again, and what its own description promises.

`python benchmarks/service.py load --seconds 60` has 32 clients in 8 studies ask, report and finish as fast as they
can, on loopback. `--kills 10` ends the service with SIGKILL so many times meanwhile; `--rate 200` limits all clients
together to so many reports a second. Afterwards each client's own log is compared with what the service has stored.
`python benchmarks/service.py idle` opens 1,000 connections that send nothing; `described` has schemathesis call
whatever the OpenAPI description allows. Clients train by a table, so that all time is the service's.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil
from bstune.tuner.client.link import AwayError, Link, RefusedError, study_path, trial_path
from bstune.tuner.testing.tables import Table, synthetic

STUDIES = 8
PROCESSES = 4
HARM = (
    "finished_but_not_stored",
    "finished_twice",
    "finished_by_two",
    "handed_to_two",
    "reports_lost",
    "reports_with_another_value",
    "points_stored_twice",
    "orphans",
    "server_errors",
)
"""What must be zero."""
OVER = threading.Event()
"""In a process of clients: they are to end."""


class Server:
    """`bstune serve` in a process of its own."""

    def __init__(self, folder: Path, storage: str | None, *options: str) -> None:
        """Keep its log in a folder."""
        self.command = [sys.executable, "-m", "bstune", "serve", "--rate", "0", *options]
        self.command += ["--storage", storage or f"sqlite:///{folder / 'load.db'}"]
        self.log = folder / "serve.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Start it, and return the seconds until it answers."""
        start_s = time.monotonic()
        with self.log.open("ab") as log:
            log.write(b"--- start\n")
            log.flush()
            self.process = subprocess.Popen([*self.command, "--port", str(self.port)], stderr=log)
        while True:
            found = re.search(r" at http://[^:]+:(\d+)", self.log.read_text().rpartition("--- start\n")[2])
            if found is not None:
                self.port = int(found[1])
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"{self.url}/healthz", trust_env=False)
                    return time.monotonic() - start_s
            if self.process.poll() is not None:
                raise SystemExit(self.log.read_text())
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)


def study_body(table: Table, name: str, seed: int) -> dict[str, Any]:
    """Return the body that makes a study which does not end while the load lasts."""
    search = {"space": table.space, "budget": 5000, "seed": seed, "sampler": "random", "pruner": "none"}
    return {"name": name, "facts": asdict(table.facts(name=None)), "search": search, "device": "table"}


class Client:
    """One client: it runs trials by the table and writes down what the service has answered."""

    def __init__(self, url: str, study: str, name: str, table: Table, per_s: float) -> None:
        """Take part in a study."""
        self.link, self.study, self.name, self.table = Link(url, give_up_s=120), study, name, table
        self.per_s = per_s
        self.next_s = time.monotonic()
        self.reported: list[tuple[str, int, float | None]] = []
        self.finished: list[str] = []
        self.handed: list[str] = []
        self.refused: list[str] = []
        self.latencies: dict[str, list[float]] = collections.defaultdict(list)

    def run(self) -> None:
        """Run trials until it is told to end."""
        while not OVER.is_set():
            with contextlib.suppress(AwayError):
                answer = self._post("ask", study_path(self.study, "/ask"), {"device": "table", "wait_s": 2.0})
                if answer["state"] == "trial":
                    self._train(answer["trial"])
        self.link.stopped.set()

    def _train(self, trial: dict[str, Any]) -> None:
        self.handed.append(trial["id"])
        samples = 0
        try:
            for point in trial["points"]:
                samples = min(point, trial["end_samples"])
                loss = self.table.loss(trial["global_batch_size"], trial["learning_rate"], trial["seed"], samples)
                said = loss if loss == loss else None
                body = {"samples": samples, "val_loss": said, "seconds": 1.0}
                verdict = self._post("report", trial_path(trial["id"], "report"), body)["verdict"]
                self.reported.append((trial["id"], samples, said))
                self._pace()
                if verdict == "stop":
                    break
            self._post("finish", trial_path(trial["id"], "finish"), {"samples": samples, "seconds": 1.0})
            self.finished.append(trial["id"])
        except RefusedError as error:
            self.refused.append(f"{trial['id']}: {error}")

    def _pace(self) -> None:
        """Wait until the next report is due; what was late for long is not made up for."""
        if self.per_s:
            self.next_s = max(self.next_s + 1 / self.per_s, time.monotonic() - 1)
            time.sleep(max(0.0, self.next_s - time.monotonic()))

    def _post(self, what: str, path: str, body: dict[str, Any]) -> Any:
        start_s = time.perf_counter()
        answer = self.link.post(path, {"client_id": self.name, **body}, wait_s=2.0)
        self.latencies[what].append(time.perf_counter() - start_s)
        return answer


def clients(url: str, first: int, count: int, per_s: float) -> None:
    """Run some clients in threads of this process until stdin ends, and print their logs."""
    table = synthetic()
    made = [Client(url, f"load-{n % STUDIES}", f"client-{n}", table, per_s) for n in range(first, first + count)]
    threads = [threading.Thread(target=each.run) for each in made]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    OVER.set()
    for thread in threads:
        thread.join()
    logs = [
        {name: getattr(each, name) for name in ("reported", "finished", "handed", "refused", "latencies", "name")}
        for each in made
    ]
    print(json.dumps(logs))


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Load a service, and return what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="bstune-load-"))
    server = Server(folder, options.storage)
    first_start_s = server.start()
    for n in range(STUDIES):
        httpx.post(f"{server.url}/v1/studies", json=study_body(synthetic(), f"load-{n}", n), trust_env=False)
    per_s = options.rate / options.clients if options.rate else 0.0
    each = options.clients // PROCESSES
    runs = [
        subprocess.Popen(
            [sys.executable, __file__, "clients", server.url, str(n * each), str(each), str(per_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for n in range(PROCESSES)
    ]
    memory_mb, restarts, alive_s = [], [], []
    assert server.process is not None
    started = psutil.Process(server.process.pid).cpu_times()  # Of which much is imports.
    begun_s = time.time()
    for kill in range(options.kills + 1):
        kill_s = time.time() + options.seconds / (options.kills + 1)  # So long it is up each time.
        while time.time() < kill_s:
            assert server.process is not None
            memory_mb.append(psutil.Process(server.process.pid).memory_info().rss / 2**20)
            start_s = time.perf_counter()
            httpx.get(f"{server.url}/healthz", trust_env=False, timeout=60)
            alive_s.append(time.perf_counter() - start_s)
            time.sleep(min(0.5, max(0.01, kill_s - time.time())))
        if kill < options.kills:
            server.stop(signal.SIGKILL)
            restarts.append(server.start())
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()
        run.stdin = None
    loaded_s = time.time() - begun_s
    logs = [log for run in runs for log in json.loads(run.communicate()[0])]
    metrics = httpx.get(f"{server.url}/metrics", trust_env=False, timeout=60).text
    records = {
        f"load-{n}:{trial['number']}": trial
        for n in range(STUDIES)
        for trial in httpx.get(f"{server.url}/v1/studies/load-{n}", trust_env=False, timeout=120).json()["trials"]
    }
    assert server.process is not None
    cpu = psutil.Process(server.process.pid).cpu_times()
    calls = sum(
        float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith("bstune_calls_total")
    )
    server.stop()
    return {
        "storage": "sqlite" if options.storage is None else options.storage.partition(":")[0],
        "clients": options.clients,
        "seconds": options.seconds,
        "kills": options.kills,
        "reports_per_s_asked": options.rate or "as fast as they can",
        **checked(logs, records),
        "wall_s": round(loaded_s, 1),
        "server_errors": sum(
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("bstune_calls_total") and 'status="5' in line
        ),
        "latency_ms": {what: quantiles(logs, what) for what in ("ask", "report", "finish")},
        "healthz_ms": {"p50": round(1e3 * sorted(alive_s)[len(alive_s) // 2], 1), "max": round(1e3 * max(alive_s), 1)},
        "cpu_ms_per_call": None
        if options.kills
        else round(1e3 * (cpu.user + cpu.system - started.user - started.system) / max(1.0, calls), 1),
        "load_average": os.getloadavg()[0],
        "memory_mb": [round(value) for value in (memory_mb[0], memory_mb[len(memory_mb) // 2], memory_mb[-1])],
        "start_s": round(first_start_s, 1),
        "restart_s": [round(value, 1) for value in restarts],
    }


def checked(logs: list[Any], records: dict[str, Any]) -> dict[str, Any]:
    """Compare what the clients were told with what is stored."""
    finished = collections.Counter(trial for log in logs for trial in log["finished"])
    owners, holders = collections.defaultdict(set), collections.defaultdict(set)
    for log in logs:
        for trial in log["finished"]:
            owners[trial].add(log["name"])
        for trial in log["handed"]:
            holders[trial].add(log["name"])
    lost_reports = wrong_reports = 0
    for trial, samples, loss in (report for log in logs for report in log["reported"]):
        curve = dict(records[trial]["values"]) if trial in records else {}
        # A point past the end by less than a step is reported at the end.
        stored = {min(step, records[trial]["end_samples"]): value for step, value in curve.items()} if curve else {}
        lost_reports += samples not in stored
        wrong_reports += samples in stored and stored[samples] != loss
    return {
        "trials_finished": len(finished),
        "reports_acknowledged": sum(len(log["reported"]) for log in logs),
        "finished_but_not_stored": sum(records.get(t, {}).get("state") in (None, "running") for t in finished),
        "finished_twice": sum(count > 1 for count in finished.values()),
        "finished_by_two": sum(len(names) > 1 for names in owners.values()),
        "handed_to_two": sum(len(names) > 1 for names in holders.values()),  # No client is silent for its lease.
        "reports_lost": lost_reports,
        "reports_with_another_value": wrong_reports,
        "points_stored_twice": sum(
            len(trial["values"]) != len({step for step, _ in trial["values"]}) for trial in records.values()
        ),
        "orphans": sum(trial["cause"] == "orphan" for trial in records.values()),
        "refused": sum(len(log["refused"]) for log in logs),
    }


def quantiles(logs: list[Any], what: str) -> dict[str, float]:
    values = sorted(value for log in logs for value in log["latencies"].get(what, ()))
    if not values:
        return {}
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(1e3 * values[min(len(values) - 1, int(q * len(values)))], 1) for name, q in at.items()}


def idle(options: argparse.Namespace) -> dict[str, Any]:
    """Open connections that send nothing, and see how others fare."""
    folder = Path(tempfile.mkdtemp(prefix="bstune-idle-"))
    server = Server(folder, None)
    server.start()
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(options.connections)]
    for sock in held[:100]:
        sock.sendall(b"POST /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
    times = []
    for _ in range(50):
        start_s = time.perf_counter()
        assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200
        times.append(time.perf_counter() - start_s)
    time.sleep(18)
    assert server.process is not None
    left = sum(each.status == "ESTABLISHED" for each in psutil.Process(server.process.pid).net_connections("tcp"))
    server.stop()
    for sock in held:
        sock.close()
    times.sort()
    return {"connections": len(held), "healthz_p50_ms": round(1e3 * times[25], 1), "left_after_18_s": left}


def described(options: argparse.Namespace) -> int:
    """Have schemathesis call what the description allows; return its exit code."""
    folder = Path(tempfile.mkdtemp(prefix="bstune-described-"))
    server = Server(folder, None)
    server.start()
    tool = Path(sys.executable).with_name("schemathesis")
    command = [str(tool), "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error"]
    command += ["--max-examples", str(options.examples), "--exclude-path-regex", "events", "--request-timeout", "40"]
    done = subprocess.run(command, check=False, env={**os.environ, "NO_PROXY": "127.0.0.1"}, cwd=folder)
    server.stop()
    return done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    loaded = commands.add_parser("load")
    loaded.add_argument("--seconds", type=float, default=60.0)
    loaded.add_argument("--clients", type=int, default=32)
    loaded.add_argument("--kills", type=int, default=0)
    loaded.add_argument("--rate", type=float, default=0.0, help="reports a second of all clients together; 0: any")
    loaded.add_argument("--storage")
    idling = commands.add_parser("idle")
    idling.add_argument("--connections", type=int, default=1000)
    describing = commands.add_parser("described")
    describing.add_argument("--examples", type=int, default=50)
    some = commands.add_parser("clients")
    for name, kind in (("url", str), ("first", int), ("count", int), ("per_s", float)):
        some.add_argument(name, type=kind)
    options = parser.parse_args()
    if options.what == "clients":
        clients(options.url, options.first, options.count, options.per_s)
    elif options.what == "described":
        sys.exit(described(options))
    else:
        found = (load if options.what == "load" else idle)(options)
        print(json.dumps(found, indent=1))
        sys.exit(any(found.get(name) for name in HARM))


if __name__ == "__main__":
    main()
