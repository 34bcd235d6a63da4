"""A bound on the number of open connections, and on the time in which a request arrives."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from medunifier.shared.files.os_services import max_open_files

MAX_CONNECTIONS = 512
"""Further connections are closed at once. An open page holds two to six."""
HEADER_SECONDS = 20.0
"""For the head of a request, also of the first one of a connection."""
REQUEST_SECONDS = 330.0
"""For a whole request: an upload has 300 s (:class:`.uploads.StoreLimits`) and is then answered with 408."""


def connection_limit() -> int:
    """Return :data:`MAX_CONNECTIONS`, or fewer if the system allows this process fewer open files."""
    limit = max_open_files()
    return MAX_CONNECTIONS if limit is None else min(MAX_CONNECTIONS, limit // 2)


class BoundedConnection(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol with these bounds; h11 itself bounds the head of a request at 64 KiB.

    Uvicorn's own limit answers requests beyond it, but keeps their connections and those without any request.
    """

    _timer: asyncio.TimerHandle | None = None
    _deadline = 0.0

    def connection_made(self, transport: Any) -> None:
        """Start to wait for a request, or close a connection beyond the limit."""
        super().connection_made(transport)
        if len(self.connections) > connection_limit():
            transport.abort()
        else:
            self._begin()

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request; a complete request ends the waiting."""
        super().data_received(data)
        if not self._waiting():
            self._cancel()

    def on_response_complete(self) -> None:
        """Wait for the next request of this connection."""
        super().on_response_complete()
        if self._waiting() and not self.transport.is_closing():
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._cancel()
        super().connection_lost(exc)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: each request for a websocket would write two lines."""

    def _waiting(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _begin(self) -> None:
        self._cancel()
        self._deadline = self.loop.time() + REQUEST_SECONDS
        self._timer = self.loop.call_later(HEADER_SECONDS, self._late)

    def _late(self) -> None:
        left = self._deadline - self.loop.time()
        if self.conn.their_state is h11.SEND_BODY and left > 0:
            self._timer = self.loop.call_later(left, self._late)
        elif self._waiting():
            self.transport.abort()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
