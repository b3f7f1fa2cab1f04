"""Connections: how many there may be, how long a request may take to arrive, and how long a reader may stand still.

uvicorn bounds none of these (measured with 0.54): it keeps silent, dripping and stuck connections for ever.
"""

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Final

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from stratoscope_server.settings import Settings
from stratoscope_server.uncopied import STATE_KEY, UncopiedConnection, UncopiedTransport

BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 29\r\n\r\ntoo many connections are open"
)
SURPLUS_SECONDS: Final = 2.0
"""For a connection that is one too many to say what it wants, so that it can be told that it gets nothing."""


class GuardedConnection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with deadlines.

    Parameters
    ----------
    settings
        The limits.
    config, server_state, app_state, _loop
        As uvicorn gives them.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: Settings,
    ) -> None:
        super().__init__(config, server_state, {**app_state, STATE_KEY: not config.is_ssl}, _loop)
        self.conn = UncopiedConnection(h11.SERVER, settings.max_header_bytes)
        self._settings = settings
        self._uncopied: UncopiedTransport | None = None
        self._is_surplus = False
        self._receiving: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or mark it as one too many."""
        n_open = len(self.connections)
        # Encrypted bytes are not those of the batch: there is nothing to be sent as it is.
        self._uncopied = None if self.config.is_ssl else UncopiedTransport(transport)
        super().connection_made(self._uncopied or transport)  # type: ignore[arg-type]
        self._is_surplus = n_open >= self._settings.max_connections
        if n_open >= 2 * self._settings.max_connections:
            transport.abort()
            return
        self._receive_by(SURPLUS_SECONDS if self._is_surplus else self._settings.receive_seconds)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; from its first byte on, a request must arrive whole in time."""
        if self._is_surplus:
            if not self.transport.is_closing():
                self.transport.write(BUSY)
                self.transport.close()
            return
        if self._receiving is None:
            self._receive_by(self._settings.receive_seconds)
        super().data_received(data)

    def handle_events(self) -> None:
        """Let go of the deadline once the request is whole."""
        super().handle_events()
        if self.conn.their_state is not h11.SEND_BODY and self.conn.their_state is not h11.IDLE:
            self._receive_by(None)

    def pause_writing(self) -> None:
        """Watch a reader that has fallen behind."""
        super().pause_writing()
        self._stop_watching()
        self._watch(self.transport.get_write_buffer_size(), self.loop.time())

    def resume_writing(self) -> None:
        """Write what waits; stop watching once the reader has caught up."""
        if self._uncopied is not None:
            self._uncopied.flush()
            if self._uncopied.is_waiting:
                return
        super().resume_writing()
        self._stop_watching()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, at once if its last answer was never read to the end."""
        if self.transport.get_write_buffer_size():
            self._abort()
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self._receive_by(None)
        if self._uncopied is not None:
            self._uncopied.drop()
        super().connection_lost(exc)
        self._stop_watching()

    def _receive_by(self, seconds: float | None) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
        self._receiving = None if seconds is None else self.loop.call_later(seconds, self._abort)

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    def _watch(self, n_left: int, since: float) -> None:
        # By bytes, not by calls: a slow reader drains the buffer for minutes before uvicorn is told anything.
        now, n_now = self.loop.time(), self.transport.get_write_buffer_size()
        if n_now < n_left:
            n_left, since = n_now, now
        if now - since >= self._settings.write_stall_seconds:
            self.logger.warning("a client has read nothing for %g s: connection closed", now - since)
            self._abort()
            return
        wait = min(1.0, self._settings.write_stall_seconds / 4)
        self._watching = self.loop.call_later(wait, self._watch, n_left, since)

    def _abort(self) -> None:
        # Not close(): that waits until the other side has read everything.
        self.transport.abort()


def guarded(settings: Settings) -> Callable[..., GuardedConnection]:
    """Return what makes the connections of a server with these settings."""
    return functools.partial(GuardedConnection, settings=settings)
