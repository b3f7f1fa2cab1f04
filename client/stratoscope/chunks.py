"""HTTP's framing of a body, taken apart without performing any I/O: for connections that block and others.

What needs bytes is a generator: it yields the memory that they are to be put into, and is sent how many came.
"""

import re
from collections.abc import Generator
from typing import Final

import httpx2

END_OF_HEAD: Final = b"\r\n\r\n"
END_OF_BODY: Final = b"0\r\n\r\n"
HELD_BYTES: Final = 64 << 10
"""Read at once where less than that is wanted, so that small pieces do not cost a system call each."""

MAX_LINE_BYTES: Final = 4 << 10
MAX_TRAILERS: Final = 64
CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")

Received = Generator[memoryview, int, int]
"""Receives, and returns how many bytes are where they were wanted; 0 at the end."""


class Held:
    """What has come on a connection and is held back: httpx2 gets the head of an answer and not a byte more."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self._tail = b""
        self._is_head = True
        self.is_at_body = False

    def begin(self) -> None:
        """Declare that what comes next is a head."""
        self._is_head, self.is_at_body, self._tail = True, False, b""

    def take(self, most: int) -> bytes:
        """Take what is held, up to so many bytes."""
        data = bytes(self.bytes[:most])
        del self.bytes[:most]
        return data

    def head_of(self, data: bytes) -> bytes:
        """Return what of the next bytes may be seen now: up to the end of a head; hold the rest."""
        self.is_at_body = False
        if self._is_head and (end := (self._tail + data).find(END_OF_HEAD)) >= 0:
            n_head = end + len(END_OF_HEAD) - len(self._tail)
            self.bytes[:0] = data[n_head:]
            data = data[:n_head]
            self._is_head, self.is_at_body = False, True
        self._tail = (self._tail + data)[1 - len(END_OF_HEAD) :]
        return data

    def end_body(self) -> None:
        """Let httpx2 find the body's end where it has not looked yet."""
        self.bytes[:0] = END_OF_BODY


class Chunks:
    """A body in HTTP's chunks.

    Parameters
    ----------
    held
        Of the connection, whose head has been read.
    """

    def __init__(self, held: Held) -> None:
        self._held = held
        self._n_left = 0
        self._has_begun = False

    def read_into(self, room: memoryview) -> Received:
        """Read what is there, at least one byte, or nothing at the end of the body.

        Raises
        ------
        httpx2.RemoteProtocolError
            If the connection ends before the body, or this is no chunked body.
        """
        if not self._n_left and not (yield from self._next_chunk()):
            return 0
        n_bytes = yield from self._receive(room[: self._n_left])
        self._n_left -= n_bytes
        return n_bytes

    def _next_chunk(self) -> Generator[memoryview, int, bool]:
        if self._has_begun and (yield from self._line()):
            raise httpx2.RemoteProtocolError("a chunk of the answer does not end where it said")
        self._has_begun = True
        line = yield from self._line()
        found = CHUNK_LINE.fullmatch(line)
        if found is None:
            raise httpx2.RemoteProtocolError(f"a chunk of the answer begins with {line[:40]!r}")
        self._n_left = int(found[1], 16)
        if not self._n_left:
            yield from self._end()
        return self._n_left > 0

    def _end(self) -> Generator[memoryview, int, None]:
        for _ in range(MAX_TRAILERS):
            if not (yield from self._line()):
                self._held.end_body()
                return
        raise httpx2.RemoteProtocolError(f"more than {MAX_TRAILERS} lines follow the answer")

    def _line(self) -> Generator[memoryview, int, bytes]:
        """Receive a line, without its end."""
        held = self._held.bytes
        while (end := held.find(b"\r\n")) < 0:
            if len(held) > MAX_LINE_BYTES:
                raise httpx2.RemoteProtocolError(f"a line of the answer has more than {MAX_LINE_BYTES} bytes")
            more = bytearray(HELD_BYTES)
            n_bytes = yield memoryview(more)
            if not n_bytes:
                raise cut_short()
            held += more[:n_bytes]
        line = bytes(held[:end])
        del held[: end + 2]
        return line

    def _receive(self, room: memoryview) -> Received:
        if self._held.bytes:
            data = self._held.take(len(room))
            room[: len(data)] = data
            return len(data)
        n_bytes = yield room
        if not n_bytes:
            raise cut_short()
        return n_bytes


def is_chunked(response: httpx2.Response) -> bool:
    """Tell whether an answer's body comes in chunks and in nothing else."""
    return response.headers.get("transfer-encoding", "").strip().lower() == "chunked"


def cut_short() -> httpx2.RemoteProtocolError:
    """Return what httpx2 raises at a body without its end."""
    return httpx2.RemoteProtocolError(
        "peer closed connection without sending complete message body (incomplete chunked read)"
    )
