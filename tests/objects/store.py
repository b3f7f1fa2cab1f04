"""A local S3-compatible server, and a proxy before it that counts, fails and changes what passes."""

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from pyarrow.fs import S3FileSystem

BUCKET = "runs"
KEY, SECRET = "key-of-the-tests", "secret-of-the-tests"

FRAMING = ("content-length", "transfer-encoding", "connection", "expect")
"""Headers about one connection, not about what passes."""


@dataclass
class Store:
    """What passed, and what is to go wrong."""

    server_port: int
    port: int = 0
    sent: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path and number of bytes sent to the client, of every answer."""
    failing: str = ""
    """PUT of objects whose path holds this is answered with 403."""
    cutting: str = ""
    """Of objects PUT whose path holds this, the last byte is changed on the way."""

    def url(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    @property
    def files(self) -> S3FileSystem:
        """The store without the proxy."""
        return S3FileSystem(
            access_key=KEY,
            secret_key=SECRET,
            region="us-east-1",
            scheme="http",
            endpoint_override=f"127.0.0.1:{self.server_port}",
        )


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""

    def _pass(self) -> None:
        store = cast("_Listener", self.server).store
        body = self._body()
        if self.command in ("PUT", "POST") and store.failing and store.failing in self.path:
            self._answer(403, [], b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
            return
        connection = http.client.HTTPConnection("127.0.0.1", store.server_port, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in FRAMING}
        connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        if self.command == "GET" and store.cutting and store.cutting in self.path and "?" not in self.path:
            content = content[:-1] + bytes([content[-1] ^ 1])
        store.sent.append((self.command, self.path, len(content)))
        self._answer(answer.status, answer.getheaders(), content)
        connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while n_bytes := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(n_bytes))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", lengths[0] if self.command == "HEAD" and lengths else str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    store: Store


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def object_store() -> Iterator[Store]:
    store = Store(_free_port())
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(store.server_port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(process, store.server_port)
        connection = http.client.HTTPConnection("127.0.0.1", store.server_port, timeout=30)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        listener = _Listener(("127.0.0.1", 0), _Proxy)
        listener.store = store
        store.port = listener.server_address[1]
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield store
        listener.shutdown()
        listener.server_close()
        thread.join(10)
    finally:
        process.kill()
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the object store did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the object store did not start in a minute")
