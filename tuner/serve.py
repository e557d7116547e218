"""The service: studies for a team, led here and run by the machines of others.

`serve` opens the storage, takes up what was cut off, and answers calls until it is told to end.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import resource
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import ArgumentError, BstuneError, StudyError
from .engines.leases import LEASE_S
from .report.terminal import note

if TYPE_CHECKING:
    from .service.hub import Hub
    from .service.tokens import Tokens

MOST_CONNECTIONS = 2000
SWITCH_S = 0.001
M_ARENA_MAX, HEAPS = -8, 2
"""How glibc calls its number of heaps, and what it is set to."""


@dataclass(frozen=True)
class ServeArguments:
    """How the service runs.

    Attributes:
        host: Address to listen at.
        port: Port; 0 for any that is free.
        storage: Where studies are kept.
        token_file: The tokens, or None for those of the environment.
        lease_s: Seconds of silence after which a client has lost its trial.
        max_studies: Most studies.
        rate: Most calls a second of one client; 0 for any number.
        tls_key: Private key, for HTTPS.
        tls_certificate: Its certificate.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    storage: str | None = None
    token_file: Path | None = None
    lease_s: float = LEASE_S
    max_studies: int = 200
    rate: float = 200.0
    tls_key: Path | None = None
    tls_certificate: Path | None = None


def serve(arguments: ServeArguments) -> None:
    """Serve until SIGINT or SIGTERM; what runs at clients then is taken up at the next start.

    Raises:
        ArgumentError: The address is no loopback address and there is no token, or the certificate cannot be used.
        StudyError: The storage cannot be used, or was lost.
        BstuneError: The extra `serve` is not installed, or the port cannot be had.
    """
    _suit_many_threads()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        # Each study has a thread; several more for each small matrix would only wait for each other.
        os.environ.setdefault(name, "1")
    try:
        import uvicorn

        from .service.hub import Hub
        from .service.tokens import read_tokens
    except ImportError as error:
        raise BstuneError(f"`bstune serve` needs the extra: pip install 'bstune[serve]' ({error}).") from error
    from .studies.storage import open_storage

    tokens = read_tokens(arguments.token_file)
    if not _is_loopback(arguments.host) and not tokens:
        raise ArgumentError(
            f"--host {arguments.host}: on an address that others can reach the service needs tokens. Give "
            "--token-file, or set BSTUNE_TOKENS; or listen at 127.0.0.1."
        )
    _check_certificate(arguments)
    with contextlib.suppress(ValueError, OSError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * MOST_CONNECTIONS)), hard))
    broken: list[BaseException] = []
    servers: list[uvicorn.Server] = []

    def fail(error: BaseException) -> None:
        broken.append(error)
        for each in servers:
            each.should_exit = True

    def stopping() -> bool:
        return bool(broken) or any(each.should_exit for each in servers)

    with open_storage(arguments.storage) as storage, contextlib.closing(_listen(arguments)) as sock, _ends_well():
        hub = Hub(storage, lease_s=arguments.lease_s, most_studies=arguments.max_studies, broken=fail)
        try:
            server = _server(_config(arguments, hub, tokens, stopping), hub)
            server.should_exit = bool(broken)
            servers.append(server)
            scheme = "http" if arguments.tls_certificate is None else "https"
            host, port = sock.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            note(f"Serving the studies of {storage.location.url} at {scheme}://{shown}:{port}")
            sys.stderr.flush()
            server.run(sockets=[sock])
        finally:
            hub.close()
    if broken:
        first = broken[0]
        raise first if isinstance(first, BstuneError) else StudyError(f"The service broke down: {first!r}") from first


@contextlib.contextmanager
def _ends_well() -> Iterator[None]:
    """Let a signal that the server was ended by, and sends itself once more in the end, do nothing more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _server(config: Any, hub: Hub) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            hub.feed.close()  # Or streams, which end by themselves never, would be waited for.
            await super().shutdown(sockets)

    return Server(config)


def _config(arguments: ServeArguments, hub: Hub, tokens: Tokens, stopping: Callable[[], bool]) -> Any:
    import uvicorn

    from .service.app import make_app
    from .service.connections import Connection
    from .service.limits import Gate, Rates

    local = {arguments.host.lower(), "localhost", "127.0.0.1", "[::1]"}
    hosts = frozenset(local) if _is_loopback(arguments.host) else None
    app = Gate(make_app(hub, stopping=stopping), tokens=tokens, hosts=hosts, rates=Rates(arguments.rate))
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        http=Connection,
        ws="none",
        lifespan="on",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=32 << 10,
        ssl_keyfile=arguments.tls_key,
        ssl_certfile=arguments.tls_certificate,
    )


def _listen(arguments: ServeArguments) -> socket.socket:
    """Return the socket, so that the port is known before anything else begins."""
    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    # Only of one that says it is TCP does asyncio send small answers at once, and not 40 ms later.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((arguments.host, arguments.port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise BstuneError(
            f"--host {arguments.host} --port {arguments.port}: {error.strerror}. Choose another, or end what uses it."
        ) from error
    return sock


def _suit_many_threads() -> None:
    """Let threads take turns often, and share their memory: each study has a thread."""
    # A thread that comes back from the disk or the network waits so long at most for those that compute.
    sys.setswitchinterval(SWITCH_S)
    with contextlib.suppress(OSError, AttributeError):  # Only glibc has it, and one heap for each thread without it.
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, HEAPS)


def _check_certificate(arguments: ServeArguments) -> None:
    if arguments.tls_certificate is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.tls_certificate, arguments.tls_key, password="")  # Or it would ask for one.
    except OSError as error:  # Also what OpenSSL says.
        raise ArgumentError(
            f"--tls-certificate {arguments.tls_certificate}, --tls-key {arguments.tls_key}: {error}. Expected a "
            "certificate and its key in PEM, the key without a password."
        ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
