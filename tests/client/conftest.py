"""A server on real sockets that speaks the wire, knows the truth about every value, and fails in the way it is told."""

import json
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from stratoscope.client import Client
from stratoscope.retries import RetryPolicy
from stratoscope.stimuli import StimulusTable
from stratoscope.store.run import Run
from stratoscope_wire import (
    CONTENT_TYPE,
    PROTOCOL_VERSION,
    ActivationsRequest,
    Block,
    Column,
    Limits,
    ModelCard,
    SpanSelector,
    Stimulus,
    StreamEncoder,
    selector_label,
)
from stratoscope_wire.card import site_cards
from stratoscope_wire.dtypes import value_bytes
from stratoscope_wire.schema import StreamHeader

FloatArray = npt.NDArray[np.float32]
Row = tuple[str, list[int]]
"""A selector's label and the positions it reads; several for a mean."""


def make_card(revision: str = "0", dtype: str = "bfloat16") -> ModelCard:
    return ModelCard(
        model="tiny",
        revision=revision,
        architecture="llama",
        dtype=dtype,
        n_layers=3,
        d_model=8,
        n_heads=2,
        d_head=3,
        vocab_size=2000,
        max_tokens=400,
        tokenizer_hash="t",
        engine="synthetic",
        versions={"numpy": "2"},
        sites=site_cards(3, 8, 6),
    ).signed()


def tokenize(stimulus: Stimulus, *, special: bool) -> list[int]:
    """One token per character, after a token 1 that begins the text."""
    if stimulus.token_ids is not None:
        return list(stimulus.token_ids)
    text = stimulus.text or "\n".join(message.content for message in stimulus.messages or [])
    return [1] * special + [ord(character) % 1000 + 2 for character in text]


def state(tokens: Sequence[int], position: int, column: Column) -> FloatArray:
    """What the model holds at a position: it depends on all tokens up to there, and bfloat16 holds it exactly."""
    seed = zlib.crc32(f"{column.name}|{list(tokens[: position + 1])}".encode())
    return (((seed + 7919 * np.arange(column.width)) % 251 - 125) / 8).astype(np.float32)


def rows_of(stimulus: Stimulus, request: ActivationsRequest) -> list[Row]:
    special = request.add_special_tokens and stimulus.token_ids is None
    n_tokens = len(tokenize(stimulus, special=special))
    rows: list[Row] = []
    for selector in request.capture.select:
        label, everything = selector_label(selector), list(range(n_tokens))
        if isinstance(selector, SpanSelector):
            start, end = stimulus.spans[selector.span]
            everything = list(range(start + special, end + special))
        take = selector.take if isinstance(selector, SpanSelector) else selector
        if take == "all":
            rows += [(label, [position]) for position in everything]
        elif take == "mean":
            rows.append((label, everything))
        else:
            index = {"last": -1, "first": 0}.get(take, take) if isinstance(take, str) else take
            rows.append((label, [everything[cast("int", index)]]))
    return rows


@dataclass
class Received:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def request(self) -> ActivationsRequest:
        return ActivationsRequest.model_validate_json(self.body)

    @property
    def ids(self) -> list[str]:
        return [stimulus.id for stimulus in self.request.stimuli]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    received: Received

    @property
    def faults(self) -> "FaultServer":
        return cast("_Listener", self.server).owner

    def do_GET(self) -> None:
        self._receive(b"")
        answers = {"/v1/model": self.faults.card, "/v1/limits": self.faults.limits}
        if self.faults.get_faults:
            self.faults.get_faults.popleft()(self, b"")
        elif self.path in answers:
            self.send(200, "application/json", answers[self.path].model_dump_json().encode())
        else:
            self.send_problem(404, "not_found", f"no route {self.path}")

    def do_POST(self) -> None:
        received = self._receive(self.rfile.read(int(self.headers["Content-Length"])))
        problem = self.faults.problem(received.request)
        if problem is not None:
            self.send_problem(**problem)
            return
        fault = self.faults.faults.popleft() if self.faults.faults else self.faults.always
        body = b"".join(self.faults.stream(received.request))
        if fault is None:
            self.send_stream(body)
        else:
            fault(self, body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""

    def _receive(self, body: bytes) -> Received:
        received = Received(
            self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body
        )
        self.faults.received.append(received)
        self.received = received
        return received

    def send(self, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_problem(self, status: int, code: str, message: str, **more: Any) -> None:
        headers = more.pop("headers", None)
        error = {"code": code, "message": message, "request_id": "r-1", **more}
        self.send(status, "application/json", json.dumps({"error": error}).encode(), headers)

    def begin_stream(self, content_type: str = CONTENT_TYPE) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("X-Request-Id", "r-1")
        request = self.received.request
        self.send_header("X-Expected-Bytes", str(self.faults.n_bytes(request)))
        self.end_headers()

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def send_stream(self, body: bytes, content_type: str = CONTENT_TYPE) -> None:
        self.begin_stream(content_type)
        if body:
            self.send_chunk(body)
        self.wfile.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        """Close the connection where it is, without the chunk that ends a body."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_WR)


Fault = Callable[[Handler, bytes], None]
"""Answers a request in a wrong way, given the right answer."""


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    owner: "FaultServer"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is none of the server's business."""


def default_limits(**changes: int) -> Limits:
    limits: dict[str, float | None] = {
        "max_header_bytes": 16_000,
        "max_headers": 64,
        "max_url_bytes": 8_000,
        "max_json_depth": 8,
        "max_json_values": 98_304,
        "max_stimulus_bytes": None,
        "max_bytes_in_flight": 100_000_000,
        "max_running": 4,
        "max_queued": 16,
        "max_queued_per_key": 8,
        "max_queued_tokens": 100_000,
        "max_connections": 64,
        "receive_seconds": 15,
        "keep_alive_seconds": 75,
        "queue_seconds": 120,
        "first_batch_seconds": 120,
        "between_batches_seconds": 60,
        "write_stall_seconds": 60,
        "request_seconds": 1800,
        "drain_seconds": 60,
        "max_body_bytes": 100_000,
        "max_stimuli": 64,
        "max_characters_per_text": 2_000,
        "max_tokens_per_text": 400,
        "max_tokens_per_request": 8_000,
        "max_response_bytes": 10_000_000,
    }
    return Limits.model_validate(limits | changes)


@dataclass
class FaultServer:
    """The server: what it claims to be, what it received, and how it is to fail next."""

    card: ModelCard = field(default_factory=make_card)
    limits: Limits = field(default_factory=default_limits)
    faults: deque[Fault] = field(default_factory=deque)
    get_faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    received: list[Received] = field(default_factory=list)
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    default_limits = staticmethod(default_limits)
    make_card = staticmethod(make_card)

    @property
    def posts(self) -> list[Received]:
        return [received for received in self.received if received.path == "/v1/activations"]

    def truth(self, text: str | Stimulus, column: Column, position: int = -1, *, special: bool = True) -> FloatArray:
        """The value that must come back."""
        stimulus = Stimulus(id="x", text=text) if isinstance(text, str) else text
        tokens = tokenize(stimulus, special=special and stimulus.token_ids is None)
        return state(tokens, position % len(tokens), column)

    def columns(self, request: ActivationsRequest) -> tuple[Column, ...]:
        return self.card.columns(list(request.capture.sites), request.capture.layers)

    def n_rows(self, request: ActivationsRequest) -> int:
        return sum(len(rows_of(stimulus, request)) for stimulus in request.stimuli)

    def n_bytes(self, request: ActivationsRequest) -> int:
        width = sum(column.width for column in self.columns(request))
        return self.n_rows(request) * width * value_bytes(request.dtype)

    def problem(self, request: ActivationsRequest) -> dict[str, Any] | None:
        """What is wrong with a request, as a real server would say it."""
        if len(request.stimuli) > self.limits.max_stimuli:
            return {"status": 422, "code": "too_many_stimuli", "message": "too many stimuli"}
        n_tokens = 0
        for stimulus in request.stimuli:
            if "REFUSED" in (stimulus.text or ""):
                message = f"stimulus {stimulus.id!r} is refused"
                return {"status": 422, "code": "refused", "message": message, "stimulus": stimulus.id}
            n_tokens += len(tokenize(stimulus, special=request.add_special_tokens))
            if n_tokens > self.limits.max_tokens_per_request:
                message = f"too many tokens, reached at stimulus {stimulus.id!r}"
                return {"status": 413, "code": "too_many_tokens", "message": message, "stimulus": stimulus.id}
        if self.n_bytes(request) > self.limits.max_response_bytes:
            return {"status": 413, "code": "response_too_large", "message": "response too large"}
        return None

    def stream(self, request: ActivationsRequest, fail_after: int | None = None, **record: Any) -> Iterator[bytes]:
        """The right answer in pieces: the schema, one batch per stimulus, the end."""
        columns = self.columns(request)
        header = StreamHeader(
            protocol=PROTOCOL_VERSION,
            fingerprint=self.card.fingerprint,
            request_id="r-1",
            dtype=request.dtype,
            stimuli=len(request.stimuli),
            rows=self.n_rows(request),
            bytes=self.n_bytes(request),
        )
        encoder = StreamEncoder(columns, header)
        yield b"".join(encoder.start())
        for index, stimulus in enumerate(request.stimuli):
            if index == fail_after:
                yield b"".join(encoder.fail("engine_failed", "the engine failed", **record))
                return
            yield b"".join(b"".join(message) for message in encoder.encode(self._block(stimulus, request, columns)))
        yield b"".join(encoder.finish())

    def _block(self, stimulus: Stimulus, request: ActivationsRequest, columns: Sequence[Column]) -> Block:
        tokens = tokenize(stimulus, special=request.add_special_tokens and stimulus.token_ids is None)
        rows = rows_of(stimulus, request)
        pooled = [label.endswith("mean") for label, _ in rows]
        values = []
        for column in columns:
            states = [np.mean([state(tokens, p, column) for p in places], axis=0) for _, places in rows]
            stacked = np.stack(states).astype(np.float32)
            bits = (stacked.view(np.uint32) >> 16).astype(np.uint16)
            values.append(bits if request.dtype == "bfloat16" else stacked.astype(request.dtype))
        position = [-1 if mean else places[0] for mean, (_, places) in zip(pooled, rows, strict=True)]
        token_id = [-1 if place < 0 else tokens[place] for place in position]
        keys = [stimulus.id] * len(rows), [label for label, _ in rows]
        return Block(*keys, np.array(position, np.int32), np.array(token_id, np.int32), values)

    def check_run(self, run_dir: Path, table: StimulusTable) -> None:
        """Hold every value of a finished run against the truth."""
        run = Run.open(run_dir)
        assert run.verify() == []
        assert run.stimuli()["id"].to_list() == list(table.ids)
        for column in run.columns:
            truth = np.stack([self.truth(stimulus, column) for stimulus in table.stimuli])
            np.testing.assert_array_equal(run.activations("last")[column.site, column.layer], truth)
        rows = pl.concat([pl.read_parquet(path, columns=["stimulus_id"]) for path in run.shard_paths])
        assert sorted(rows["stimulus_id"]) == sorted(table.ids * len(run.selectors))

    # Ways to fail.

    def status(self, status: int, code: str = "some_code", **more: Any) -> Fault:
        return lambda handler, _: handler.send_problem(status, code, f"the server says {status}", **more)

    def cut(self, n_bytes: int, *, clean: bool = False) -> Fault:
        """Send part of the answer; then close the connection, or end the body as if it were complete."""

        def fault(handler: Handler, body: bytes) -> None:
            assert n_bytes < len(body), "the cut must shorten the answer"
            if clean:
                handler.send_stream(body[:n_bytes])
                return
            handler.begin_stream()
            if n_bytes:
                handler.send_chunk(body[:n_bytes])
            handler.break_off()

        return fault

    def cut_after(self, n_stimuli: int) -> Fault:
        """Close the connection when so many stimuli are complete."""

        def fault(handler: Handler, _: bytes) -> None:
            pieces = list(self.stream(handler.received.request))
            handler.begin_stream()
            handler.send_chunk(b"".join(pieces[: n_stimuli + 1]))
            handler.break_off()

        return fault

    def record(self, fail_after: int, *, retryable: bool) -> Fault:
        """Say in the stream that the server failed, after so many stimuli."""

        def fault(handler: Handler, _: bytes) -> None:
            request = handler.received.request
            handler.begin_stream()
            handler.send_chunk(b"".join(self.stream(request, fail_after, retryable=retryable)))
            handler.break_off()

        return fault

    def altered(self, alter: Callable[[bytes], bytes], content_type: str = CONTENT_TYPE) -> Fault:
        return lambda handler, body: handler.send_stream(alter(body), content_type)

    def hang(self) -> Fault:
        """Say nothing until the server is closed."""

        def fault(handler: Handler, _: bytes) -> None:
            self.closing.wait(30)
            handler.break_off()

        return fault

    def slow(self, pause_s: float, n_pieces: int) -> Fault:
        def fault(handler: Handler, body: bytes) -> None:
            handler.begin_stream()
            for piece in np.array_split(np.frombuffer(body, np.uint8), n_pieces):
                handler.send_chunk(piece.tobytes())
                time.sleep(pause_s)
            handler.wfile.write(b"0\r\n\r\n")

        return fault


@contextmanager
def fault_server() -> Iterator[FaultServer]:
    listener = _Listener(("127.0.0.1", 0), Handler)
    faults = FaultServer(url=f"http://127.0.0.1:{listener.server_address[1]}")
    listener.owner = faults
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield faults
    faults.closing.set()
    listener.shutdown()
    listener.server_close()
    thread.join(10)
    assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server() as server:
        yield server


@pytest.fixture
def second_server() -> Iterator[FaultServer]:
    """Another server of the same model."""
    with fault_server() as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    """Seconds that the client waited, or would have waited."""
    return []


@pytest.fixture
def client(server: FaultServer, pauses: list[float]) -> Iterator[Client]:
    """A client that does not really wait between attempts."""
    with Client(server.url, max_retries=RetryPolicy(4), timeout=5, sleep=pauses.append) as client:
        yield client


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STRATOSCOPE_BASE_URL", "STRATOSCOPE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
