"""A clock that stands still while its thread could run but has no core: what a step takes, on a busy machine too."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import weakref

from .memory import core_quota

WAITED = "/proc/thread-self/schedstat"
"""Of a thread of Linux: nanoseconds on a core, nanoseconds of waiting for one, and how often it got one."""


class RunClock:
    """Seconds that the thread it is made in has run, slept or waited for others than the scheduler.

    It is a plain clock where the system does not say how long a thread waited for a core, and where the thread waits
    for what is its own: with less than a core by a limit of its container, or beside threads that work with it.
    """

    def __init__(self, *, alone: bool) -> None:
        """Begin.

        Args:
            alone: All work is done here, so who has the core meanwhile is a stranger. Else it is a plain clock: loader
                workers, ranks and a card go on while the thread waits.
        """
        self._fd: int | None = None
        if not alone or _threads() > 1 or core_quota() < 1:
            return
        try:
            fd = os.open(WAITED, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        weakref.finalize(self, os.close, fd)
        with contextlib.suppress(ValueError, IndexError):
            ran, _, _ = map(int, os.pread(fd, 64, 0).split())
            self._fd = fd if ran else None  # A system that does not count says 0.

    @property
    def leaves_out_waiting(self) -> bool:
        """Whether it is more than a plain clock."""
        return self._fd is not None

    def __call__(self) -> float:
        """Return seconds since some moment."""
        if self._fd is None:
            return time.perf_counter()
        waited_ns = self._waited_ns(self._fd)
        while True:  # Until the core was not lost between the two clocks.
            now_s, before_ns = time.perf_counter(), waited_ns
            waited_ns = self._waited_ns(self._fd)
            if waited_ns == before_ns:
                return now_s - waited_ns / 1e9

    @staticmethod
    def _waited_ns(fd: int) -> int:
        return int(os.pread(fd, 64, 0).split()[1])


def _threads() -> int:
    """Return with how many threads torch works here; 1 where nobody has loaded it."""
    torch = sys.modules.get("torch")
    return 1 if torch is None else int(torch.get_num_threads())
