import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import httpx2
import numpy as np
import pyarrow as pa
import pytest

from stratoscope_server.engines import synthetic
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import EngineError, Job, Prompt
from stratoscope_wire import (
    ActivationsRequest,
    Block,
    Column,
    Expected,
    ModelCard,
    RemoteStreamError,
    StreamCutError,
    StreamDecoder,
)
from stratoscope_wire.request import Dtype

StartServer = Callable[..., AbstractContextManager[str]]

TEXTS = ["one", "two words", "three words here", "and four words here"]
"""Texts of different lengths, so that each is a batch of its own under a budget of one token."""


class TamperedRunner(synthetic.SyntheticRunner):
    """The synthetic runner with something happening before and after each batch."""

    def __init__(
        self, before: Callable[[int], None] = lambda _: None, after: Callable[[int, Block], Block] = lambda _, b: b
    ) -> None:
        super().__init__()
        self.n_batches = 0
        self._before = before
        self._after = after

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        index, self.n_batches = self.n_batches, self.n_batches + 1
        self._before(index)
        return self._after(index, super().run(prompts, columns, dtype))


def one_by_one(runner: TamperedRunner) -> BatchedEngine:
    return BatchedEngine(runner, max_batch_tokens=1)


def body(texts: Sequence[str] = TEXTS, **capture: object) -> dict[str, object]:
    return {"stimuli": [{"id": text, "text": text} for text in texts], "capture": capture}


def expected(request: dict[str, object], card: ModelCard) -> Expected:
    parsed = ActivationsRequest.model_validate(request)
    return Expected.of(parsed, card.columns(parsed.capture.sites, parsed.capture.layers), card.fingerprint)


def fetch(url: str, request: dict[str, object]) -> tuple[bytes, bool]:
    """Return what came of the body and whether HTTP says that it is whole."""
    data = b""
    with httpx2.stream("POST", f"{url}/v1/activations", json=request) as answer:
        assert answer.status_code == 200
        try:
            for chunk in answer.iter_raw():
                data += chunk
        except httpx2.RemoteProtocolError:
            return data, False
    return data, True


def complete_in(data: bytes, request: dict[str, object], card: ModelCard) -> tuple[set[str], Exception | None]:
    kept: set[str] = set()
    try:
        for batch in StreamDecoder(data, expected(request, card)):
            kept |= set(batch.column("stimulus_id").to_pylist())
    except (RemoteStreamError, StreamCutError) as error:
        return kept, error
    return kept, None


def test_rows_leave_while_later_batches_are_still_to_be_computed(start_server: StartServer) -> None:
    gate = threading.Event()
    runner = TamperedRunner(before=lambda index: None if index < 2 else _wait(gate))
    with (
        start_server(lambda: one_by_one(runner)) as url,
        httpx2.stream("POST", f"{url}/v1/activations", json=body()) as answer,
    ):
        chunks = answer.iter_raw()
        data = b""
        while b"one" not in data.partition(b"fingerprint")[2]:
            data += next(chunks)
        assert runner.n_batches <= 3
        assert not gate.is_set()
        gate.set()
        data += b"".join(chunks)
    assert complete_in(data, body(), runner.card) == (set(TEXTS), None)


def _wait(gate: threading.Event) -> None:
    assert gate.wait(timeout=30), "nobody opened the gate"


@pytest.mark.parametrize("failing", range(len(TEXTS)))
def test_an_engine_that_fails_at_any_batch_never_gives_an_answer_that_looks_whole(
    failing: int, start_server: StartServer
) -> None:
    def fail(index: int) -> None:
        if index == failing:
            raise EngineError("engine_oom", "out of memory", status=503, retryable=True)

    runner = TamperedRunner(before=fail)
    with start_server(lambda: one_by_one(runner)) as url:
        if failing == 0:
            answer = httpx2.post(f"{url}/v1/activations", json=body())
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"
            assert answer.json()["error"]["code"] == "engine_oom"
        else:
            data, whole = fetch(url, body())
            assert not whole
            with pytest.raises(pa.ArrowInvalid):
                pa.ipc.open_stream(data).read_all()
            kept, error = complete_in(data, body(), runner.card)
            assert isinstance(error, RemoteStreamError)
            assert (error.code, error.retryable) == ("engine_oom", True)
            assert kept == set(TEXTS[:failing])
        data, whole = fetch(url, body())
        assert whole
        assert complete_in(data, body(), runner.card) == (set(TEXTS), None)


def _spoil(index: int, block: Block, value: float) -> Block:
    if index == 2:
        block.values[0][0, 0] = value
    return block


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_an_error_record_and_never_data(value: float, start_server: StartServer) -> None:
    runner = TamperedRunner(after=lambda index, block: _spoil(index, block, value))
    with start_server(lambda: one_by_one(runner)) as url:
        data, whole = fetch(url, body())
    kept, error = complete_in(data, body(), runner.card)
    assert not whole
    assert isinstance(error, RemoteStreamError)
    assert error.code == "invalid_block"
    assert kept == set(TEXTS[:2])


class SilentlyShortEngine(BatchedEngine):
    """Leaves out the last prompt, as an engine does that swallows an error."""

    async def capture(self, job: Job) -> AsyncGenerator[Block, None]:
        short = Job(job.request_id, job.prompts[:-1], job.columns, job.dtype)
        async for block in super().capture(short):
            yield block


def test_an_engine_that_leaves_out_a_stimulus_is_found_out_by_the_server(start_server: StartServer) -> None:
    engine = SilentlyShortEngine(synthetic.SyntheticRunner(), 1)
    with start_server(lambda: engine) as url:
        data, whole = fetch(url, body())
    kept, error = complete_in(data, body(), engine.card)
    assert not whole
    assert isinstance(error, RemoteStreamError)
    assert "instead of" in str(error)
    assert kept == set(TEXTS[:-1])


def test_a_bug_in_the_engine_is_a_500_before_the_first_byte_and_an_error_record_after_it(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(index: int) -> None:
        if index in (0, 2):
            raise ZeroDivisionError("secret detail")

    runner = TamperedRunner(before=fail)
    with caplog.at_level(logging.ERROR), start_server(lambda: one_by_one(runner)) as url:
        answer = httpx2.post(f"{url}/v1/activations", json=body())
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert "secret" not in answer.text
        data, whole = fetch(url, body())
    assert not whole
    assert b"secret" not in data
    kept, error = complete_in(data, body(), runner.card)
    assert isinstance(error, RemoteStreamError)
    assert kept == {TEXTS[0]}
    assert "secret detail" in caplog.text


def test_a_client_that_goes_away_stops_the_work(start_server: StartServer) -> None:
    texts = [f"{'word ' * 20}{index}" for index in range(200)]
    runner = TamperedRunner(before=lambda _: time.sleep(0.02))
    with start_server(lambda: one_by_one(runner)) as url:
        with httpx2.stream("POST", f"{url}/v1/activations", json=body(texts)) as answer:
            next(answer.iter_raw())
        time.sleep(1.0)
        ran = runner.n_batches
        time.sleep(0.3)
        assert ran < 30
        assert runner.n_batches == ran
        assert httpx2.get(f"{url}/readyz").status_code == 200
        metrics = httpx2.get(f"{url}/metrics").text
    assert "stratoscope_open_streams 0.0" in metrics
    assert 'stratoscope_streams_total{end="disconnected"} 1.0' in metrics


def test_requests_at_once_get_each_its_own_rows(synthetic_url: str) -> None:
    card = synthetic.SyntheticRunner().card
    requests = [body([f"text {index} {'w ' * (index % 7)}{k}" for k in range(9)]) for index in range(16)]

    async def ask() -> list[bytes]:
        async with httpx2.AsyncClient(base_url=synthetic_url, timeout=60) as client:
            answers = await asyncio.gather(*(client.post("/v1/activations", json=request) for request in requests))
        return [answer.content for answer in answers]

    for request, data in zip(requests, asyncio.run(ask()), strict=True):
        for batch in StreamDecoder(data, expected(request, card)):
            for stimulus_id, value in zip(
                batch.column("stimulus_id").to_pylist(), batch.column("resid_post.4").to_pylist(), strict=True
            ):
                ids = synthetic.SyntheticTokenizer().encode(stimulus_id, add_special_tokens=True).token_ids
                reference = synthetic.activations(ids, card.columns(["resid_post"], [4])[0])[-1]
                assert np.array(value, np.float32).tobytes() == reference.tobytes()


def test_the_announced_bytes_are_those_of_the_plan_the_footer_and_the_table(synthetic_url: str) -> None:
    request = body(TEXTS, sites=["embed", "heads"], layers=[0, 5], select=["all", "mean"]) | {"dtype": "bfloat16"}
    plan = httpx2.post(f"{synthetic_url}/v1/plan", json=request).json()
    answer = httpx2.post(f"{synthetic_url}/v1/activations", json=request)
    decoder = StreamDecoder(answer.content, expected(request, synthetic.SyntheticRunner().card))
    table = pa.Table.from_batches(list(decoder))
    assert decoder.footer is not None
    values = sum(table.column(name).nbytes for name in ("embed", "heads.0", "heads.5"))
    assert values == plan["bytes"] == decoder.footer.bytes == int(answer.headers["X-Expected-Bytes"])
    assert [s["n_rows"] for s in plan["stimuli"]] == [s["n_tokens"] + 1 for s in plan["stimuli"]]
    assert plan["n_rows"] == table.num_rows == decoder.footer.rows
    assert table.num_rows == sum(len(text.split()) + 2 for text in TEXTS)


def test_http_1_0_is_refused_because_a_cut_answer_would_look_whole(synthetic_url: str) -> None:
    import socket

    host, port = synthetic_url.removeprefix("http://").split(":")
    content = b'{"stimuli":[{"id":"a","text":"A"}]}'
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /v1/activations HTTP/1.0\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert b" 505 " in received.partition(b"\r\n")[0]


def test_a_server_answers_503_until_its_engine_is_loaded(start_server: StartServer) -> None:
    gate = threading.Event()

    def load() -> BatchedEngine:
        _wait(gate)
        return synthetic.load_engine(64)

    with start_server(load, wait=False) as url:
        assert httpx2.get(f"{url}/healthz").status_code == 200
        for answer in (httpx2.get(f"{url}/readyz"), httpx2.post(f"{url}/v1/activations", json=body())):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert int(answer.headers["Retry-After"]) > 0
        gate.set()
        deadline = time.monotonic() + 10
        while httpx2.get(f"{url}/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)


NONSENSE: dict[str, Callable[[Block], Block]] = {
    "a stimulus that is there already": lambda block: replace(block, stimulus_id=[TEXTS[0]] * len(block.stimulus_id)),
    "a stimulus that nobody asked for": lambda block: replace(block, stimulus_id=["x"] * len(block.stimulus_id)),
    "rows in another order": lambda block: replace(block, position=block.position[::-1].copy()),
    "rows of other tokens": lambda block: replace(block, token_id=block.token_id + 1),
    "rows of another selector": lambda block: replace(block, selector=["last"] * len(block.selector)),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_rows_that_are_not_those_asked_for_never_leave_the_server(nonsense: str, start_server: StartServer) -> None:
    change = NONSENSE[nonsense]
    runner = TamperedRunner(after=lambda index, block: change(block) if index == 2 else block)
    request = body(select=["all"])
    with start_server(lambda: one_by_one(runner)) as url:
        data, whole = fetch(url, request)
    assert not whole
    with pytest.raises(pa.ArrowInvalid):
        pa.ipc.open_stream(data).read_all()
    kept, error = complete_in(data, request, runner.card)
    assert isinstance(error, RemoteStreamError)
    assert error.code == "invalid_block"
    assert kept == set(TEXTS[:2])
