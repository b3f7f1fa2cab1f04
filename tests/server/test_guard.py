"""Deadlines and caps of a real server on real sockets: what is slow, silent, stuck or too much."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import httpx2
import pyarrow as pa
import pytest

from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.synthetic import SyntheticRunner
from stratoscope_wire import Block, Column
from stratoscope_wire.request import Dtype
from tests.listening import read_address

StartServer = Callable[..., AbstractContextManager[str]]


class HeldRunner(SyntheticRunner):
    """The synthetic runner, which stops before every batch from the n-th on until it is let go."""

    def __init__(self, from_batch: int = 0) -> None:
        super().__init__()
        self.n_batches = 0
        self.gate = threading.Event()
        self._from_batch = from_batch

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        index, self.n_batches = self.n_batches, self.n_batches + 1
        if index >= self._from_batch:
            assert self.gate.wait(timeout=60), "nobody let the runner go"
        return super().run(prompts, columns, dtype)


@contextmanager
def held_server(start_server: StartServer, runner: HeldRunner, **settings: object) -> Iterator[str]:
    """Serve one text per batch; whatever happens, let the runner go in the end."""
    with start_server(lambda: BatchedEngine(runner, max_batch_tokens=1), **settings) as url:
        try:
            yield url
        finally:
            runner.gate.set()


def body(n_texts: int = 1, **capture: object) -> dict[str, object]:
    return {"stimuli": [{"id": f"s{k}", "text": f"text number {k}"} for k in range(n_texts)], "capture": capture}


def connect(url: str) -> socket.socket:
    address = httpx2.URL(url)
    return socket.create_connection((address.host, address.port or 80), timeout=20)


def post_bytes(request: dict[str, object]) -> bytes:
    content = json.dumps(request).encode()
    head = f"POST /v1/activations HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def seconds_until_closed(connection: socket.socket) -> float:
    began = time.monotonic()
    with connection, suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return time.monotonic() - began


def gauge(url: str, name: str) -> float:
    found = re.search(rf"^stratoscope_{name} (\S+)$", httpx2.get(f"{url}/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found.group(1))


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def last_record(data: bytes) -> dict[str, str]:
    """The footer or error record at the end of a stream."""
    record: dict[str, str] = {}
    with pa.ipc.open_stream(data) as reader, suppress(pa.ArrowInvalid, StopIteration):
        while True:
            metadata = dict(reader.read_next_batch_with_custom_metadata()[1])
            record = {key.decode(): value.decode() for key, value in metadata.items()}
    return record


@contextmanager
def begun(url: str, request: dict[str, object]) -> Iterator[http.client.HTTPResponse]:
    """Post a request and give its answer as soon as that begins."""
    address = httpx2.URL(url)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
    with closing(connection):
        connection.request("POST", "/v1/activations", json.dumps(request))
        with connection.getresponse() as answer:
            assert answer.status == 200
            yield answer


def read_to_break(answer: http.client.HTTPResponse) -> bytes:
    """Read an answer that does not end as HTTP says it must."""
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    return caught.value.partial


def test_connections_up_to_the_cap_are_served_and_one_more_is_told_so(start_server: StartServer) -> None:
    with start_server(max_connections=3) as url:
        held = [connect(url) for _ in range(2)]
        assert httpx2.get(f"{url}/healthz").status_code == 200
        held.append(connect(url))
        answer = httpx2.get(f"{url}/healthz")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        held.pop().close()
        wait_until(lambda: httpx2.get(f"{url}/healthz").status_code == 200)
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /healthz HTTP/1.1\r\nhost: ", b"POST /v1/plan HTTP/1.1\r\nhost: x\r\ncontent-length: 90\r\n\r\n{"],
)
def test_a_request_that_does_not_arrive_whole_in_time_loses_its_connection(
    sent: bytes, start_server: StartServer
) -> None:
    with start_server(receive_seconds=0.5) as url:
        connection = connect(url)
        connection.sendall(sent)
        assert 0.3 < seconds_until_closed(connection) < 5


def test_a_request_that_drips_gets_no_more_time_than_one_that_stops(start_server: StartServer) -> None:
    with start_server(receive_seconds=0.5) as url, connect(url) as connection:
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() < began + 10:
                connection.sendall(b"x")
                time.sleep(0.02)
        assert time.monotonic() - began < 5


def test_a_request_that_arrived_whole_may_take_longer_than_it_had_to_arrive(start_server: StartServer) -> None:
    runner = HeldRunner()
    with held_server(start_server, runner, receive_seconds=0.3) as url:
        threading.Timer(1.0, runner.gate.set).start()
        assert httpx2.post(f"{url}/v1/activations", json=body(), timeout=30).status_code == 200


def test_an_idle_connection_is_closed_after_its_time(start_server: StartServer) -> None:
    with start_server(keep_alive_seconds=0.5, receive_seconds=20) as url:
        connection = connect(url)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert 0.2 < seconds_until_closed(connection) < 5


def test_requests_beyond_those_that_run_and_wait_are_refused_before_they_are_parsed(
    start_server: StartServer,
) -> None:
    runner = HeldRunner()
    with held_server(start_server, runner, max_running=1, max_queued=1) as url:
        statuses: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: statuses.append(
                    httpx2.post(f"{url}/v1/activations", json=body(), timeout=30).status_code
                )
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: (gauge(url, "running_requests"), gauge(url, "queued_requests")) == (1, 1))
        for route in ("/v1/activations", "/v1/plan"):
            refused = httpx2.post(url + route, content=b"no JSON at all")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_busy")
            assert int(refused.headers["Retry-After"]) >= 1
        runner.gate.set()
        for thread in threads:
            thread.join(30)
        assert statuses == [200, 200]
        assert (gauge(url, "running_requests"), gauge(url, "queued_requests")) == (0, 0)
        assert gauge(url, "bytes_in_flight") == 0


def test_a_request_whose_turn_does_not_come_gets_a_503(start_server: StartServer) -> None:
    runner = HeldRunner()
    with held_server(start_server, runner, max_running=1, queue_seconds=0.3) as url, connect(url) as first:
        first.sendall(post_bytes(body()))
        wait_until(lambda: gauge(url, "running_requests") == 1)
        answer = httpx2.post(f"{url}/v1/activations", json=body())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_timeout")
        assert int(answer.headers["Retry-After"]) >= 1


def test_an_engine_that_delivers_nothing_at_first_is_a_504(start_server: StartServer) -> None:
    with held_server(start_server, HeldRunner(), first_batch_seconds=0.3) as url:
        answer = httpx2.post(f"{url}/v1/activations", json=body())
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "first_batch_timeout")
        assert gauge(url, "running_requests") == 0


@pytest.mark.parametrize(
    ("setting", "code"), [("between_batches_seconds", "engine_stalled"), ("request_seconds", "request_timeout")]
)
def test_an_engine_that_delivers_nothing_more_ends_in_an_error_record(
    setting: str, code: str, start_server: StartServer
) -> None:
    with held_server(start_server, HeldRunner(from_batch=2), **{setting: 1}) as url:
        with begun(url, body(4)) as answer:
            record = last_record(read_to_break(answer))
        assert (record["status"], record["code"], record["retryable"]) == ("error", code, "true")
        assert gauge(url, "running_requests") == 0


def test_a_reader_that_stands_still_is_cut_off_and_its_place_is_given_back(start_server: StartServer) -> None:
    with start_server(write_stall_seconds=1.5, max_batch_tokens=64) as url, connect(url) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        texts = [{"id": f"s{k}", "text": "word " * 2000} for k in range(8)]
        stuck.sendall(post_bytes({"stimuli": texts, "capture": {"select": ["all"]}}))
        wait_until(lambda: gauge(url, "running_requests") == 1)
        began = time.monotonic()
        wait_until(lambda: gauge(url, "running_requests") == 0, seconds=15)
        assert 1.0 < time.monotonic() - began < 12


def test_a_reader_that_is_only_slow_gets_everything(start_server: StartServer) -> None:
    request: dict[str, object] = {"stimuli": [{"id": "s0", "text": "word " * 300}], "capture": {"select": ["all"]}}
    with start_server(write_stall_seconds=0.5) as url:
        n_bytes = 301 * 12 * 64 * 4
        with begun(url, request) as answer:
            began, data = time.monotonic(), b""
            while piece := answer.read(1 << 16):
                data += piece
                time.sleep(0.1)
        assert time.monotonic() - began > 1, "it was to take longer than a stall"
        assert last_record(data)["bytes"] == str(n_bytes)


@pytest.mark.parametrize("waits_for", ["its turn", "its first rows", "its next rows"])
def test_a_client_that_vanishes_gives_its_place_back_at_once(waits_for: str, start_server: StartServer) -> None:
    runner = HeldRunner(from_batch=2 if waits_for == "its next rows" else 0)
    with held_server(start_server, runner, max_running=1) as url, connect(url) as first:
        if waits_for == "its turn":
            first.sendall(post_bytes(body()))
            wait_until(lambda: gauge(url, "running_requests") == 1)
        with connect(url) as vanishing:
            vanishing.sendall(post_bytes(body(9)))
            before = (1.0, 1.0) if waits_for == "its turn" else (1.0, 0.0)
            wait_until(lambda: (gauge(url, "running_requests"), gauge(url, "queued_requests")) == before)
            if waits_for == "its next rows":
                assert vanishing.recv(12) == b"HTTP/1.1 200"
        began = time.monotonic()
        left = (1.0, 0.0) if waits_for == "its turn" else (0.0, 0.0)
        wait_until(lambda: (gauge(url, "running_requests"), gauge(url, "queued_requests")) == left)
        assert time.monotonic() - began < 2
        n_batches = runner.n_batches
        runner.gate.set()
        if waits_for == "its turn":
            assert first.recv(12) == b"HTTP/1.1 200"
        assert runner.n_batches <= n_batches + 1, "nothing is computed for nobody"


def test_a_client_that_vanishes_while_it_sends_is_no_fault_of_the_server(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    with start_server() as url:
        with connect(url) as vanishing:
            vanishing.sendall(post_bytes(body())[:-5])
        wait_until(lambda: 'route="/v1/activations",status="499"' in httpx2.get(f"{url}/metrics").text)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_repeated_request_is_refused_while_the_first_is_being_answered(start_server: StartServer) -> None:
    runner = HeldRunner()
    headers = {"Idempotency-Key": "the-same"}
    with held_server(start_server, runner) as url, connect(url) as first:
        first.sendall(post_bytes(body()).replace(b"host: x", b"host: x\r\nidempotency-key: the-same"))
        wait_until(lambda: gauge(url, "running_requests") == 1)
        answer = httpx2.post(f"{url}/v1/activations", json=body(), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "already_running")
        assert int(answer.headers["Retry-After"]) >= 1
        runner.gate.set()
        wait_until(lambda: gauge(url, "running_requests") == 0)
        assert httpx2.post(f"{url}/v1/activations", json=body(), headers=headers).status_code == 200


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "naïve"])
def test_a_key_of_a_request_that_is_none_is_refused(key: str, start_server: StartServer) -> None:
    with start_server() as url:
        answer = httpx2.post(f"{url}/v1/activations", json=body(), headers=[(b"idempotency-key", key.encode())])
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "Idempotency-Key")
        accepted = httpx2.post(f"{url}/v1/activations", json=body(), headers={"Idempotency-Key": "x" * 128})
        assert accepted.status_code == 200


def test_a_batch_that_hangs_ends_the_engine_and_is_told_to_everybody(start_server: StartServer) -> None:
    runner = HeldRunner(from_batch=1)
    engine = BatchedEngine(runner, max_batch_tokens=1, stall_seconds=1)
    with start_server(lambda: engine, between_batches_seconds=0.5) as url:
        try:
            assert httpx2.get(f"{url}/readyz").status_code == 200
            with begun(url, body(3)) as answer:
                assert last_record(read_to_break(answer))["code"] == "engine_stalled"
            wait_until(lambda: httpx2.get(f"{url}/readyz").status_code == 503, seconds=5)
        finally:
            runner.gate.set()


SLOW_SERVER = Path(__file__).with_name("slow_server.py")


@contextmanager
def slow_process(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process of its own whose engine takes half a second per text."""
    command = [sys.executable, "-W", "error", str(SLOW_SERVER), "--engine", "synthetic", "--port", "0", *flags]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            url, _ = read_address(process)
            assert url.startswith("http://127.0.0.1:")
            wait_until(lambda: httpx2.get(f"{url}/readyz").status_code == 200)
            yield process, url
        finally:
            process.kill()


def test_a_server_told_to_stop_answers_what_runs_and_tells_others_to_come_back() -> None:
    with slow_process() as (process, url), begun(url, body(6)) as running:
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(f"{url}/readyz").status_code == 503)
        refused = httpx2.post(f"{url}/v1/activations", json=body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["Retry-After"]) >= 1
        assert last_record(running.read())["status"] == "ok"
        assert process.wait(timeout=20) == -signal.SIGTERM


def test_what_does_not_end_while_a_server_drains_ends_in_an_error_record() -> None:
    with slow_process("--drain-seconds", "1") as (process, url), begun(url, body(60)) as running:
        process.send_signal(signal.SIGTERM)
        record = last_record(read_to_break(running))
        assert (record["status"], record["code"], record["retryable"]) == ("error", "draining", "true")
        assert process.wait(timeout=20) == -signal.SIGTERM


def test_a_second_signal_stops_a_draining_server_at_once() -> None:
    with slow_process() as (process, url), begun(url, body(60)):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(f"{url}/readyz").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == -signal.SIGTERM
