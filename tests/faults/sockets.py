"""Sockets that are slow, silent, too many or carry too much before the body."""

import json
import socket
import time
from typing import Final

import httpx2

from tests.faults import raw
from tests.faults.fault import Fault, World
from tests.faults.peak_memory import PeakMemory
from tests.faults.processes import ServerProcess
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts

MAX_GROWTH: Final = 4 << 20
N_SLOW: Final = 60
HONEST_S: Final = 2.0
SLACK_S: Final = 2.0
BODY: Final = json.dumps({"stimuli": [{"id": "s", "text": "A church and organ"}]}).encode()


def heads_that_are_too_large(world: World) -> Tally:
    verdicts = Verdicts()
    with ServerProcess(world) as server:
        for name, data, statuses in _heads():
            memory = PeakMemory(server.pid)
            reply = raw.send(server.url, data)
            good = reply.status in statuses and memory.growth < MAX_GROWTH
            verdicts.judge(good, f"{name}: {reply.status}, {memory.growth >> 10} KiB")
        verdicts.judge(raw.send(server.url, raw.request("GET", "/readyz")).status == 200, "the server is ready")
    return verdicts.tally


def _heads() -> list[tuple[str, bytes, set[int]]]:
    many = [f"X-Header-{index}: value" for index in range(10_000)]
    refused = {0, 400, 431}
    return [
        ("64 headers", raw.request("GET", "/healthz", *many[:62]), {200}),
        ("65 headers", raw.request("GET", "/healthz", *many[:63]), refused),
        ("10,000 headers", raw.request("GET", "/healthz", *many), refused),
        ("a header of 32 MiB", raw.request("GET", "/healthz", "X-Header: " + "a" * (32 << 20)), refused),
        ("a header name of 32 MiB", raw.request("GET", "/healthz", "a" * (32 << 20) + ": b"), refused),
        ("32 MiB of headers without end", b"GET / HTTP/1.1\r\n" + b"X-Header: value\r\n" * (2 << 20), refused),
        ("a key of 32 MiB", raw.request("GET", "/v1/model", "Authorization: Bearer " + "a" * (32 << 20)), refused),
        ("an address of 8 KiB", raw.request("GET", "/healthz?" + "a" * ((8 << 10) - 9)), {200, 414}),
        ("an address beyond 8 KiB", raw.request("GET", "/healthz?" + "a" * (8 << 10)), {414}),
        ("an address of 32 MiB", raw.request("GET", "/" + "a" * (32 << 20)), {0, 400, 414}),
        ("a method of 32 MiB", raw.request("A" * (32 << 20), "/healthz"), {0, 400}),
        ("a first line without end", b"G" * (32 << 20), {0, 400}),
        ("blank lines without end", b"\r\n" * (16 << 20), {0, 400}),
        ("a chunk's extension of 32 MiB", _chunk(b"5;" + b"a" * (32 << 20) + b"\r\nhello\r\n0\r\n\r\n"), {0, 400, 413}),
        ("a chunk's size of 32 MiB", _chunk(b"0" * (32 << 20)), {0, 400, 413}),
        ("trailers of 32 MiB", _chunk(b"0\r\n" + b"X-Trailer: value\r\n" * (2 << 20)), {0, 400, 413}),
        ("NULs", b"\x00" * 1000, {0, 400}),
        ("TLS", bytes.fromhex("16030100fe010000fa0303") + b"\x07" * 300, {0, 400}),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {0, 400, 404, 405}),
        ("an upgrade", raw.request("GET", "/v1/model", "Upgrade: websocket", "Sec-WebSocket-Key: a"), {200, 400, 426}),
        ("no host", b"GET /healthz HTTP/1.1\r\n\r\n", {400}),
        ("two hosts", raw.request("GET", "/healthz", "Host: other"), {400}),
        ("a folded header", raw.request("GET", "/healthz", "X-Header: a\r\n b"), {200, 400}),
    ]


def _chunk(data: bytes) -> bytes:
    return raw.request("POST", "/v1/plan", "Content-Type: application/json", "Transfer-Encoding: chunked") + data


def requests_that_drip(world: World) -> Tally:
    verdicts = Verdicts()
    receive_s = world.pick(3, 15)
    with ServerProcess(world, "--receive-seconds", str(receive_s)) as server:
        slow = [_Dripping(server.url, kind) for kind in range(N_SLOW)]
        # A server that takes connections slowly has not taken the last of them at once.
        time.sleep(0.5)
        began = time.monotonic()
        answer = httpx2.post(f"{server.url}/v1/activations", content=BODY, timeout=30)
        seconds = time.monotonic() - began
        verdicts.judge(answer.status_code == 200 and seconds < HONEST_S, f"an honest request: {seconds:.1f} s")
        while any(one.is_open for one in slow) and time.monotonic() - began < receive_s + 20:
            for one in slow:
                one.drip()
            time.sleep(0.2)
        for one in slow:
            good = one.cut_s is not None and abs(one.cut_s - receive_s) < SLACK_S
            verdicts.judge(good, f"a dripping request ({one.kind}) was cut after {one.cut_s} s")
            one.close()
    return verdicts.tally


class _Dripping:
    """A connection on which a request arrives byte by byte, or not at all."""

    def __init__(self, url: str, number: int) -> None:
        head = raw.request("POST", "/v1/activations", "Content-Type: application/json", "Content-Length: 9000")
        self.kind = ("silent", "in its head", "in its body")[number % 3]
        start = {"silent": 0, "in its head": 20, "in its body": len(head)}[self.kind]
        self._rest = (head + b" " * 9000)[start:] if start else b""
        self._began = time.monotonic()
        self._socket = raw.connect(url)
        self._socket.sendall(head[:start])
        self._socket.setblocking(False)
        self.cut_s: float | None = None

    @property
    def is_open(self) -> bool:
        return self.cut_s is None

    def drip(self) -> None:
        if not self.is_open:
            return
        try:
            self._socket.send(self._rest[:1])
            self._rest = self._rest[1:]
            if self._socket.recv(1000) == b"":
                self.cut_s = time.monotonic() - self._began
        except BlockingIOError:
            pass
        except OSError:
            self.cut_s = time.monotonic() - self._began

    def close(self) -> None:
        self._socket.close()


def more_connections_than_allowed(world: World) -> Tally:
    verdicts = Verdicts()
    with ServerProcess(world, "--max-connections", "8") as server:
        memory = PeakMemory(server.pid)
        idle: list[socket.socket] = []
        while raw.send(server.url, raw.request("GET", "/healthz")).status == 200:
            idle.append(raw.connect(server.url))
            assert len(idle) < 20, "there is no end of connections"
        verdicts.judge(len(idle) == 8, f"{len(idle)} idle connections were taken")
        for _ in range(world.pick(100, 1000)):
            reply = raw.send(server.url, raw.request("GET", "/healthz"))
            good = reply.status == 503 and reply.headers.get("retry-after", "").isdigit()
            verdicts.judge(good, f"one connection too many: {reply}")
        for connection in idle:
            connection.close()
        time.sleep(0.2)
        verdicts.judge(raw.send(server.url, raw.request("GET", "/healthz")).status == 200, "after they had left")
        verdicts.judge(memory.growth < MAX_GROWTH, f"the server grew by {memory.growth >> 10} KiB")
    return verdicts.tally


FAULTS: Final = (
    Fault("S10", "heads that are too large or none", heads_that_are_too_large),
    Fault("S14", "60 requests that drip, and one honest one", requests_that_drip),
    Fault("S14b", "more connections than allowed", more_connections_than_allowed),
)
