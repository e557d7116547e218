"""Signals that ask a search to end, held back while something is written that is of use only as a whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP wait until the block is over; the first of them then does what it would have done.

    Python raises KeyboardInterrupt between any two instructions of the main thread: between the two writes that end a trial, too.
    Hold nothing that may wait for long.
    """
    if threading.current_thread() is not threading.main_thread():  # Nothing interrupts it.
        yield
        return
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: arrived.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
