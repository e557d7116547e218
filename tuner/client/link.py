"""Calls to the service: repeated while it is away, for each may be; refused when it refuses."""

from __future__ import annotations

import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from ..core.errors import ArgumentError, BstuneError
from ..core.plain_text import one_line

VARIABLE = "BSTUNE_TOKEN"
AGAIN = frozenset({408, 429, 500, 502, 503, 504})
"""What a service, or what stands before it, answers while it is away or busy."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 15.0
GIVE_UP_S = 3600.0
"""A service that is away for so long is given up."""
CALL_S = 20.0
STREAM_S = 60.0
"""A stream of events says at least now and then that it is there."""


class AwayError(BstuneError):
    """The service could not be reached for long."""


class RefusedError(BstuneError):
    """The service has refused a call.

    Attributes:
        status: As HTTP has it.
    """

    def __init__(self, message: str, status: int) -> None:
        """Keep the status beside the message."""
        super().__init__(message)
        self.status = status


class Link:
    """The service at one address."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        give_up_s: float = GIVE_UP_S,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Call the service at `url`, with a token if it needs one; by default that of the variable BSTUNE_TOKEN.

        Raises:
            ArgumentError: The address is none.
            BstuneError: The extra `serve` is not installed.
        """
        try:
            import httpx
        except ImportError as error:
            raise BstuneError(
                f"A client of the service needs the extra: pip install 'bstune[serve]' ({error})."
            ) from error
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ArgumentError(f"{one_line(url)[:200]}: expected the address of a service, http://HOST:PORT.")
        token = token or os.environ.get(VARIABLE)
        headers = {} if not token else {"authorization": f"Bearer {token}"}
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self.url = url.rstrip("/")
        self.stopped = threading.Event()
        """Set from another thread: no call is repeated or waited for any more."""
        self._give_up_s = give_up_s
        self._say = say
        self._clock = clock
        self._httpx = httpx
        # The system's authorities, or those of SSL_CERT_FILE: a team may have one of its own.
        verify = ssl.create_default_context() if parts.scheme == "https" else True
        # A proxy of the environment is not for this machine itself.
        self._client = httpx.Client(
            base_url=self.url, headers=headers, timeout=CALL_S, trust_env=not local, verify=verify
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def post(self, path: str, body: dict[str, Any], *, wait_s: float = 0.0, patience_s: float | None = None) -> Any:
        """Return the answer to a call that may be repeated.

        Args:
            path: Below the address.
            body: As JSON.
            wait_s: Seconds that the service may take to answer beside the usual.
            patience_s: Seconds to repeat the call while the service is away; default: until it is given up.

        Raises:
            RefusedError: The service has understood, and refuses.
            AwayError: It is away for longer than that.
        """
        patience_s = self._give_up_s if patience_s is None else patience_s
        start_s, wait, away = self._clock(), FIRST_WAIT_S, ""
        while True:
            try:
                answer = self._client.post(path, json=body, timeout=CALL_S + wait_s)
                if answer.status_code not in AGAIN:
                    return _content(answer)
                away = f"it answers {answer.status_code}: {_detail(answer)}"
            except self._httpx.TransportError as error:
                away = str(error) or type(error).__name__
                if "CERTIFICATE_VERIFY_FAILED" in away:  # It will not be another in a minute.
                    raise RefusedError(
                        f"The certificate of {self.url} is not trusted: {one_line(away)[:300]}. Name its "
                        "authority with SSL_CERT_FILE.",
                        495,
                    ) from error
            if self._clock() - start_s > patience_s or self.stopped.is_set():
                raise AwayError(f"The service at {self.url} cannot be reached: {one_line(away)[:300]}.")
            if wait == FIRST_WAIT_S and patience_s > 1:
                self._say(f"The service at {self.url} cannot be reached ({one_line(away)[:200]}); trying again.")
            self.stopped.wait(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, LONGEST_WAIT_S)

    def get(self, path: str) -> Any:
        """Return what the service says of something.

        Raises:
            RefusedError: There is none.
            AwayError: The service is away.
        """
        try:
            answer = self._client.get(path)
        except self._httpx.TransportError as error:
            raise AwayError(f"The service at {self.url} cannot be reached: {one_line(str(error))[:300]}.") from error
        if answer.status_code in AGAIN:
            raise AwayError(
                f"The service at {self.url} does not work: it answers {answer.status_code}: {_detail(answer)}."
            )
        return _content(answer)

    def events(self, path: str, after: str | None = None) -> Iterator[tuple[str, str | None, Any]]:
        """Yield kind, number and content of what the service streams, until it ends; `after`: those after a number.

        The first is of kind `open`, when the stream stands.

        Raises:
            RefusedError: There is no such stream.
            AwayError: The service is, or goes, away.
        """
        headers = {} if after is None else {"last-event-id": after}
        timeout = self._httpx.Timeout(CALL_S, read=STREAM_S)
        try:
            with self._client.stream("GET", path, headers=headers, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    _content(answer)
                yield "open", None, {}
                event: dict[str, str] = {}
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if line:
                        event[name] = value
                    elif "event" in event:
                        yield event["event"], event.get("id"), _read(event.get("data", ""))
                        event = {}
        except self._httpx.TransportError as error:
            raise AwayError(f"The service at {self.url} cannot be reached: {one_line(str(error))[:300]}.") from error


def study_path(name: str, what: str = "") -> str:
    """Return the path of a study."""
    return f"/v1/studies/{quote(name, safe='')}{what}"


def study_page(name: str) -> str:
    """Return the path of the page of a study, for people."""
    return f"/studies/{quote(name, safe='')}"


def trial_path(trial: str, what: str) -> str:
    """Return the path of a trial."""
    return f"/v1/trials/{quote(trial, safe=':')}/{what}"


_TOKEN_HINT = " bstune takes it from $BSTUNE_TOKEN or --token-file; from Python, connect(token=...)."


def _content(answer: Any) -> Any:
    if answer.status_code >= 400:
        hint = _TOKEN_HINT if answer.status_code == 401 else ""
        raise RefusedError(f"The service refuses: {_detail(answer)}{hint}", answer.status_code)
    try:
        return answer.json() if answer.content else None
    except ValueError as error:
        raise RefusedError(
            f"The service at {answer.url} answers something that is not JSON: is it a service of bstune?", 502
        ) from error


def _read(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return {}


def _detail(answer: Any) -> str:
    """Return what an answer says, as one harmless text."""
    try:
        said = answer.json()["detail"]
    except (ValueError, LookupError, TypeError):
        return one_line(answer.text[:300])
    if isinstance(said, list):  # What pydantic found.
        said = "; ".join(f"{'.'.join(map(str, each.get('loc', ())))}: {each.get('msg')}" for each in said[:10])
    return "\n".join(one_line(line) for line in str(said)[:5000].splitlines())
