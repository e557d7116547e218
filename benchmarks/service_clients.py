"""The clients of `service.py load`: plain HTTP over one connection each, so that they cost next to nothing themselves.

Each runs trials by a table, writes down what the service has answered, and goes to the next study when its own has
ended. They run until stdin ends, and then print their logs.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import re
import sys
import time
from dataclasses import asdict
from typing import Any

from bstune.tuner.client.link import AGAIN, study_path, trial_path
from bstune.tuner.testing.tables import Table, synthetic

STUDIES = 8
"""Searched at the same time."""
GIVE_UP_S = 120.0
CALL_S = 60.0


class RefusedError(Exception):
    """The service refuses a call."""


class AwayError(Exception):
    """The service was away for long."""


def study_name(group: int, turn: int) -> str:
    """Return the study that a group of clients searches at its turn."""
    return f"load-{group}-{turn}"


def study_body(table: Table, group: int, turn: int) -> dict[str, Any]:
    """Return the body that makes a study of as many trials as the table has settings."""
    search = {"space": table.space, "budget": 5000, "seed": 1000 * group + turn, "sampler": "random", "pruner": "none"}
    facts = asdict(table.facts(name=None))
    return {"name": study_name(group, turn), "facts": facts, "search": search, "device": "table"}


class Connection:
    """One connection to the service, which is made anew when it was lost."""

    def __init__(self, port: int) -> None:
        """Lead to a port of this machine, from the first call on."""
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and answer.

        Raises:
            ConnectionError: There was none.
        """
        try:
            return await asyncio.wait_for(self._post(path, json.dumps(body).encode()), CALL_S)
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            raise ConnectionError(str(error)) from error

    async def _post(self, path: str, content: bytes) -> tuple[int, Any]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        self._writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = re.search(r"\r\ncontent-length: (\d+)", answer)
        assert length is not None, answer
        said = await self._reader.readexactly(int(length[1]))
        return int(answer[9:12]), json.loads(said)


class Client:
    """One client."""

    def __init__(self, port: int, number: int, table: Table, per_s: float) -> None:
        """Report so often a second; 0: as fast as it can."""
        self.name, self.group, self.turn = f"client-{number}", number % STUDIES, 0
        self.connection, self.table, self.per_s = Connection(port), table, per_s
        self.over = False
        self.next_s = time.monotonic() + random.random() / per_s if per_s else 0.0
        self.reported: list[tuple[str, int, float | None]] = []
        self.finished: list[str] = []
        self.handed: list[str] = []
        self.refused: list[str] = []
        self.latencies: dict[str, list[float]] = collections.defaultdict(list)

    async def run(self) -> None:
        """Run trials until it is told to end."""
        while not self.over:
            with contextlib.suppress(AwayError):
                await self._call("create", "/v1/studies", study_body(self.table, self.group, self.turn))
                await self._search(study_name(self.group, self.turn))

    async def _search(self, study: str) -> None:
        while not self.over:
            body = {"client_id": self.name, "device": "table", "wait_s": 2.0}
            try:
                answer = await self._call("ask", study_path(study, "/ask"), body)
            except RefusedError as error:
                self.refused.append(f"{study}: {error}")
                answer = {"state": "refused"}
            if answer["state"] == "trial":
                await self._train(answer["trial"])
            elif answer["state"] != "wait":
                self.turn += 1
                return

    async def _train(self, trial: dict[str, Any]) -> None:
        self.handed.append(trial["id"])
        samples, who = 0, {"client_id": self.name, "seconds": 1.0}
        try:
            for point in trial["points"]:
                samples = min(point, trial["end_samples"])
                loss = self.table.loss(trial["global_batch_size"], trial["learning_rate"], trial["seed"], samples)
                said = loss if loss == loss else None
                await self._pace()
                body = {**who, "samples": samples, "val_loss": said}
                verdict = (await self._call("report", trial_path(trial["id"], "report"), body))["verdict"]
                self.reported.append((trial["id"], samples, said))
                if verdict == "stop":
                    break
            await self._call("finish", trial_path(trial["id"], "finish"), {**who, "samples": samples})
            self.finished.append(trial["id"])
        except RefusedError as error:
            self.refused.append(f"{trial['id']}: {error}")

    async def _pace(self) -> None:
        """Wait until the next report is due, at no beat that others share; what is late for long is not made up for."""
        if self.per_s:
            self.next_s = max(self.next_s + random.uniform(0.5, 1.5) / self.per_s, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, self.next_s - time.monotonic()))

    async def _call(self, what: str, path: str, body: dict[str, Any]) -> Any:
        """Return the answer to a call that is repeated while the service is away."""
        start_s, wait_s = time.perf_counter(), 0.1
        while True:
            with contextlib.suppress(ConnectionError):
                status, answer = await self.connection.post(path, body)
                if status not in AGAIN:
                    break
            if time.perf_counter() - start_s > GIVE_UP_S:
                raise AwayError
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, 2.0)
        self.latencies[what].append(time.perf_counter() - start_s)
        if status >= 400:
            raise RefusedError(f"{status} {answer}")
        return answer


async def main(port: int, count: int, per_s: float) -> None:
    """Run the clients."""
    table = synthetic()
    made = [Client(port, number, table, per_s) for number in range(count)]

    async def end() -> None:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for each in made:
            each.over = True

    await asyncio.gather(end(), *(each.run() for each in made))
    names = ("reported", "finished", "handed", "refused", "latencies", "name")
    print(json.dumps([{name: getattr(each, name) for name in names} for each in made]))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
