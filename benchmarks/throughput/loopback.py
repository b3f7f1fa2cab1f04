"""What loopback carries at best: bytes from one process to another, looked at by nobody."""

import socket
import subprocess
import sys
import time
from typing import Final

PIECE_BYTES: Final = 1 << 20
N_PIECES: Final = 64
"""Sent in turn, more than the caches hold, as activations are; never written to they would be the kernel's one page."""

SENDER: Final = """
import socket, sys
port, n_bytes, size, n_pieces = map(int, sys.argv[1:])
pieces = [bytes([1 + number]) * size for number in range(n_pieces)]
with socket.create_connection(("127.0.0.1", port)) as out:
    out.recv(1)
    for number in range(n_bytes // size):
        out.sendall(pieces[number % n_pieces])
"""


def socket_rate(n_bytes: int) -> float:
    """Send so many bytes from another process in pieces of 1 MiB, receive them into one buffer; return bytes per s."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        order = [sys.executable, "-c", SENDER, *map(str, (port, n_bytes, PIECE_BYTES, N_PIECES))]
        with subprocess.Popen(order) as sender:
            connection, _ = listener.accept()
            with connection:
                rate = _drain(connection)
            if sender.wait() != 0:
                raise RuntimeError("the sender failed")
    return rate


def drain_request(url: str, body: bytes, n_least: int) -> float:
    """Send a request for a stream and discard what comes, unparsed; return bytes per second.

    Raises
    ------
    RuntimeError
        If fewer bytes came than are due.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    head = (
        f"POST /v1/activations HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    began = time.perf_counter()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        n_bytes = _discard(connection)
    if n_bytes < n_least:
        raise RuntimeError(f"{n_bytes} bytes came where {n_least} are due at least")
    return n_least / (time.perf_counter() - began)


def _drain(connection: socket.socket) -> float:
    connection.sendall(b"!")
    began = time.perf_counter()
    n_bytes = _discard(connection)
    return n_bytes / (time.perf_counter() - began)


def _discard(connection: socket.socket) -> int:
    room = memoryview(bytearray(PIECE_BYTES))
    n_bytes = 0
    while n_came := connection.recv_into(room):
        n_bytes += n_came
    return n_bytes
