"""An HTTP proxy that may change an answer's body, cuts it into chunks anew, and always ends it properly."""

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self, cast

CHUNK_BYTES: Final = 1009
"""A prime, so that chunks and messages end in different places."""

HOP_BY_HOP: Final = frozenset({"transfer-encoding", "connection", "content-length", "date", "server"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""

    def _pass_on(self) -> None:
        owner = cast("_Listener", self.server).owner
        length = int(self.headers.get("Content-Length", 0))
        connection = http.client.HTTPConnection("127.0.0.1", owner.port, timeout=60)
        connection.request(
            self.command,
            self.path,
            owner.alter_request(self.rfile.read(length)) if length else None,
            dict(self.headers),
        )
        answer = connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as broken:
            body = broken.partial
        connection.close()
        if self.path == "/v1/activations":
            body = owner.alter(body)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(body), CHUNK_BYTES):
            chunk = body[start : start + CHUNK_BYTES]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    owner: "Rewriter"


class Rewriter:
    """The proxy; use it as a context manager.

    Attributes
    ----------
    alter, alter_request
        What is done to the body of an answer with activations, and of a request; the length of the latter must stay.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.alter: Callable[[bytes], bytes] = bytes
        self.alter_request: Callable[[bytes], bytes] = bytes
        self._listener = _Listener(("127.0.0.1", 0), _Handler)
        self._listener.owner = self
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown()
        self._listener.server_close()
