"""The service under load: many clients, killed and started again, and what its own description promises.

`python benchmarks/service.py load --seconds 60` has 32 clients in 8 studies ask, report and finish as fast as they
can, on loopback; where one has ended its clients make the next, and old ones are deleted. `--kills 10` ends the service
with SIGKILL so many times meanwhile; `--rate 200` limits all clients together to so many reports a second. Afterwards
each client's own log is compared with what the service has stored.
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
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

KEPT, READ_S = 24, 5.0
"""So many studies are left by each look, which comes so often in seconds: those that ended first are deleted."""
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


class Books:
    """What the service has stored, by trial; studies that have ended are deleted, so that only some are kept."""

    def __init__(self, server: Server) -> None:
        """Read from a server."""
        self.server = server
        self.open()
        self.records: dict[str, Any] = {}
        self.n_deleted = 0

    def open(self) -> None:
        """Begin with a connection of its own, which is kept: to make one takes longer than a call."""
        self.calls = httpx.Client(trust_env=False, timeout=120)

    def get(self, path: str) -> httpx.Response:
        """Return an answer."""
        answer = self.calls.get(f"{self.server.url}{path}")
        assert answer.status_code == 200, answer.text
        return answer

    def read(self, keep: int) -> None:
        """Read the studies that have ended but for the latest ones, and delete them; 0: read all, delete none."""
        studies = self.get("/v1/studies").json()
        ended = [each["name"] for each in studies if each["state"] == "ended"]
        ended.sort(key=lambda name: int(name.rpartition("-")[2]))
        names = ended[: max(0, len(studies) - keep)] if keep else [each["name"] for each in studies]
        for name in names:
            for trial in self.get(f"/v1/studies/{name}").json()["trials"]:
                self.records[f"{name}:{trial['number']}"] = trial
            if keep:
                self.calls.delete(f"{self.server.url}/v1/studies/{name}").raise_for_status()
                self.n_deleted += 1


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Load a service, and return what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="bstune-load-"))
    server = Server(folder, options.storage)
    first_start_s = server.start()
    books = Books(server)
    per_s = options.rate / options.clients if options.rate else 0.0
    clients = Path(__file__).with_name("service_clients.py")
    run = subprocess.Popen(
        [sys.executable, str(clients), str(server.port), str(options.clients), str(per_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.process is not None
    assert run.stdin is not None
    started = psutil.Process(server.process.pid).cpu_times()  # Of which much is imports.
    watched = Watched(server, books)
    begun_s = time.monotonic()
    for kill in range(options.kills + 1):
        watched.look(options.seconds / (options.kills + 1))  # So long it is up each time.
        if kill < options.kills:
            server.stop(signal.SIGKILL)
            watched.restarts_s.append(server.start())
            books.open()
    clients_cpu = sum(psutil.Process(run.pid).cpu_times()[:2])
    run.stdin.close()
    run.stdin = None
    loaded_s = time.monotonic() - begun_s
    logs = json.loads(run.communicate()[0])
    metrics = [line for line in books.get("/metrics").text.splitlines() if line.startswith("bstune_calls_total")]
    books.read(keep=0)
    cpu = psutil.Process(server.process.pid).cpu_times()
    cpu_s = cpu.user + cpu.system - started.user - started.system
    server.stop()
    found = checked(logs, books.records)
    return {
        "storage": "sqlite" if options.storage is None else options.storage.partition(":")[0],
        "clients": options.clients,
        "seconds": options.seconds,
        "kills": options.kills,
        "reports_per_s_asked": options.rate or "as fast as they can",
        "reports_per_s": round(found["reports_acknowledged"] / loaded_s, 1),
        **found,
        "wall_s": round(loaded_s, 1),
        "studies_deleted": books.n_deleted,
        "server_errors": sum(count(line) for line in metrics if 'status="5' in line),
        "latency_ms": {what: quantiles(logs, what) for what in ("create", "ask", "report", "finish")},
        **watched.said(),
        "cpu_ms_per_call": None if options.kills else round(1e3 * cpu_s / max(1.0, sum(map(count, metrics))), 2),
        "service_cores": None if options.kills else round(cpu_s / loaded_s, 2),
        "clients_cores": round(clients_cpu / loaded_s, 2),
        "load_average": os.getloadavg()[0],
        "start_s": round(first_start_s, 1),
    }


def count(line: str) -> float:
    """Return the value of a line of metrics."""
    return float(line.rpartition(" ")[2])


class Watched:
    """Memory of the service, and how soon it answers a call of another one."""

    def __init__(self, server: Server, books: Books) -> None:
        """Watch a server from now on."""
        self.server, self.books = server, books
        self.memory_mb: list[float] = []
        self.alive_s: list[float] = []
        self.restarts_s: list[float] = []

    def look(self, seconds: float) -> None:
        """Look for so long."""
        end_s, read_s = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < end_s:
            assert self.server.process is not None
            self.memory_mb.append(psutil.Process(self.server.process.pid).memory_info().rss / 2**20)
            start_s = time.perf_counter()
            self.books.get("/healthz")
            self.alive_s.append(time.perf_counter() - start_s)
            if time.monotonic() - read_s > READ_S:
                self.books.read(keep=KEPT)
                read_s = time.monotonic()
            time.sleep(min(0.5, max(0.01, end_s - time.monotonic())))

    def said(self) -> dict[str, Any]:
        """Return what was seen."""
        times, memory = sorted(self.alive_s), self.memory_mb
        return {
            "healthz_ms": {"p50": round(1e3 * times[len(times) // 2], 1), "max": round(1e3 * times[-1], 1)},
            "memory_mb": [round(memory[n * (len(memory) - 1) // 10]) for n in range(11)],
            "restart_s": [round(value, 1) for value in self.restarts_s],
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
    times, books = [], Books(server)
    for _ in range(50):
        start_s = time.perf_counter()
        books.get("/healthz")
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
    options = parser.parse_args()
    if options.what == "described":
        sys.exit(described(options))
    else:
        found = (load if options.what == "load" else idle)(options)
        print(json.dumps(found, indent=1))
        sys.exit(any(found.get(name) for name in HARM))


if __name__ == "__main__":
    main()
