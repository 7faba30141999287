"""HTTP connections with a time limit for the head of a request, which uvicorn's own do not have."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """A connection that closes if the complete head of a request does not arrive within ``header_seconds``.

    It reads HTTP with h11, which keeps the body of a request that offers an upgrade (``h2c``, as Java's client does).
    """

    header_seconds = 10.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start waiting for the first head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Start waiting when the next head begins, and stop when it is complete."""
        if self._waiting is None and self.conn.their_state is h11.IDLE:
            self._wait()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._wait_no_longer()

    def on_response_complete(self) -> None:
        """Start waiting if a part of the next head has arrived together with this request."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._wait_no_longer()
        self._waiting = self.loop.call_later(self.header_seconds, self._close)

    def _wait_no_longer(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _close(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


def connections(header_seconds: float) -> type[Connection]:
    """Create a ``Connection`` class with this time limit."""
    return type("Connection", (Connection,), {"header_seconds": header_seconds})


def listener_config(app: Any, header_seconds: float, keep_alive_seconds: int, **others: Any) -> uvicorn.Config:
    """Create uvicorn's configuration for an application, with all limits."""
    return uvicorn.Config(
        app, http=connections(header_seconds), ws="none", log_config=None, access_log=False, lifespan="off",
        timeout_keep_alive=keep_alive_seconds, **others,
    )  # fmt: skip
