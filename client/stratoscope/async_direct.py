"""As `stratoscope.direct`, for connections that do not block.

asyncio's transports receive into memory of their own and copy it, so that a connection here is a bare socket. It knows
no encryption: an https address is read through httpx2.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpcore2
import httpx2

from stratoscope.chunks import Chunks, Held, is_chunked
from stratoscope.connection import Connection
from stratoscope.direct import (
    IDLE_SECONDS,
    MAX_CONNECTIONS,
    MAX_IDLE_CONNECTIONS,
    SocketOptions,
    goes_through_proxy,
)


class AsyncDirectStream(httpcore2.AsyncNetworkStream):
    """A connection that gives httpx2 the head of an answer and not a byte more, until it asks again.

    Parameters
    ----------
    below
        The connected socket, which does not block.
    """

    def __init__(self, below: socket.socket) -> None:
        self._below = below
        self.held = Held()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what is there, up to the end of a head."""
        held = self.held.take(max_bytes)
        if held:
            return self.held.head_of(held)
        with _translated(httpcore2.ReadTimeout, httpcore2.ReadError):
            async with asyncio.timeout(timeout):
                return self.held.head_of(await asyncio.get_running_loop().sock_recv(self._below, max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send; what comes next is a head."""
        self.held.begin()
        with _translated(httpcore2.WriteTimeout, httpcore2.WriteError):
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_sendall(self._below, buffer)

    async def aclose(self) -> None:
        """Close the connection."""
        self._below.close()

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - as httpcore2 has it
        """Tell whether there is something to read, and what the socket and its addresses are."""
        if info == "is_readable":
            return bool(self.held.bytes) or self._is_readable()
        if info == "socket":
            return self._below
        addresses = {"client_addr": self._below.getsockname, "server_addr": self._below.getpeername}
        return addresses[info]() if info in addresses else None

    async def receive_into(self, room: memoryview, timeout: float | None) -> int:
        """Receive into memory; return how many bytes, 0 if the other side has closed.

        Raises
        ------
        httpx2.ReadTimeout, httpx2.ReadError
            If nothing comes in time, or the connection breaks.
        """
        # A fast server always has something to read: others would never get a turn.
        await asyncio.sleep(0)
        with _translated(httpx2.ReadTimeout, httpx2.ReadError):
            async with asyncio.timeout(timeout):
                return await asyncio.get_running_loop().sock_recv_into(self._below, room)

    def _is_readable(self) -> bool:
        try:
            self._below.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


class AsyncChunkedBody:
    """As `stratoscope.direct.ChunkedBody`."""

    def __init__(self, stream: AsyncDirectStream, timeout: float | None) -> None:
        self._stream = stream
        self._timeout = timeout
        self._chunks = Chunks(stream.held)

    async def read_into(self, room: memoryview) -> int:
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
                wanted = steps.send(await self._stream.receive_into(wanted, self._timeout))
        except StopIteration as end:
            n_bytes: int = end.value
            return n_bytes


class _AsyncDirectBackend(httpcore2.AsyncNetworkBackend):
    """Connects bare sockets."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore2.AsyncNetworkStream:
        with _translated(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            below = await _connected(host, port, timeout, local_address)
        below.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in socket_options or ():
            below.setsockopt(*option)
        return AsyncDirectStream(below)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class AsyncDirectTransport(httpx2.AsyncHTTPTransport):
    """httpx2's own transport, over connections whose bodies can be had directly."""

    def __init__(self) -> None:
        super().__init__()
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_AsyncDirectBackend(),
        )


def async_direct_transport(connection: Connection) -> AsyncDirectTransport | None:
    """Return a transport for a server, or ``None`` if it is reached through a proxy or encrypted."""
    if goes_through_proxy(connection) or not connection.base_url.startswith("http://"):
        return None
    return AsyncDirectTransport()


def async_direct_body(response: httpx2.Response, timeout: float | None) -> AsyncChunkedBody | None:
    """Return the body of an answer whose head has come, if it can be had directly."""
    stream = response.extensions.get("network_stream")
    if isinstance(stream, AsyncDirectStream) and stream.held.is_at_body and is_chunked(response):
        return AsyncChunkedBody(stream, timeout)
    return None


async def _connected(host: str, port: int, timeout: float | None, local_address: str | None) -> socket.socket:
    """Connect to the first address of a host that takes it, waiting so long for each."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    fault = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        below = socket.socket(family, kind, protocol)
        try:
            await _connect(below, address, timeout, local_address)
        except OSError as error:
            below.close()
            fault = error
        except BaseException:
            below.close()
            raise
        else:
            return below
    raise fault


async def _connect(below: socket.socket, address: Any, timeout: float | None, local_address: str | None) -> None:  # noqa: ANN401 - as getaddrinfo has it
    below.settimeout(0)
    if local_address is not None:
        below.bind((local_address, 0))
    async with asyncio.timeout(timeout):
        await asyncio.get_running_loop().sock_connect(below, address)


@contextmanager
def _translated(timeout: type[Exception], failure: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except OSError as error:
        raise failure(str(error)) from error
