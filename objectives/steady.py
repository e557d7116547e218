"""Whether the memory of a command has come to rest: when a probe has seen enough of it."""

from __future__ import annotations

STEADY_S, STEADY_SHARE = 5.0, 0.5
"""In a probe memory is steady when it has not grown for so many seconds, and for this share of the run."""
UNSEEN_S = 60.0
"""The same where the script has printed nothing that speaks of training: it may still prepare its data."""
LOADS_S = 300.0
"""So long a script may have nothing on the card; one that trains on the processor never has."""
SAME_SHARE = 0.005
"""Peaks that differ by less are the same."""
BUSY = 0.1
"""Share of a core below which a script does nothing."""
IDLE_S = 120.0
"""A script that does nothing for so long in a probe hangs."""


class Steady:
    """Whether the memory of a command has come to rest, by looks at it.

    Attributes:
        over: Nothing more is to be expected.
        idle: Because the command does nothing.
        seconds: For how long its peak had been the same.

    Example:
        >>> steady = Steady()
        >>> for second in range(12):
        ...     steady.note(second, peak_bytes=1000, cpu_s=second, trains=True)
        >>> steady.over, steady.idle
        (True, False)
    """

    def __init__(self) -> None:
        """Begin to look."""
        self.over = self.idle = False
        self.seconds = 0.0
        self._peak_bytes = 0
        self._grown_s = 0.0
        self._busy_s, self._busy_cpu_s = 0.0, 0.0
        self._printed = 0

    def note(self, now_s: float, peak_bytes: int, cpu_s: float, trains: bool, printed: int = 0) -> None:
        """Take in a look, at so many seconds from the start; `printed`: the bytes of all that it has printed."""
        grew = peak_bytes > self._peak_bytes * (1 + SAME_SHARE)
        # While it has nothing on the card, it still loads what it will put there.
        if grew or (not peak_bytes and now_s < LOADS_S):
            self._peak_bytes, self._grown_s = peak_bytes, now_s
        worked = cpu_s - self._busy_cpu_s
        # What it loads or downloads may need next to no processor.
        if grew or printed > self._printed or worked < 0 or worked > BUSY * (now_s - self._busy_s):
            self._busy_s, self._busy_cpu_s, self._printed = now_s, cpu_s, printed
        waits_s = now_s - self._busy_s
        if waits_s > 1.0:  # While it does nothing, that its memory is the same says nothing.
            self._grown_s = max(self._grown_s, now_s - STEADY_S / 2)
        self.seconds = now_s - self._grown_s
        self.idle = waits_s > IDLE_S
        self.over = self.idle or self.seconds >= max(STEADY_S if trains else UNSEEN_S, STEADY_SHARE * now_s)
