"""What stands before every call: who calls, how often, how much it sends and how slowly; and the headers of answers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .tokens import Caller, Tokens

MOST_BODY = 1 << 20
BODY_S = 10.0
"""Seconds that a body may take to arrive."""
MOST_CALLERS = 10_000
"""Callers whose rate is remembered."""
OPEN = frozenset({"/healthz"})
"""Paths that need no token."""
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Rates:
    """A bucket for each caller: so many calls a second, and as many at once."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow `per_s` calls a second, or any number if it is 0."""
        self._per_s = per_s
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, caller: str) -> bool:
        """Count a call, and tell whether it is allowed."""
        if not self._per_s:
            return True
        now = self._clock()
        left, at = self._buckets.pop(caller, (2 * self._per_s, now))
        left = min(2 * self._per_s, left + (now - at) * self._per_s)
        self._buckets[caller] = (left - (left >= 1), now)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        return left >= 1


class Gate:
    """Lets through what may come in, with its whole body, and adds the headers to what goes out."""

    def __init__(self, app: App, *, tokens: Tokens, hosts: frozenset[str] | None, rates: Rates) -> None:
        """Stand before an application; `hosts` are the names that it may be called by, None for any."""
        self._app = app
        self._tokens = tokens
        self._hosts = hosts
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message.get("headers", ())}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name, value) for name, value in HEADERS if name not in names),
                ]
            await send(message)

        headers = dict(scope["headers"])
        refused = self._refused(scope, headers)
        if refused is None:
            try:
                body = await asyncio.wait_for(_body(headers, receive), BODY_S)
            except asyncio.TimeoutError:
                refused = 408, f"The body did not arrive within {BODY_S:g} s.", ()
            except ConnectionError:
                return
            else:
                if body is None:
                    refused = 413, f"The body is larger than {MOST_BODY} bytes.", ()
        if refused is not None:
            await _answer(send_with_headers, *refused)
            return
        await self._app(scope, _replayed(body or b"", receive), send_with_headers)

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str, Any] | None:
        host = headers.get(b"host", b"").decode("latin-1").rpartition("]")
        name = f"{host[0]}]" if host[1] else host[2].partition(":")[0]
        if self._hosts is not None and name.lower() not in self._hosts:
            return 421, "This service is called by another name.", ()
        address = (scope.get("client") or ("", 0))[0]
        caller: Caller | None = Caller("", False)
        if scope["path"] not in OPEN:
            token, by_browser = _token(headers)
            caller = self._tokens.caller(token)
            if caller is None and not self._rates.allow(f"a stranger at {address}"):
                return 429, "Too many calls: wait a second.", ((b"retry-after", b"1"),)
            if caller is None:
                return (
                    401,
                    "A token is needed: Authorization: Bearer TOKEN." if token is None else "This token is not known.",
                    ((b"www-authenticate", b'Basic realm="bstune: any name, the token as password", charset="UTF-8"'),),
                )
            reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
            if not reads and not caller.may_write:
                return 403, "This token may only read.", ()
            # A browser adds its password by itself, also when another page sends it here; a token it does not.
            if not reads and by_browser and self._tokens:
                return 403, "To write, send the token as Authorization: Bearer TOKEN.", ()
        assert caller is not None
        if not self._rates.allow(caller.name or address):
            return 429, "Too many calls: wait a second.", ((b"retry-after", b"1"),)
        scope.setdefault("state", {})["caller"] = caller
        return None


def _token(headers: dict[bytes, bytes]) -> tuple[str | None, bool]:
    """Return the token of a call, and whether a browser's user typed it as a password."""
    scheme, _, rest = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip(), False
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2], True
        except (binascii.Error, UnicodeDecodeError):
            return None, True
    return None, False


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
    """Return the whole body; None where it is too large."""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > MOST_BODY:
        return None
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BODY:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(send: Send, status: int, said: str, headers: Any) -> None:
    body = json.dumps({"detail": said}).encode()
    length = (b"content-length", str(len(body)).encode())
    start = [(b"content-type", b"application/json"), length, *headers]
    if status in (408, 413):
        start.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
