"""Receiving a body straight from the socket: the bytes go where they will stay, without passing through HTTP's parser.

httpx2 cuts a body into pieces of at most 64 KiB and copies each four times. Here it still does everything else: it
connects, pools, sends the request and reads the head of the answer. The body is then read from the socket below, and
httpx2 is told that it has ended.
"""

import socket
import ssl
import urllib.request
from collections.abc import Iterable
from typing import Any, Final

import httpcore2
import httpx2

from stratoscope.chunks import Chunks, Held, is_chunked
from stratoscope.connection import Connection

MAX_CONNECTIONS: Final = 100
MAX_IDLE_CONNECTIONS: Final = 20
IDLE_SECONDS: Final = 5.0
"""As in httpx2's own transport."""

SocketOptions = Iterable[Any] | None


class DirectStream(httpcore2.NetworkStream):
    """A connection that gives httpx2 the head of an answer and not a byte more, until it asks again.

    Parameters
    ----------
    inner
        The connection itself.
    """

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner
        self.held = Held()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what is there, up to the end of a head."""
        return self.held.head_of(self.held.take(max_bytes) or self._inner.read(max_bytes, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send; what comes next is a head."""
        self.held.begin()
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """Go on encrypted."""
        return DirectStream(self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - as httpcore2 has it
        """Tell what the connection itself tells; bytes that wait here are readable too."""
        if info == "is_readable" and self.held.bytes:
            return True
        return self._inner.get_extra_info(info)

    def receive_into(self, room: memoryview, timeout: float | None) -> int:
        """Receive into memory; return how many bytes, 0 if the other side has closed.

        Raises
        ------
        httpx2.ReadTimeout, httpx2.ReadError
            If nothing comes in time, or the connection breaks.
        """
        below: socket.socket = self._inner.get_extra_info("socket")
        try:
            below.settimeout(timeout)
            return below.recv_into(room)
        except TimeoutError as error:
            raise httpx2.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpx2.ReadError(str(error)) from error


class ChunkedBody:
    """The body of an answer in HTTP's chunks.

    Parameters
    ----------
    stream
        Whose head has been read.
    timeout
        Longest silence in seconds.
    """

    def __init__(self, stream: DirectStream, timeout: float | None) -> None:
        self._stream = stream
        self._timeout = timeout
        self._chunks = Chunks(stream.held)

    def read_into(self, room: memoryview) -> int:
        """Read what is there, at least one byte; return how many, 0 at the end of the body.

        Raises
        ------
        httpx2.TransportError
            If the connection breaks or falls silent before the end, or this is no chunked body.
        """
        steps = self._chunks.read_into(room)
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send(self._stream.receive_into(wanted, self._timeout))
        except StopIteration as end:
            n_bytes: int = end.value
            return n_bytes


class _DirectBackend(httpcore2.NetworkBackend):
    """Connects as httpcore2 does."""

    def __init__(self) -> None:
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore2.NetworkStream:
        return DirectStream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options))


class DirectTransport(httpx2.HTTPTransport):
    """httpx2's own transport, over connections whose bodies can be had directly."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(verify=connection.trust),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_DirectBackend(),
        )


def goes_through_proxy(connection: Connection) -> bool:
    """Tell whether a server is reached through a proxy that the environment names."""
    return connection.uses_proxies and bool(urllib.request.getproxies())


def direct_transport(connection: Connection) -> DirectTransport | None:
    """Return a transport for a server, or ``None`` if it is reached through a proxy."""
    return None if goes_through_proxy(connection) else DirectTransport(connection)


def direct_body(response: httpx2.Response, timeout: float | None) -> ChunkedBody | None:
    """Return the body of an answer whose head has come, if it can be had directly."""
    stream = response.extensions.get("network_stream")
    if isinstance(stream, DirectStream) and stream.held.is_at_body and is_chunked(response):
        return ChunkedBody(stream, timeout)
    return None
