"""A server that says again, byte for byte, what a real one said: for answers that take long to compute."""

import socket
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

from stratoscope_wire import ActivationsRequest
from tests.faults.listener import Listener


def record(url: str, request: ActivationsRequest) -> dict[str, bytes]:
    """Ask a real server; return its answers from the status line on, by path."""
    body = request.model_dump_json(exclude_none=True).encode()
    return {
        "/v1/model": exchange(url, "GET", "/v1/model"),
        "/v1/activations": exchange(url, "POST", "/v1/activations", body),
    }


def exchange(url: str, method: str, path: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """Send one request over a socket of its own; return every byte that comes back."""
    host = urlsplit(url).netloc
    head = f"{method} {path} HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host.partition(":")[0], int(host.partition(":")[2])), timeout=120) as connection:
        connection.sendall(head.encode() + body)
        pieces = []
        while piece := connection.recv(1 << 20):
            pieces.append(piece)
    return b"".join(pieces)


class Replay(Listener):
    """The server; use it as a context manager."""

    def __init__(self, answers: Mapping[str, bytes]) -> None:
        super().__init__()
        self._answers = answers

    def take(self, connection: socket.socket) -> None:
        threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as incoming:
            try:
                path = incoming.readline().split()[1].decode()
                length = 0
                while line := incoming.readline().strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                incoming.read(length)
                connection.sendall(self._answers[path])
            except (OSError, IndexError):
                return  # the other side is gone: that is what this is for
