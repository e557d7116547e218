"""A clock that stands still while its thread could run but has no core: what a step takes, on a busy machine too."""

from __future__ import annotations

import os
import time
import weakref

WAITED = "/proc/thread-self/schedstat"
"""Of a thread of Linux: nanoseconds on a core, nanoseconds of waiting for one, and how often it got one."""


class RunClock:
    """Seconds that the thread it is made in has run, slept or waited for others than the scheduler.

    Where the system does not say how long a thread waited for a core, it is a plain clock.
    """

    def __init__(self, *, alone: bool) -> None:
        """Begin.

        Args:
            alone: All work is done here, so who has the core meanwhile is a stranger. Else it is a plain clock: loader
                workers, ranks and a card go on while the thread waits.
        """
        self._fd: int | None = None
        if alone:
            try:
                self._fd = os.open(WAITED, os.O_RDONLY | os.O_CLOEXEC)
                self()
            except (OSError, ValueError, IndexError):
                self._fd = None
            else:
                weakref.finalize(self, os.close, self._fd)

    @property
    def leaves_out_waiting(self) -> bool:
        """Whether it is more than a plain clock."""
        return self._fd is not None

    def __call__(self) -> float:
        """Return seconds since some moment."""
        now_s = time.perf_counter()
        return now_s if self._fd is None else now_s - int(os.pread(self._fd, 64, 0).split()[1]) / 1e9
