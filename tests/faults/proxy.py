"""A TCP proxy that treats connections badly, in the way it is told."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal

from tests.faults.listener import Listener

End = Literal["fin", "rst", "silence"]


class CutError(Exception):
    """Raised by what meddles with a connection to end it."""

    def __init__(self, by: End) -> None:
        super().__init__(by)
        self.by = by


RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close() send RST."""


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a connection is treated.

    Attributes
    ----------
    cut_after
        Bytes of the server's answers that get through; none: all.
    by
        What happens then: the end of the stream, a reset, or nothing more for ever.
    refuse
        Whether the connection is reset before it is used.
    latency_s
        Seconds to hold back each piece.
    slice_bytes
        Largest piece.
    bytes_per_s
        Bandwidth.
    meddle
        Is given each piece and returns what is passed on; it may take its time, or raise `CutError`.
    """

    cut_after: int | None = None
    by: End = "fin"
    refuse: bool = False
    latency_s: Callable[[], float] = field(default=lambda: 0.0)
    slice_bytes: int = 1 << 16
    bytes_per_s: float = float("inf")
    meddle: Callable[[bytes], bytes] = bytes


KIND: Final = Conduct()


class Link:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket, conduct: Conduct) -> None:
        self._client = client
        self._server = server
        self._conduct = conduct
        self._silenced = threading.Event()
        self.sent = bytearray()

    def start(self) -> None:
        for pump in (self._up, self._down):
            threading.Thread(target=pump, daemon=True).start()

    def end(self, by: End = "fin") -> None:
        if by == "silence":
            self._silenced.set()
            return
        if by == "rst":
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for end in (self._client, self._server):
            # A socket that a thread still reads from stays open after close(); this ends the reading.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR if by == "fin" else socket.SHUT_RD)
            end.close()

    def _up(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(1 << 16):
                if not self._silenced.is_set():
                    self._server.sendall(data)
            if not self._silenced.is_set():
                self._server.shutdown(socket.SHUT_WR)

    def _down(self) -> None:
        by: End = "fin"
        try:
            for piece in self._pieces():
                passed = self._conduct.meddle(piece)
                self.sent += passed
                self._client.sendall(passed)
            by = self._conduct.by if self._is_cut() else "fin"
        except CutError as cut:
            by = cut.by
        except OSError:
            pass  # one of the two is gone; so is the other, soon
        if not self._silenced.is_set():
            self.end(by)

    def _pieces(self) -> Iterator[bytes]:
        while not self._is_cut() and (data := self._server.recv(1 << 16)):
            for start in range(0, len(data), self._conduct.slice_bytes):
                piece = data[start : start + self._conduct.slice_bytes]
                if self._conduct.cut_after is not None:
                    piece = piece[: self._conduct.cut_after - len(self.sent)]
                pause_s = self._conduct.latency_s() + len(piece) / self._conduct.bytes_per_s
                if pause_s:
                    time.sleep(pause_s)
                yield piece
                if self._is_cut():
                    break
        if self._is_cut() and self._conduct.by == "silence":
            self._silenced.set()

    def _is_cut(self) -> bool:
        return self._conduct.cut_after is not None and len(self.sent) >= self._conduct.cut_after


class Proxy(Listener):
    """Listens on a port of its own and passes everything on to another; use it as a context manager.

    Attributes
    ----------
    links
        Connections since `treat` was last called.
    """

    def __init__(self, port: int) -> None:
        super().__init__(backlog=256)
        self._behind = port
        self._conduct: Callable[[], Conduct] = lambda: KIND
        self.links: list[Link] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.treat(KIND)
        super().__exit__(kind, error, trace)

    def treat(self, conduct: Conduct | Callable[[], Conduct]) -> None:
        """End every connection; treat those that come from now on in this way."""
        links, self.links = self.links, []
        for link in links:
            link.end()
        self._conduct = conduct if callable(conduct) else lambda: conduct

    def take(self, connection: socket.socket) -> None:
        self._connect(connection, self._conduct())

    def _connect(self, client: socket.socket, conduct: Conduct) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if conduct.refuse:
                raise ConnectionRefusedError
            server = socket.create_connection(("127.0.0.1", self._behind))
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            return
        link = Link(client, server, conduct)
        self.links.append(link)
        link.start()
