"""A service in a process of its own, and clients that train by a table."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from bstune.tuner.client.link import Link
from bstune.tuner.client.relay import Relay
from bstune.tuner.core.trials import TrialSpec
from bstune.tuner.testing.replay import TablePool
from bstune.tuner.testing.tables import Table

PATIENCE_S = 60


class Service:
    """`bstune serve`, started when it is asked for; it can be killed and started again at the same address."""

    def __init__(self, folder: Path, *options: str, storage: str | None = None, program: str = "") -> None:
        """Serve a storage in a folder with these options; `program` stands for bstune's own."""
        self.folder = folder
        self.storage = storage or f"sqlite:///{folder / 'service.db'}"
        self.options = options
        self.program = ["-c", program] if program else ["-m", "bstune"]
        self.port = 0
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Service:
        """Start it, and wait until it answers."""
        command = [sys.executable, *self.program, "serve", "--port", str(self.port), "--storage", self.storage]
        with (self.folder / "serve.log").open("a") as log:
            log.write("--- start\n")
            log.flush()
            self._process = subprocess.Popen(
                [*command, *self.options], stderr=log, text=True, env={**os.environ, **self.environment}
            )
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            said = self.log().rpartition("--- start\n")[2]
            if (found := re.search(r" at https?://[^:]+:(\d+)", said)) is not None:
                self.port = int(found[1])
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"{self.url}/healthz", trust_env=False)
                    return self
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"The service did not start: {self.log()}")

    def log(self) -> str:
        """Return what it has said."""
        return (self.folder / "serve.log").read_text()

    def kill(self) -> None:
        """End it at once, as a power failure would."""
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        """Leave nothing behind."""
        if self._process is not None and self._process.poll() is None:
            self.kill()


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Any]:
    """Makes services that end with the test."""
    made: list[Service] = []

    def make(*options: str, **more: Any) -> Service:
        made.append(Service(tmp_path, *options, **more))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests of a file that do without one of their own; its leases are short.

    Not for the whole session: other tests see to it that nothing runs any more.
    """
    made = Service(tmp_path_factory.mktemp("service"), "--lease", "1.5", "--rate", "0")
    yield made.start()
    made.close()


@pytest.fixture
def calls(service: Service) -> Iterator[httpx.Client]:
    """Plain calls to it."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as client:
        yield client


class KeepingPool(TablePool):
    """A table whose runs leave checkpoints that can be found."""

    def submit(self, spec: TrialSpec) -> None:
        """Start a run."""
        super().submit(spec)
        if spec.checkpoint_to is not None:
            Path(spec.checkpoint_to).touch()


def new_study(table: Table, name: str, *, facts: dict[str, Any] | None = None, **search: Any) -> dict[str, Any]:
    """Return the body that makes a study of a table."""
    return {
        "name": name,
        "facts": asdict(table.facts(name=None, **(facts or {}))),
        "search": {"space": table.space, **search},
        "device": "table",
    }


def train(url: str, study: str, table: Table, folder: Path, client: str = "one") -> str:
    """Run the trials of a study by the table until it has ended, and return by what."""
    link = Link(url)
    with contextlib.closing(link):
        relay = Relay(link, study, client, device="table", folder=folder, say=lambda _: None)
        return relay.run(KeepingPool(table))
