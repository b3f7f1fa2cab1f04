"""A server that is broken or means ill, against our client: only errors of ours, in bounded time and memory."""

import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from stratoscope import Client
from stratoscope.errors import StratoscopeError
from stratoscope_server.engines.synthetic import SyntheticRunner
from stratoscope_wire import ActivationsRequest, Stimulus
from tests.faults.fault import ROOT, Fault, World
from tests.faults.listener import Listener
from tests.faults.mutants import MAX_GROWTH, SHAPES, good_streams
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts

TIMEOUT_S: Final = 1.0
LIMIT_S: Final = 12.0
MAX_CLIENT_GROWTH: Final = 192 << 20
"""The longest JSON that is read at all has 64 MiB, and is copied once."""

CARD: Final = SyntheticRunner().card
MIB: Final = b"x" * (1 << 20)
ENDLESS: Final = 4096
"""MiB after which a test gives up on a client that goes on reading."""

Deed = Callable[[], Iterator[bytes]]


def damaged_streams_without_end(world: World) -> Tally:
    verdicts = Verdicts()
    n = world.pick(3_000, 100_000)
    seed = str(world.random.randrange(1 << 31))
    command = [sys.executable, "-m", "tests.faults.mutants", seed, str(n)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    verdicts.judge(ended.returncode == 0, f"the reader ended with {ended.returncode}: {ended.stderr[-3000:]}")
    if ended.returncode == 0:
        told = json.loads(ended.stdout)
        sys.stderr.write(f"seed {seed}: {told}\n")
        verdicts.judge(told["grown"] < MAX_GROWTH, f"it grew by {told['grown'] >> 20} MiB")
        verdicts.tally += Tally(told["read"], told["read"] - told["wrong"], wrong=told["wrong"])
    return verdicts.tally


def _head(*headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1")


def _whole(body: bytes, *headers: str, status: str = "200 OK") -> Deed:
    return lambda: iter([_head(*headers, f"Content-Length: {len(body)}", status=status) + body])


def _endless(piece: bytes, *headers: str, status: str = "200 OK") -> Deed:
    def deed() -> Iterator[bytes]:
        yield _head(*headers, "Transfer-Encoding: chunked", status=status)
        for _ in range(ENDLESS):
            yield b"%x\r\n%s\r\n" % (len(piece), piece)

    return deed


def _drip(piece: bytes, pause_s: float) -> Deed:
    def deed() -> Iterator[bytes]:
        for start in range(len(piece)):
            yield piece[start : start + 1]
            time.sleep(pause_s)

    return deed


def _headers_without_end() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    for number in range(ENDLESS * 16):
        yield b"X-Header-%d: %s\r\n" % (number, MIB[: 1 << 16])


def _informed_without_end() -> Iterator[bytes]:
    for _ in range(1_000):
        yield b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 10


JSON: Final = "Content-Type: application/json"
ARROW: Final = "Content-Type: application/vnd.apache.arrow.stream"
EXPECTED: Final = "X-Expected-Bytes: "
BROKEN: Final[dict[str, Deed]] = {
    "silence": lambda: iter([]),
    "no HTTP": lambda: iter([b"SSH-2.0-OpenSSH_9.9\r\n"]),
    "bytes without end": lambda: (MIB for _ in range(ENDLESS)),
    "headers without end": _headers_without_end,
    "information ten thousand times": _informed_without_end,
    "a first line without end": lambda: (b"HTTP/1.1 200 " + MIB for _ in range(ENDLESS)),
    "a status that is none": lambda: iter([b"HTTP/1.1 9999 What\r\n\r\n"]),
    "another protocol": lambda: iter([b"HTTP/9.9 200 OK\r\n\r\n"]),
    "JSON without end": _endless(b"[" * (1 << 20), JSON),
    "a stream without end": _endless(MIB, ARROW),
    "a stream beyond what was announced": _endless(MIB, ARROW, f"{EXPECTED}1000"),
    "a stream as announced, which is too much": _endless(MIB, ARROW, f"{EXPECTED}{1 << 50}"),
    "an announcement of 5,000 digits": _endless(MIB, ARROW, f"{EXPECTED}{'9' * 5000}"),
    "a negative announcement": _endless(MIB, ARROW, f"{EXPECTED}-1"),
    "an error without end": _endless(MIB, JSON, status="500 Internal Server Error"),
    "a huge length": lambda: iter([_head(ARROW, f"Content-Length: {1 << 62}") + MIB]),
    "a length beyond 64 bits": lambda: iter([_head(ARROW, f"Content-Length: {'9' * 30}") + MIB]),
    "a length in words": lambda: iter([_head(ARROW, "Content-Length: many")]),
    "a negative length": lambda: iter([_head(ARROW, "Content-Length: -1")]),
    "a length that is too long": lambda: iter([_head(JSON, "Content-Length: 100") + b"{}"]),
    "two lengths": lambda: iter([_head(JSON, "Content-Length: 2", "Content-Length: 3") + b"{}"]),
    "a huge chunk": lambda: iter([_head(ARROW, "Transfer-Encoding: chunked") + b"ffffffffffffffff\r\n" + MIB]),
    "chunks that are none": lambda: iter([_head(ARROW, "Transfer-Encoding: chunked") + b"zz\r\n"]),
    "another type": _whole(b"<html>welcome to the hotel</html>", "Content-Type: text/html"),
    "no type": _whole(b"{}"),
    "a compressed body": _whole(b"\x1f\x8b" + MIB, ARROW, "Content-Encoding: gzip"),
    "an encoding that is none": _whole(MIB, ARROW, "Content-Encoding: rot13"),
    "a redirect": _whole(b"", "Location: http://169.254.169.254/latest", status="302 Found"),
    "a redirect to itself": _whole(b"", "Location: /v1/model", status="308 Permanent Redirect"),
    "a redirect to a file": _whole(b"", "Location: file:///etc/passwd", status="301 Moved Permanently"),
    "a demand for a password": _whole(b"", "WWW-Authenticate: Basic realm=x", status="401 Unauthorized"),
    "an error that is no error of ours": _whole(b'{"error":"x"}', JSON, status="503 Service Unavailable"),
    "an error in deep JSON": _whole(b"[" * 100_000, JSON, status="422 Unprocessable Content"),
    "a wait for ever": _whole(b"", f"Retry-After: {'9' * 400}", status="429 Too Many Requests"),
    "a wait until a date that is none": _whole(b"", "Retry-After: Mon, 99 Foo", status="503 Service Unavailable"),
    "a negative wait": _whole(b"", "Retry-After: -5", status="429 Too Many Requests"),
    "not a number": _whole(b"NaN", JSON),
    "deep JSON": _whole(b"[" * 100_000 + b"]" * 100_000, JSON),
    "JSON in UTF-16": _whole("{}".encode("utf-16"), JSON),
    "a card with more layers than there are": _whole(
        CARD.model_copy(update={"n_layers": 10**9}).signed().model_dump_json().encode(), JSON
    ),
    "a card with more sites than layers": _whole(
        CARD.model_copy(update={"n_layers": 3}).signed().model_dump_json().encode(), JSON
    ),
    "a card with another fingerprint": _whole(
        CARD.model_copy(update={"fingerprint": "0" * 32}).model_dump_json().encode(), JSON
    ),
    "a schema alone": _whole(good_streams()[0][0][:600], ARROW),
    "an empty stream": _whole(bytes.fromhex("FFFFFFFF00000000"), ARROW),
    "metadata of two gibibytes": _whole(bytes.fromhex("FFFFFFFFFFFFFF7F") + MIB, ARROW),
    "negative metadata": _whole(bytes.fromhex("FFFFFFFF000000F0") + MIB, ARROW),
    "a header drop by drop": _drip(_head(JSON, "Content-Length: 2"), TIMEOUT_S / 100),
    "a header that stops": lambda: _pausing(b"HTTP/1.1 200 OK\r\nContent-"),
    "a body that stops": lambda: _pausing(_head(ARROW, "Content-Length: 5000") + b"\xff"),
    "an upgrade": _whole(b"", "Upgrade: websocket", "Connection: upgrade", status="101 Switching Protocols"),
    "cookies": _whole(b"", *(f"Set-Cookie: a{number}={'b' * 1000}" for number in range(60))),
}  # fmt: skip


def _pausing(data: bytes) -> Iterator[bytes]:
    yield data
    time.sleep(TIMEOUT_S * 4)


class HostileServer(Listener):
    """Does one deed to each connection; use it as a context manager."""

    def __init__(self, deed: Deed) -> None:
        super().__init__()
        self._deed = deed

    def take(self, connection: socket.socket) -> None:
        threading.Thread(target=self._do, args=(connection,), daemon=True).start()

    def _do(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            for piece in self._deed():
                connection.sendall(piece)


def servers_that_mean_ill(_: World) -> Tally:
    verdicts = Verdicts()
    for name, deed in BROKEN.items():
        with HostileServer(deed) as server:
            for what, ask in ASKED.items():
                before, began = _peak(), time.monotonic()
                error = _error_of(ask, server.url)
                seconds, grown = time.monotonic() - began, _peak() - before
                good = isinstance(error, StratoscopeError) and seconds < LIMIT_S and grown < MAX_CLIENT_GROWTH
                verdicts.judge(good, f"{name}, asked for {what}: {error!r:.300}, {seconds:.1f} s, {grown >> 20} MiB")
    return verdicts.tally


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _error_of(ask: Callable[[Client], object], url: str) -> BaseException | None:
    with Client(url, timeout=TIMEOUT_S, max_retries=0) as client:
        try:
            ask(client)
        except Exception as error:  # noqa: BLE001 - which one it is, is what is judged
            return error
    return None


def _fetch(client: Client) -> object:
    # The card is known, as it is in the middle of a run; from then on the server means ill.
    client._talk._card = CARD
    layers, select, dtype = SHAPES[0]
    request = {"stimuli": [Stimulus(id="s0", text="A church")], "capture": {"layers": layers, "select": select}}
    return client.fetch(ActivationsRequest.model_validate({**request, "dtype": dtype}))


ASKED: Final[dict[str, Callable[[Client], object]]] = {
    "its card": lambda client: client.model(),
    "its limits": lambda client: client.limits(),
    "activations": _fetch,
}

FAULTS: Final = (
    Fault("S5", "damaged streams without end", damaged_streams_without_end, small_s=90, full_s=1800),
    Fault("S5b", "servers that mean ill", servers_that_mean_ill, small_s=180),
)
