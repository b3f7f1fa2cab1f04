"""Receiving a body straight from the socket: the bytes go where they will stay, without passing through HTTP's parser.

httpx2 cuts a body into pieces of at most 64 KiB and copies each four times. Here it still does everything else: it
connects, pools, sends the request and reads the head of the answer. The body is then read from the socket below, and
httpx2 is told that it has ended.
"""

import re
import socket
import ssl
import urllib.request
from collections.abc import Iterable
from typing import Any, Final

import httpcore2
import httpx2

from stratoscope.connection import Connection

END_OF_HEAD: Final = b"\r\n\r\n"
END_OF_BODY: Final = b"0\r\n\r\n"
HELD_BYTES: Final = 64 << 10
"""Read at once where less than that is wanted, so that small pieces do not cost a system call each."""

MAX_LINE_BYTES: Final = 4 << 10
MAX_TRAILERS: Final = 64
CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")

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
        self._held = bytearray()
        self._tail = b""
        self._is_head = True
        self.is_at_body = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what is there, up to the end of a head."""
        self.is_at_body = False
        data = bytes(self._held[:max_bytes]) if self._held else self._inner.read(max_bytes, timeout)
        del self._held[:max_bytes]
        if self._is_head and (end := (self._tail + data).find(END_OF_HEAD)) >= 0:
            n_head = end + len(END_OF_HEAD) - len(self._tail)
            self._held[:0] = data[n_head:]
            data = data[:n_head]
            self._is_head, self.is_at_body = False, True
        self._tail = (self._tail + data)[1 - len(END_OF_HEAD) :]
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send; what comes next is a head."""
        self._is_head, self.is_at_body, self._tail = True, False, b""
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
        if info == "is_readable" and self._held:
            return True
        return self._inner.get_extra_info(info)

    def receive_into(self, room: memoryview, timeout: float | None) -> int:
        """Receive into memory; return how many bytes, 0 if the other side has closed.

        Raises
        ------
        httpx2.ReadTimeout, httpx2.ReadError
            If nothing comes in time, or the connection breaks.
        """
        if self._held:
            n_bytes = min(len(room), len(self._held))
            room[:n_bytes] = self._held[:n_bytes]
            del self._held[:n_bytes]
            return n_bytes
        below: socket.socket = self._inner.get_extra_info("socket")
        try:
            below.settimeout(timeout)
            return below.recv_into(room)
        except TimeoutError as error:
            raise httpx2.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpx2.ReadError(str(error)) from error

    def receive_line(self, timeout: float | None) -> bytes:
        """Receive a line, without its end.

        Raises
        ------
        httpx2.RemoteProtocolError
            If it does not end.
        """
        while (end := self._held.find(b"\r\n")) < 0:
            if len(self._held) > MAX_LINE_BYTES:
                raise httpx2.RemoteProtocolError(f"a line of the answer has more than {MAX_LINE_BYTES} bytes")
            held, self._held = self._held, bytearray()
            more = bytearray(HELD_BYTES)
            n_bytes = self.receive_into(memoryview(more), timeout)
            if not n_bytes:
                raise cut_short()
            self._held = held + more[:n_bytes]
        line = bytes(self._held[:end])
        del self._held[: end + 2]
        return line

    def end_body(self) -> None:
        """Let httpx2 find the body's end where it has not looked yet."""
        self._held[:0] = END_OF_BODY


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
        self._n_left = 0
        self._has_begun = False

    def read_into(self, room: memoryview) -> int:
        """Read what is there, at least one byte; return how many, 0 at the end of the body.

        Raises
        ------
        httpx2.TransportError
            If the connection breaks or falls silent before the end, or this is no chunked body.
        """
        if not self._n_left and not self._next_chunk():
            return 0
        n_bytes = self._stream.receive_into(room[: self._n_left], self._timeout)
        if not n_bytes:
            raise cut_short()
        self._n_left -= n_bytes
        return n_bytes

    def _next_chunk(self) -> bool:
        if self._has_begun and self._line():
            raise httpx2.RemoteProtocolError("a chunk of the answer does not end where it said")
        self._has_begun = True
        line = self._line()
        found = CHUNK_LINE.fullmatch(line)
        if found is None:
            raise httpx2.RemoteProtocolError(f"a chunk of the answer begins with {line[:40]!r}")
        self._n_left = int(found[1], 16)
        if not self._n_left:
            self._end()
        return self._n_left > 0

    def _end(self) -> None:
        for _ in range(MAX_TRAILERS):
            if not self._line():
                self._stream.end_body()
                return
        raise httpx2.RemoteProtocolError(f"more than {MAX_TRAILERS} lines follow the answer")

    def _line(self) -> bytes:
        return self._stream.receive_line(self._timeout)


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


def direct_transport(connection: Connection) -> DirectTransport | None:
    """Return a transport for a server, or ``None`` if it is reached through a proxy."""
    if connection.uses_proxies and urllib.request.getproxies():
        return None
    return DirectTransport(connection)


def direct_body(response: httpx2.Response, timeout: float | None) -> ChunkedBody | None:
    """Return the body of an answer whose head has come, if it can be had directly."""
    stream = response.extensions.get("network_stream")
    is_chunked = response.headers.get("transfer-encoding", "").strip().lower() == "chunked"
    if isinstance(stream, DirectStream) and stream.is_at_body and is_chunked:
        return ChunkedBody(stream, timeout)
    return None


def cut_short() -> httpx2.RemoteProtocolError:
    """Return what httpx2 raises at a body without its end."""
    return httpx2.RemoteProtocolError(
        "peer closed connection without sending complete message body (incomplete chunked read)"
    )
