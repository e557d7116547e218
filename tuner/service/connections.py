"""Connections of the server: those that send nothing, or too slowly, are closed, and there are not too many."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 2000
REQUEST_S = 15.0
"""Seconds in which the head of a request must have come."""


class Connection(H11Protocol):
    """uvicorn's own, which waits for the rest of a request for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request, or close at once where there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > MOST:
            transport.close()
            return
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take in what came; where it is not yet a whole head, wait no longer for that than for the first."""
        super().data_received(data)
        if self._answers:
            self._stop_waiting()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(REQUEST_S, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self._answers and not self.transport.is_closing():
            self.transport.close()
