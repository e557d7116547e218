"""Signals that end a search, delayed while something is written that must be complete."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP wait until the block is over; a second Ctrl-C, for a block that hangs, does not.

    Python raises KeyboardInterrupt between any two instructions of the main thread: between the two writes that end a
    trial, too.
    """
    if threading.current_thread() is not threading.main_thread():  # Only the main thread is interrupted.
        yield
        return
    arrived: list[int] = []
    found = {int(number): signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {
        n: handler for n, handler in found.items() if callable(handler)
    }

    def note(number: int, frame: FrameType | None) -> None:
        if arrived and number == signal.SIGINT:
            handlers[number](number, frame)
        arrived.append(number)

    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in handlers.items():  # SIGINT last: it may raise from here on.
            if (
                signal.getsignal(number) is note
            ):  # Otherwise one came before all were replaced, and has set what the next one does.
                signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
