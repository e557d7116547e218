"""What happens in the studies, as it goes out to those who watch: the last events of each, and a stream of new ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ..core.trial_record import TrialRecord

KEPT = 100
"""Events of a study that a watcher who was away can still have."""
MOST_WATCHERS = 200
MOST_BEHIND = 1000
"""Events that a slow watcher may be behind before it is let go; it may come again."""


@dataclass(frozen=True)
class Happened:
    """One event.

    Attributes:
        number: Ascending.
        study: Where it was.
        kind: `start`, `report`, `finish`, `ended`, `failed`, `created` or `deleted`.
        spent: Reference runs of the study so far.
        trial: Of which it tells, if it is of one.
    """

    number: int
    study: str
    kind: str
    spent: float
    trial: TrialRecord | None

    @property
    def data(self) -> dict[str, Any]:
        """It for a watcher, as JSON; made when there is one."""
        trial = None if self.trial is None else self.trial.to_dict()
        return {"study": self.study, "spent": self.spent, "trial": trial}


class Feed:
    """Carries events from the threads of the studies to the watchers, in the loop of the server."""

    def __init__(self) -> None:
        """Begin with no watchers."""
        self._loop: asyncio.AbstractEventLoop | None = None
        # Larger than those of an earlier service: a watcher that comes back is told all that came meanwhile.
        self._numbers = itertools.count(int(1000 * time.time()))
        self._kept: dict[str, deque[Happened]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._coming: list[Happened] = []
        """What was not handed out yet."""
        self._lock = threading.Lock()
        self._watchers: dict[asyncio.Queue[Happened | None], str | None] = {}

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver in this loop from now on."""
        self._loop = loop

    @property
    def full(self) -> bool:
        """Whether there is room for no other watcher."""
        return len(self._watchers) >= MOST_WATCHERS

    def publish(self, study: str, kind: str, spent: float, trial: TrialRecord | None) -> None:
        """Tell what has happened; from any thread."""
        if self._loop is None:
            return
        with self._lock:
            event = Happened(next(self._numbers), study, kind, spent, trial)
            self._kept[study].append(event)
            if kind == "deleted":
                del self._kept[study]
            # Nothing is to be done at once where nobody watches, or where the loop was called for an earlier event.
            called = not self._watchers or bool(self._coming)
            if self._watchers:
                self._coming.append(event)
        if not called:
            with contextlib.suppress(RuntimeError):  # The server has ended.
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            coming, self._coming = self._coming, []
        for event in coming:
            self._hand_out(event)

    def _hand_out(self, event: Happened) -> None:
        for queue, wanted in list(self._watchers.items()):
            if wanted in (None, event.study):
                if queue.qsize() >= MOST_BEHIND:
                    self._watchers.pop(queue)
                    queue.put_nowait(None)
                else:
                    queue.put_nowait(event)

    async def watch(self, study: str | None, after: int | None) -> AsyncIterator[Happened]:
        """Yield what happens in a study, or in all; first what was missed since event number `after`."""
        queue: asyncio.Queue[Happened | None] = asyncio.Queue()
        with self._lock:
            self._watchers[queue] = study
            kept = [event for name, events in self._kept.items() if study in (None, name) for event in events]
        try:
            if after is not None:
                for event in sorted(kept, key=lambda event: event.number):
                    if event.number > after:
                        yield event
            while (event_or_end := await queue.get()) is not None:
                yield event_or_end
        finally:
            with self._lock:
                self._watchers.pop(queue, None)

    def close(self) -> None:
        """Let all watchers go."""
        for queue in list(self._watchers):
            queue.put_nowait(None)
