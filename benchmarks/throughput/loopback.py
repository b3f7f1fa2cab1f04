"""What loopback carries at best: bytes from one process to another, looked at by nobody."""

import socket
import subprocess
import sys
import time
from typing import Final

PIECE_BYTES: Final = 1 << 20

SENDER: Final = """
import socket, sys
port, n_bytes, size = map(int, sys.argv[1:])
piece = bytes(size)
with socket.create_connection(("127.0.0.1", port)) as out:
    out.recv(1)
    for _ in range(n_bytes // size):
        out.sendall(piece)
"""


def socket_rate(n_bytes: int) -> float:
    """Send so many bytes from another process in pieces of 1 MiB, receive them into one buffer; return bytes per s."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        order = [sys.executable, "-c", SENDER, str(port), str(n_bytes), str(PIECE_BYTES)]
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
