"""Readers that stop, leave or vanish: what they held comes back, and nothing is computed for nobody."""

import asyncio
import json
import socket
import statistics
import struct
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any, Final

import httpx2
import psutil

from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Job, Prompt
from stratoscope_server.engines.synthetic import SyntheticRunner
from stratoscope_server.settings import Settings
from stratoscope_wire import Block, Column
from stratoscope_wire.request import Dtype
from tests.conftest import running_server
from tests.faults import raw
from tests.faults.answers import expected_by, request_of
from tests.faults.fault import Fault, World
from tests.faults.gauges import gauge, held, seconds_until
from tests.faults.peak_memory import PeakMemory
from tests.faults.processes import ServerProcess
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts

STALL_S: Final = 5.0
STALL_SLACK_S: Final = 2.0
MAX_GROWTH: Final = 128 << 20
NOTHING: Final = (0.0, 0.0, 0.0)
RESET: Final = struct.pack("ii", 1, 0)


def a_reader_that_stops_for_ever(world: World) -> Tally:
    verdicts = Verdicts()
    flags = ["--write-stall-seconds", str(STALL_S), "--max-batch-tokens", "256", "--max-response-bytes", str(5 << 30)]
    flags += ["--max-bytes-in-flight", str(6 << 30)]
    with ServerProcess(world, *flags, *(("--ring-bytes", str(64 << 20)) if world.engine == "vllm" else ())) as server:
        request, n_bytes = _large(server.url, world)
        _warm_up(server.url, request)
        memory = PeakMemory(server.pid)
        for _ in range(world.pick(1, 3)):
            with _stuck(server.url, request):
                reading_s = seconds_until(lambda: gauge(server.url, "running_requests") == 1, 20)
                held_bytes = gauge(server.url, "bytes_in_flight")
                seconds = seconds_until(lambda: held(server.url) == NOTHING, STALL_S + 20)
            good = reading_s < 20 and abs(seconds - STALL_S) < STALL_SLACK_S + 2 and held_bytes > n_bytes / 2
            verdicts.judge(good, f"cut off after {seconds:.1f} s, {held_bytes:.0f} of {n_bytes} bytes had been held")
            verdicts.judge(memory.growth < MAX_GROWTH, f"the server grew by {memory.growth >> 20} MiB")
            if world.engine == "vllm":
                free_s = seconds_until(lambda: gauge(server.url, "ring_used_bytes") == 0, 10)
                verdicts.judge(free_s < 10, "a region of the ring was not given back")
        n_told = server.log.read_text().count("a client has read nothing")
        verdicts.judge(n_told == world.pick(1, 3), f"stalls in the log: {n_told}")
        _warm_up(server.url, request)
    return verdicts.tally


def _large(url: str, world: World) -> tuple[dict[str, Any], int]:
    """A request whose answer is as large as one may be: 4 GiB from the synthetic engine, where rows cost nothing."""
    n_texts, words = (250, 245) if world.engine == "synthetic" else (200, 20)
    request = request_of(n_texts, words=words, select=["all"])
    if world.engine == "synthetic":
        spans = {name: [0, len("church " * words)] for name in ("a", "b", "c")}
        for stimulus in request["stimuli"]:
            stimulus["spans"] = spans
        sites = ["embed", "resid_mid", "resid_post", "attn_out", "mlp_out", "heads", "final_norm"]
        select = ["all", *({"span": name, "take": "all"} for name in spans)]
        request["capture"] = {"sites": sites, "select": select}
    n_bytes = expected_by(url, request)
    assert n_bytes > (3 << 30 if world.engine == "synthetic" else 64 << 20), n_bytes
    return request, n_bytes


def _warm_up(url: str, request: dict[str, Any]) -> None:
    """Fetch a little, so that what the first request costs once and for all is not counted."""
    answer = httpx2.post(f"{url}/v1/activations", json={**request, "stimuli": request["stimuli"][:4]}, timeout=120)
    assert answer.status_code == 200, answer.text


def _stuck(url: str, request: dict[str, Any]) -> socket.socket:
    """Ask, and read no more than the first bytes."""
    connection = raw.connect(url, timeout_s=120)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    connection.sendall(raw.request("POST", "/v1/activations", body=json.dumps(request).encode()))
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


class CountingRunner(SyntheticRunner):
    """Takes a while for each batch, and counts them by the name of the request's first stimulus."""

    def __init__(self, batch_s: float) -> None:
        super().__init__()
        self.n_batches: dict[str, int] = {}
        self._batch_s = batch_s

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        owner = prompts[0].stimulus_id.partition("/")[0]
        self.n_batches[owner] = self.n_batches.get(owner, 0) + 1
        time.sleep(self._batch_s)
        return super().run(prompts, columns, dtype)


class WatchedEngine(BatchedEngine):
    """Notes when captures end, and in which loop they run."""

    def __init__(self, batch_s: float = 0.005) -> None:
        self.runner = CountingRunner(batch_s)
        super().__init__(self.runner, max_batch_tokens=1)
        self.ended: list[float] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    async def capture(self, job: Job) -> AsyncGenerator[Block, None]:
        self.loop = asyncio.get_running_loop()
        blocks = super().capture(job)
        try:
            async for block in blocks:
                yield block
        finally:
            await blocks.aclose()
            self.ended.append(time.monotonic())


def _named(owner: str, n_texts: int) -> dict[str, Any]:
    request = request_of(n_texts, layers=[3])
    for stimulus in request["stimuli"]:
        stimulus["id"] = f"{owner}/{stimulus['id']}"
    return request


def a_reader_that_leaves(world: World) -> Tally:
    verdicts = Verdicts()
    engine = WatchedEngine()
    with running_server(lambda: engine, Settings(engine="synthetic", port=0, max_stimuli=1000)) as url:
        alone = [_latency(url) for _ in range(5)]
        for number in range(world.pick(5, 50)):
            owner = f"leaving{number}"
            engine.ended.clear()
            others: list[float] = []
            other = threading.Thread(target=lambda others=others: others.append(_latency(url)))
            with raw.connect(url) as connection:
                connection.sendall(_post(_named(owner, 1000)))
                _read_until(connection, f"{owner}/s2".encode())
                other.start()
                n_before, left = engine.runner.n_batches[owner], time.monotonic()
            other.join(30)
            time.sleep(0.5)
            n_more = engine.runner.n_batches[owner] - n_before
            ended_s = min(engine.ended, default=float("inf")) - left
            verdicts.judge(n_more <= 8, f"{n_more} batches were computed for nobody")
            verdicts.judge(ended_s < 1, f"the engine's work ended {ended_s:.1f} s after the reader had left")
            slow = not others or others[0] > 2 * statistics.median(alone) + 0.2
            verdicts.judge(not slow, f"another request took {others} instead of {alone}")
    return verdicts.tally


def _latency(url: str) -> float:
    began = time.monotonic()
    assert httpx2.post(f"{url}/v1/activations", json=_named("other", 20), timeout=60).status_code == 200
    return time.monotonic() - began


def _post(request: dict[str, Any]) -> bytes:
    return raw.request("POST", "/v1/activations", body=json.dumps(request).encode())


def _read_until(connection: socket.socket, mark: bytes) -> None:
    data = b""
    while mark not in data:
        piece = connection.recv(1 << 16)
        assert piece, data[-500:]
        data += piece


def readers_that_vanish(world: World) -> Tally:
    verdicts = Verdicts()
    engine = WatchedEngine(batch_s=0.001)
    settings = Settings(engine="synthetic", port=0, receive_seconds=2, max_connections=1000)
    with running_server(lambda: engine, settings) as url:
        assert httpx2.post(f"{url}/v1/activations", json=_named("first", 5)).status_code == 200
        before = _held_by(engine, url)
        for number in range(world.pick(200, 2000)):
            _vanish(url, number, world)
            verdicts.judge(True, "it is judged by what is left")
        came_back_s = seconds_until(lambda: _held_by(engine, url) == before, 20)
        verdicts.judge(came_back_s < 20, f"descriptors, tasks, places: {_held_by(engine, url)}, were {before}")
        verdicts.judge(httpx2.get(f"{url}/readyz").status_code == 200, "the server is ready")
    return verdicts.tally


def _held_by(engine: WatchedEngine, url: str) -> tuple[Any, ...]:
    """Descriptors of this process, the server's among them; tasks of the server; places of requests."""
    places = held(url)
    assert engine.loop is not None
    n_tasks = len(asyncio.all_tasks(engine.loop))
    return psutil.Process().num_fds(), n_tasks, places


def _vanish(url: str, number: int, world: World) -> None:
    """Connect, get so far, and be gone, in one of two ways."""
    whole = _post(_named(f"vanishing{number}", 50))
    how_far = world.random.choice((0, 1, 30, len(whole) // 2, len(whole) - 1, len(whole), len(whole)))
    with raw.connect(url) as connection:
        connection.sendall(whole[:how_far])
        if how_far == len(whole) and world.random.random() < 0.5:
            connection.recv(world.random.choice((1, 100, 5000)))
        if world.random.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        else:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)


FAULTS: Final = (
    Fault(
        "F14", "a reader that stops for ever", a_reader_that_stops_for_ever,
        small_s=300, full_s=600, engines=("synthetic", "torch", "vllm"),
    ),
    Fault("F15", "a reader that leaves at batch 3 of 1,000", a_reader_that_leaves),
    Fault("F16", "readers that connect and vanish", readers_that_vanish, small_s=90),
)  # fmt: skip
