"""Bodies read straight from the socket, through any split of chunks and of what arrives at once."""

import asyncio
import itertools
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import httpcore2
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratoscope.async_direct import AsyncChunkedBody, AsyncDirectStream, AsyncDirectTransport, async_direct_body
from stratoscope.chunks import END_OF_BODY
from stratoscope.connection import Connection
from stratoscope.direct import ChunkedBody, DirectStream, DirectTransport, direct_body

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Pair(httpcore2.NetworkStream):
    """The near end of a pair of sockets."""

    def __init__(self, near: socket.socket) -> None:
        self._near = near

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._near.settimeout(timeout)
        return self._near.recv(max_bytes)

    def get_extra_info(self, info: str) -> Any:
        return self._near if info == "socket" else None


def chunked(parts: Sequence[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + END_OF_BODY


Received = tuple[bytes, bytes, bytes]
"""Head, body and what httpx2 would find behind it."""

Receive = Callable[[Sequence[bytes], int], Received]


@pytest.fixture(scope="module", params=["blocking", "asynchronous"])
def received(request: pytest.FixtureRequest) -> Receive:
    """Give what comes of pieces that are sent, read into memory of some length."""

    def receive(pieces: Sequence[bytes], room_bytes: int) -> Received:
        near, far = socket.socketpair()
        with near, far:
            sending = threading.Thread(target=_send, args=(far, pieces))
            sending.start()
            room = memoryview(bytearray(room_bytes))
            try:
                return _blocking(near, room) if request.param == "blocking" else asyncio.run(_asynchronous(near, room))
            finally:
                sending.join()

    return receive


def _blocking(near: socket.socket, room: memoryview) -> Received:
    stream = DirectStream(Pair(near))
    head = whole = b""
    while not stream.held.is_at_body:
        head += stream.read(65536, 5)
    body = ChunkedBody(stream, 5)
    while n_bytes := body.read_into(room):
        whole += room[:n_bytes]
    return head, whole, stream.read(65536, 5)


async def _asynchronous(near: socket.socket, room: memoryview) -> Received:
    near.settimeout(0)
    stream = AsyncDirectStream(near)
    head = whole = b""
    while not stream.held.is_at_body:
        head += await stream.read(65536, 5)
    body = AsyncChunkedBody(stream, 5)
    while n_bytes := await body.read_into(room):
        whole += room[:n_bytes]
    return head, whole, await stream.read(65536, 5)


def _send(far: socket.socket, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        far.sendall(piece)
    far.shutdown(socket.SHUT_WR)


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=300), max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
    room_bytes=st.integers(1, 400),
)
def test_a_chunked_body_arrives_whole_through_any_split(
    received: Receive, parts: list[bytes], cuts: list[int], room_bytes: int
) -> None:
    sent = HEAD + chunked(parts)
    places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    pieces = [sent[a:b] for a, b in itertools.pairwise(places)]
    assert received(pieces, room_bytes) == (HEAD, b"".join(parts), END_OF_BODY)


def test_a_body_cut_at_any_byte_is_never_taken_for_a_whole_one(received: Receive) -> None:
    sent = HEAD + chunked([b"x" * 20, b"\r\n0\r\n\r\n", b"y"])
    for n_bytes in range(len(HEAD), len(sent)):
        with pytest.raises(httpx2.RemoteProtocolError, match="incomplete chunked read"):
            received([sent[:n_bytes]], 7)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"-5\r\nxxxxx\r\n0\r\n\r\n", "begins with b'-5'"),
        (b"0x5\r\nxxxxx\r\n0\r\n\r\n", "begins with b'0x5'"),
        (b"\r\n", "begins with b''"),
        (b"5\r\nxxxxxy\r\n0\r\n\r\n", "does not end where it said"),
        (b"5" * 9000, "more than 4096 bytes"),
        (b"0\r\n" + b"a: b\r\n" * 65, "more than 64 lines follow"),
    ],
)
def test_what_is_no_chunked_body_is_refused(received: Receive, body: bytes, fault: str) -> None:
    with pytest.raises(httpx2.RemoteProtocolError, match=fault):
        received([HEAD + body], 100)


def test_extensions_of_chunks_and_trailers_are_passed_over(received: Receive) -> None:
    sent = HEAD + b"3;a=b\r\nxyz\r\n0\r\nDigest: z\r\n\r\n"
    assert received([sent], 100) == (HEAD, b"xyz", END_OF_BODY)


def test_a_connection_serves_again_after_a_body_was_taken_from_below_it() -> None:
    def ask_twice(url: str) -> list[bytes]:
        with httpx2.Client(transport=DirectTransport(Connection.of(url, None, 5.0))) as client:
            return [_ask(client, url), _ask(client, url)]

    assert _served_twice(ask_twice) == [b"answer 0", b"answer 1"]


def test_a_connection_that_does_not_block_serves_again_too() -> None:
    async def ask_twice(url: str) -> list[bytes]:
        async with httpx2.AsyncClient(transport=AsyncDirectTransport()) as client:
            return [await _ask_async(client, url), await _ask_async(client, url)]

    assert _served_twice(lambda url: asyncio.run(ask_twice(url))) == [b"answer 0", b"answer 1"]


def test_a_silent_connection_that_does_not_block_is_given_up() -> None:
    async def read() -> None:
        near, far = socket.socketpair()
        with near, far:
            near.settimeout(0)
            stream = AsyncDirectStream(near)
            far.sendall(HEAD + b"5\r\nab")
            while not stream.held.is_at_body:
                await stream.read(65536, 5)
            body, room = AsyncChunkedBody(stream, 0.05), memoryview(bytearray(10))
            assert await body.read_into(room) == 2
            with pytest.raises(httpx2.ReadTimeout):
                await body.read_into(room)

    asyncio.run(read())


def test_an_address_that_nobody_listens_on_is_no_connection(free_port: Callable[[], int]) -> None:
    async def ask() -> None:
        async with httpx2.AsyncClient(transport=AsyncDirectTransport()) as client:
            await client.get(f"http://127.0.0.1:{free_port()}")

    with pytest.raises(httpx2.ConnectError):
        asyncio.run(ask())


def _served_twice(ask_twice: Callable[[str], list[bytes]]) -> list[bytes]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=_serve_twice, args=(listener,))
        serving.start()
        bodies = ask_twice(f"http://127.0.0.1:{listener.getsockname()[1]}")
        serving.join()
    return bodies


async def _ask_async(client: httpx2.AsyncClient, url: str) -> bytes:
    async with client.stream("GET", url) as response:
        body, room = async_direct_body(response, 5.0), memoryview(bytearray(100))
        assert body is not None
        whole = b""
        while n_bytes := await body.read_into(room):
            whole += room[:n_bytes]
        assert b"".join([chunk async for chunk in response.aiter_raw()]) == b""
    return whole


def _ask(client: httpx2.Client, url: str) -> bytes:
    with client.stream("GET", url) as response:
        body, room = direct_body(response, 5.0), memoryview(bytearray(100))
        assert body is not None
        whole = b""
        while n_bytes := body.read_into(room):
            whole += room[:n_bytes]
        assert b"".join(response.iter_raw()) == b""
    return whole


def _serve_twice(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        for number in range(2):
            asked = b""
            while b"\r\n\r\n" not in asked:
                asked += connection.recv(1000)
            connection.sendall(HEAD + chunked([b"answer %d" % number]))
