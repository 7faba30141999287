"""A connection that does not wait for ever: what uvicorn's own lacks, a limit for the head of a request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closes a connection on which no whole head of a request arrived for ``header_seconds``.

    It reads HTTP by h11, under which a request that offers an upgrade (``h2c``, as Java's client does) keeps its body.
    """

    header_seconds = 10.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """The first head is waited for from here on."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """A head that begins after an answer is waited for as well; a whole one is waited for no longer."""
        if self._waiting is None and self.conn.their_state is h11.IDLE:
            self._wait()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._wait_no_longer()

    def on_response_complete(self) -> None:
        """Half a head may have come together with the request before it."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
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
    """The class of connections with that limit."""
    return type("Connection", (Connection,), {"header_seconds": header_seconds})


def listener_config(app: Any, header_seconds: float, keep_alive_seconds: int, **others: Any) -> uvicorn.Config:
    """How uvicorn listens for an application, with all limits."""
    return uvicorn.Config(
        app, http=connections(header_seconds), ws="none", log_config=None, access_log=False, lifespan="off",
        timeout_keep_alive=keep_alive_seconds, **others,
    )  # fmt: skip
