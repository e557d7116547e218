"""Frames over a socket between the host and a worker: a length of four bytes, then so many bytes of a message.

User code runs in the worker and can write anything to its end. So the host never waits for the rest of a frame, takes
no more than it asked for, and reads bytes only: what they may mean stands in `messages.py`.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from ..core.errors import BstuneError
from ..core.interrupts import uninterrupted

HEADER = struct.Struct(">I")
MOST_BYTES = 64 << 20
"""Of one message. Only a trace of a measurement comes near."""
READ_BYTES = 1 << 16
FILL_BYTES = 1 << 20
"""Read at most so much of one worker before looking at the others."""
STUCK_S = 60.0
"""A message is sent in one piece: of one that stops in the middle for so long, the end will not come."""


class MalformedError(BstuneError):
    """What came from a process is no message that it was asked for. The text goes on from "its process"."""


class Line:
    """The host's end of a socket: it never waits for the worker, whatever that does."""

    def __init__(self, end: socket.socket, *, most_bytes: int = MOST_BYTES) -> None:
        """Take over a connected socket; no message may be longer than `most_bytes`."""
        self.ended = False
        """The other end is closed: no more will come."""
        self._socket = end
        self._socket.setblocking(False)
        self._most_bytes = most_bytes
        self._buffer = bytearray()
        self._heard_s = time.monotonic()
        self._stuck = False

    def fileno(self) -> int:
        """Return the descriptor, for whoever waits for several of them."""
        return self._socket.fileno()

    def fill(self) -> None:
        """Read what is there, up to a bound."""
        before, limit = len(self._buffer), len(self._buffer) + FILL_BYTES
        with uninterrupted():  # Bytes that were taken and then lost would leave the rest unreadable.
            while len(self._buffer) < limit and (part := self._part()):
                self._buffer += part
        if len(self._buffer) > before:
            self._heard_s = time.monotonic()

    def note_silence(self) -> None:
        """Take note that nothing can be read now."""
        self._stuck = bool(self._buffer) and time.monotonic() - self._heard_s > STUCK_S

    def _part(self) -> bytes:
        try:
            part = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            part = b""
        self.ended = not part
        return part

    def _length(self) -> int | None:
        return HEADER.unpack_from(self._buffer)[0] if len(self._buffer) >= HEADER.size else None

    @property
    def has_message(self) -> bool:
        """Whether `take` has something to return, or to refuse."""
        length = self._length()
        whole = length is not None and (length > self._most_bytes or len(self._buffer) >= HEADER.size + length)
        return whole or self._stuck

    def take(self) -> bytes | None:
        """Return the next message, or None as long as it is not whole.

        Raises:
            MalformedError: It is too long, or its end does not come.
        """
        length = self._length()
        if length is not None and length > self._most_bytes:
            raise MalformedError(
                f"announced a message of {length:,} bytes to bstune, where at most {self._most_bytes:,} are allowed"
            )
        if length is None or len(self._buffer) < HEADER.size + length:
            if self._stuck:
                raise MalformedError(f"sent the beginning of a message to bstune, and nothing more for {STUCK_S:.0f} s")
            return None
        body = bytes(self._buffer[HEADER.size : HEADER.size + length])
        del self._buffer[: HEADER.size + length]
        return body

    def send(self, body: bytes, *fds: int, within_s: float = 0.0) -> None:
        """Send a message, and descriptors after it.

        Raises:
            OSError: The worker has gone, or does not read within the time. It cannot be talked to any more.
        """
        deadline_s = time.monotonic() + within_s
        left = memoryview(_framed(body))
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                _pause(deadline_s)
        while fds:
            try:
                socket.send_fds(self._socket, [b"\0"], list(fds))
                return
            except BlockingIOError:
                _pause(deadline_s)

    def await_end(self, within_s: float) -> None:
        """Wait a while until no process has the other end any more; what still comes is lost."""
        deadline_s = time.monotonic() + within_s
        while not self.ended and time.monotonic() < deadline_s:
            if not self._part() and not self.ended:
                time.sleep(0.002)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _pause(deadline_s: float) -> None:
    if time.monotonic() >= deadline_s:
        raise TimeoutError("it does not read")
    time.sleep(0.005)


def _framed(body: bytes) -> bytes:
    return HEADER.pack(len(body)) + body


# --- the worker's end: it may wait, because the host answers ----------------------------------------------------------


def send(end: socket.socket, body: bytes) -> None:
    """Send a message, waiting until the host has taken it.

    Raises:
        MalformedError: It is longer than the host would take.
    """
    if len(body) > MOST_BYTES:
        raise MalformedError(
            f"has a message of {len(body):,} bytes for bstune, where at most {MOST_BYTES:,} are allowed"
        )
    end.sendall(_framed(body))


def receive(end: socket.socket) -> bytes:
    """Wait for the next message and return it; not a byte more is read, because descriptors may follow.

    Raises:
        EOFError: The host has gone.
    """
    (length,) = HEADER.unpack(_exactly(end, HEADER.size))
    return _exactly(end, length)


def _exactly(end: socket.socket, n_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < n_bytes:
        part = end.recv(n_bytes - len(found))
        if not part:
            raise EOFError("the host has gone")
        found += part
    return bytes(found)


def receive_fds(end: socket.socket, n: int) -> list[int]:
    """Return the descriptors that were sent after a message. No program that is started from here inherits them."""
    _, fds, _, _ = socket.recv_fds(end, 1, n)
    if len(fds) != n:
        raise EOFError("the host has gone")
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds
