"""Frames on a socket: whole, bounded, and in order."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bstune.tests.workers.sent import REPORT, SPEC
from bstune.tuner.workers import messages, wire
from bstune.tuner.workers.answers import Listener
from bstune.tuner.workers.message_json import encode
from bstune.tuner.workers.wire import Line, MalformedError


def test_a_trial_says_one_thing_at_a_time() -> None:
    """It waits for the answer to a report, goes forward, and reports nothing more once it was told to stop."""
    listener = Listener(messages.Train(SPEC))
    assert listener.take(encode(REPORT)) == REPORT
    with pytest.raises(MalformedError, match="before the answer"):
        listener.take(encode(dataclasses.replace(REPORT, points=(1000,), samples=1000)))
    listener.told("go")
    with pytest.raises(MalformedError, match="400 samples after 500"):
        listener.take(encode(dataclasses.replace(REPORT, points=(), samples=400, val_loss=math.nan)))
    listener.told("stop")
    with pytest.raises(MalformedError, match="told to stop"):
        listener.take(encode(dataclasses.replace(REPORT, points=(1000,), samples=1000)))
    assert listener.take(encode(messages.Trained(500, 1.0, None, "/kept/3.pt"))).samples == 500


@pytest.fixture
def ends() -> Iterator[tuple[Line, socket.socket]]:
    """The host's end and the worker's."""
    ours, theirs = socket.socketpair()
    line = Line(ours, most_bytes=1000)
    with theirs:
        yield line, theirs
    line.close()


def test_a_part_of_a_message_is_nothing_yet(ends: tuple[Line, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte; and one that stops in the middle for a minute has got stuck."""
    line, theirs = ends
    for byte in struct.pack(">I", 3) + b"abc":
        line.fill()
        assert line.take() is None
        theirs.send(bytes([byte]))
    line.fill()
    assert line.take() == b"abc"

    theirs.send(struct.pack(">I", 3) + b"a")
    line.fill()
    line.note_silence()
    assert not line.has_message
    later = time.monotonic() + wire.STUCK_S + 1
    monkeypatch.setattr("time.monotonic", lambda: later)
    line.note_silence()
    with pytest.raises(MalformedError, match="nothing more"):
        line.take()


def test_several_messages_at_once_come_one_by_one(ends: tuple[Line, socket.socket]) -> None:
    """Up to the last one before the other end was closed."""
    line, theirs = ends
    for body in (b"one", b"", b"three"):
        wire.send(theirs, body)
    theirs.close()
    line.fill()

    assert [line.take() for _ in range(4)] == [b"one", b"", b"three", None]
    assert line.ended


def test_a_length_is_refused_before_anything_of_it_is_read(ends: tuple[Line, socket.socket]) -> None:
    """Two GiB are neither waited for nor kept."""
    line, theirs = ends
    theirs.send(struct.pack(">I", 1 << 31))
    line.fill()

    assert line.has_message
    with pytest.raises(MalformedError, match="2,147,483,648 bytes"):
        line.take()


def test_who_does_not_read_is_not_waited_for(ends: tuple[Line, socket.socket]) -> None:
    """The kernel takes some; then there is an end to it."""
    line, _ = ends
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        line.send(b"x" * 10_000_000, within_s=0.1)

    assert time.monotonic() - began_s < 2


def test_descriptors_come_after_their_message_and_are_not_inherited(
    ends: tuple[Line, socket.socket], tmp_path: Path
) -> None:
    """The worker reads no byte too many, and no program that it starts has what it got."""
    line, theirs = ends
    with (tmp_path / "file").open("wb") as file:
        line.send(b"here", file.fileno(), within_s=1)
        line.send(b"next")
    assert wire.receive(theirs) == b"here"
    (fd,) = wire.receive_fds(theirs, 1)
    assert wire.receive(theirs) == b"next"
    assert not os.get_inheritable(fd)
    os.close(fd)
