"""Tokens, limits, and addresses that others can reach."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from bstune.cli import main
from bstune.tuner.core.errors import ArgumentError
from bstune.tuner.service import app, connections, limits
from bstune.tuner.service.connections import Connection
from bstune.tuner.service.hub import Hub
from bstune.tuner.service.limits import Gate, Rates
from bstune.tuner.service.tokens import Tokens, read_tokens
from bstune.tuner.studies.storage import open_storage
from bstune.tuner.testing.tables import synthetic
from click.testing import CliRunner

from .conftest import new_study

WRITES, READS = "w" * 20, "r" * 20


def bearer(token: str) -> dict[str, str]:
    """Return the header of a token."""
    return {"authorization": f"Bearer {token}"}


def test_tokens_say_who_may_do_what(make_service: Any) -> None:
    """No token, a wrong one, one that may read, one that may write; none of them is in what the service says."""
    service = make_service()
    service.environment["BSTUNE_TOKENS"] = f"ann write {WRITES};ben read {READS}"
    url, body = service.start().url, new_study(synthetic(), "guarded", budget=2)

    with httpx.Client(base_url=url, trust_env=False) as calls:
        assert calls.get("/healthz").status_code == 200
        assert calls.get("/v1/studies").status_code == 401
        assert "token is needed" in calls.get("/v1/studies").json()["detail"]
        wrong = calls.get("/v1/studies", headers=bearer("x" * 20))
        assert (wrong.status_code, wrong.json()["detail"]) == (401, "This token is not known.")
        assert calls.get(f"/v1/studies?token={WRITES}").status_code == 401
        assert calls.get("/v1/studies", headers=bearer(READS)).json() == []
        assert calls.get("/", auth=("any", READS)).status_code == 200
        assert calls.post("/v1/studies", json=body).status_code == 401
        assert calls.post("/v1/studies", json=body, headers=bearer(READS)).status_code == 403
        assert calls.post("/v1/studies", json=body, auth=("any", WRITES)).status_code == 403
        assert calls.get("/v1/studies", headers=bearer(READS)).json() == []
        assert calls.post("/v1/studies", json=body, headers=bearer(WRITES)).status_code == 200
    service.stop()

    assert WRITES not in service.log()


def test_other_addresses_need_tokens() -> None:
    """Nothing is served to everybody by accident."""
    command = [sys.executable, "-m", "bstune", "serve", "--host", "0.0.0.0", "--port", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert refused.returncode == 2
    assert "on an address that others can reach the service needs tokens" in refused.stderr


def test_a_token_file_is_for_its_owner(tmp_path: Path) -> None:
    """One that others can read is refused, and a wrong line is named without being shown."""
    file = tmp_path / "tokens"
    file.write_text(f"# the team\nann write {WRITES}  # hers\n")
    file.chmod(0o644)
    with pytest.raises(ArgumentError, match="chmod 600"):
        read_tokens(file)
    file.chmod(0o600)
    caller = read_tokens(file).caller(WRITES)
    assert caller is not None
    assert (caller.name, caller.may_write) == ("ann", True)

    file.write_text("ann write secret-but-short\nann all secret\n")
    with pytest.raises(ArgumentError, match="Line 2 of the tokens is wrong") as told:
        read_tokens(file)
    assert "secret" not in str(told.value)


def test_a_wrong_certificate_is_said(tmp_path: Path) -> None:
    """Before anything is opened."""
    (tmp_path / "key").write_text("no key")
    words = ["serve", "--port", "0", "--tls-key", str(tmp_path / "key"), "--tls-certificate", str(tmp_path / "none")]

    told = CliRunner().invoke(main, words)

    assert told.exit_code == 2
    assert "--tls-key" in told.stderr


class Caller:
    """A client of a gate, without a server."""

    def __init__(self, gate: Gate, *parts: bytes, stalls: bool = False) -> None:
        """Send a body in parts; `stalls`: more is announced and never comes."""
        self.gate = gate
        self.parts = list(parts)
        self.stalls = stalls
        self.status = 0

    def call(self, **headers: str) -> int:
        """Call, and return the status."""
        named = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": named, "client": ("1.2.3.4", 5)}
        asyncio.run(self.gate(scope, self._receive, self._send))
        return self.status

    async def _receive(self) -> dict[str, Any]:
        if not self.parts:
            await asyncio.sleep(60)
        body = self.parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(self.parts) or self.stalls}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """Answer 200."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_slow_and_large_bodies_end_at_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that do not say how large they are."""
    monkeypatch.setattr(limits, "BODY_S", 0.05)
    gate = Gate(behind, tokens=Tokens(), hosts=None, rates=Rates(0))
    large = [b"x" * (1 << 19)] * 3

    assert Caller(gate, b"{}").call() == 200
    assert Caller(gate, b"{", stalls=True).call() == 408
    assert Caller(gate, *large).call() == 413
    assert Caller(gate, b"{}").call(**{"content-length": "99999999999"}) == 413
    assert Caller(gate, b"{}").call(**{"content-length": "-1"}) == 413


def test_a_caller_has_a_rate() -> None:
    """Twice as many at once as in a second; then some, as time goes on."""
    now = 0.0
    rates = Rates(5, clock=lambda: now)

    assert [rates.allow("a") for _ in range(12)] == [True] * 10 + [False] * 2
    assert rates.allow("b")
    now = 1.0
    assert [rates.allow("a") for _ in range(6)] == [True] * 5 + [False]
    assert Caller(Gate(behind, tokens=Tokens(), hosts=None, rates=Rates(0.4)), b"").call() == 429


def test_strangers_have_a_rate_too() -> None:
    """Guessing tokens is no faster than calling with one."""
    gate = Gate(behind, tokens=Tokens([f"ann write {WRITES}"]), hosts=None, rates=Rates(1.5))

    assert [Caller(gate, b"").call(authorization="Bearer guess") for _ in range(4)] == [401] * 3 + [429]
    assert Caller(gate, b"").call(authorization=f"Bearer {WRITES}") == 200


async def _half_asked(config: uvicorn.Config) -> bytes:
    """Call over a connection, then send half of another call, and return what comes until the connection is closed."""
    state = uvicorn.server.ServerState()
    make = partial(Connection, config, state, {})
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    first = await reader.readuntil(b"0\r\n\r\n")
    writer.write(b"GET / HT")
    rest = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    server.close()
    return first + rest


def test_half_a_call_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a whole one came before it on the same connection."""
    monkeypatch.setattr(connections, "REQUEST_S", 0.2)
    config = uvicorn.Config(behind, http=Connection, ws="none", lifespan="off", log_level="warning")
    config.load()

    assert asyncio.run(_half_asked(config)).count(b"HTTP/1.1 200") == 1


def test_studies_and_clients_that_wait_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more of either is told to come later, and nothing is made."""
    monkeypatch.setattr(app, "MOST_POLLS", 1)
    table = synthetic()

    async def called(hub: Hub) -> list[int]:
        gate = Gate(app.make_app(hub, stopping=lambda: False), tokens=Tokens(), hosts=None, rates=Rates(0))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://x") as calls:
            made = [await calls.post("/v1/studies", json=new_study(table, "one", budget=2) | {"waits": True})]
            made.append(await calls.post("/v1/studies", json=new_study(table, "two", budget=2)))
            asks = [calls.post("/v1/studies/one/ask", json={"client_id": name, "wait_s": 0.5}) for name in "ab"]
            return [answer.status_code for answer in [*made, *await asyncio.gather(*asks)]]

    with open_storage(f"sqlite:///{tmp_path}/one.db") as storage:
        hub = Hub(storage, lease_s=5, most_studies=1, broken=lambda error: None)
        with contextlib.closing(hub):
            *made, first, second = asyncio.run(called(hub))
            assert [served.name for served in hub.studies] == storage.names() == ["one"]
    assert made == [200, 409]
    assert sorted([first, second]) == [200, 503]
