"""Connections of the server: those that send nothing, or too slowly, are closed, and there are not too many."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 2000
REQUEST_S = 15.0
"""Seconds in which the head of the first request must have come."""


class Connection(H11Protocol):
    """uvicorn's own, which waits for the first request for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request, or close at once where there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > MOST:
            transport.close()
            return
        self._timer = self.loop.call_later(REQUEST_S, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _late(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()
