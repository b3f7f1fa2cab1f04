"""Requests written byte by byte, for what no HTTP client would send."""

import contextlib
import socket
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; status 0 if the connection ended without an answer, -1 if it stayed open in silence."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> Self:
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        status = int(words[1]) if first.startswith("HTTP/1.") and len(words) > 1 and words[1].isdigit() else 0
        pairs = (line.partition(":") for line in lines)
        return cls(status, {name.strip().lower(): value.strip() for name, _, value in pairs}, body)


def connect(url: str, timeout_s: float = 10) -> socket.socket:
    parts = urlsplit(url)
    assert parts.port is not None
    return socket.create_connection(("127.0.0.1", parts.port), timeout=timeout_s)


def send(url: str, data: bytes, timeout_s: float = 10) -> Reply:
    """Send bytes and return what comes until the connection ends; a reset is an end as well."""
    with connect(url, timeout_s) as connection:
        # Where it is refused before it was all sent, the answer may be there nevertheless.
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        try:
            return Reply.of(receive(connection))
        except TimeoutError:
            return Reply(-1, {}, b"")


def receive(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            data += piece
    return data


def request(method: str, target: str, *headers: str, body: bytes = b"", host: str = "127.0.0.1") -> bytes:
    """Write a request that asks for the connection to be closed after it."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
