"""Bodies that are too large, too deep, lie about themselves or ask for what cannot be: refused early and cheaply."""

import json
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

import httpx2
import pyarrow as pa

from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Job
from stratoscope_server.engines.synthetic import SyntheticRunner
from stratoscope_server.settings import Settings
from stratoscope_wire import Block
from tests.conftest import running_server
from tests.faults import raw
from tests.faults.fault import Fault, World
from tests.faults.peak_memory import PeakMemory
from tests.faults.processes import ServerProcess
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts

LIMIT: Final = 8 << 20
MAX_GROWTH: Final = 64 << 20
GOOD: Final = b'{"stimuli":[{"id":"s1","text":"A church and organ"}],"capture":{"layers":[3]}}'
MAX_VALUES: Final = 98_304
STIMULI: Final = b'{"stimuli":['
SPANS: Final = b'{"id":"a","text":"b","spans":{'
CAPTURE: Final = GOOD.removesuffix(b"]}}")
PIECES: Final = {
    "empty stimuli": (STIMULI, b"{},", b"]}"),
    "numbers for stimuli": (STIMULI, b"1,", b"]}"),
    "short stimuli": (STIMULI, b'{"id":"a","text":"b"},', b"]}"),
    "stimuli with an unknown field": (STIMULI, b'{"id":"a","text":"b","c":1},', b"]}"),
    "token ids": (STIMULI + b'{"id":"a","token_ids":[', b"1,", b"]}]}"),
    "negative token ids": (STIMULI + b'{"id":"a","token_ids":[', b"-1,", b"]}]}"),
    "large token ids": (STIMULI + b'{"id":"a","token_ids":[', b"999999999,", b"]}]}"),
    "empty messages": (STIMULI + b'{"id":"a","messages":[', b"{},", b"]}]}"),
    "short messages": (STIMULI + b'{"id":"a","messages":[', b'{"role":"user","content":""},', b"]}]}"),
    "layers": (CAPTURE + b",", b"1,", b"]}}"),
    "selectors": (CAPTURE + b'],"select":[', b"1,", b"]}}"),
    "sites": (CAPTURE + b'],"sites":[', b'"embed",', b"]}}"),
    "one field again": (b"{", b'"a":1,', b"}"),
    "escapes": (STIMULI + b'{"id":"a","text":"', b"\\u0041", b'"}]}'),
    "commas in a text": (STIMULI + b'{"id":"a","text":"', b",[{", b'"}]}'),
}
JSON_TYPE: Final = "Content-Type: application/json"


def bodies_beyond_the_limit(world: World) -> Tally:
    verdicts = Verdicts()
    with ServerProcess(world, "--max-body-bytes", str(LIMIT)) as server:
        # What the first body of this size costs once and for all is not growth.
        assert raw.send(server.url, _post(GOOD.ljust(LIMIT))).status == 200
        for name, (data, statuses) in _bodies(world).items():
            memory = PeakMemory(server.pid)
            began = time.monotonic()
            reply = raw.send(server.url, data, timeout_s=30)
            growth, seconds = memory.growth, time.monotonic() - began
            good = reply.status in statuses and growth < MAX_GROWTH and seconds < 10
            verdicts.judge(good, f"{name}: {reply.status}, {growth >> 20} MiB, {seconds:.1f} s, {reply.body[:300]!r}")
        verdicts.judge(raw.send(server.url, _post(GOOD)).status == 200, "a good request after the bad ones")
    return verdicts.tally


def _post(body: bytes, *headers: str) -> bytes:
    return raw.request("POST", "/v1/activations", JSON_TYPE, *headers, body=body)


def _declared(length: str, body: bytes) -> bytes:
    return raw.request("POST", "/v1/activations", JSON_TYPE, f"Content-Length: {length}") + body


def _chunked(body: bytes, size: int = 1 << 16) -> bytes:
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return raw.request("POST", "/v1/activations", JSON_TYPE, "Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n"


def _fill(opening: bytes, piece: bytes, closing: bytes, n_values: int | None = None) -> bytes:
    """Repeat a piece until a body is as large as allowed, or has as many values as allowed."""
    n_pieces = (LIMIT - len(opening) - len(closing)) // len(piece)
    if n_values is not None:
        n_pieces = min(n_pieces, n_values // max(1, piece.count(b",") + piece.count(b"{")))
    return opening + piece * (n_pieces - 1) + piece.rstrip(b",") + closing


def _bombs() -> dict[str, bytes]:
    """What is small as bytes and large once it is parsed; each by its size, and by its number of values."""
    bombs = {}
    for name, (opening, piece, closing) in PIECES.items():
        bombs[f"{name} without end"] = _fill(opening, piece, closing)
        bombs[f"{name}, as many as allowed"] = _fill(opening, piece, closing, MAX_VALUES - 20)
    return bombs


def _bodies(world: World) -> dict[str, tuple[bytes, set[int]]]:
    """Requests by name, each with the statuses that are right; 0 is a connection that was closed."""
    depth = 10_000
    return {name: (_post(body), {413, 422}) for name, body in _bombs().items()} | {
        "as large as allowed": (_post(GOOD.ljust(LIMIT)), {200}),
        "a byte more": (_post(GOOD.ljust(LIMIT + 1)), {413}),
        "a byte more in chunks": (_chunked(GOOD.ljust(LIMIT + 1)), {413}),
        "far more in chunks": (_chunked(GOOD.ljust(world.pick(4, 25) * LIMIT)), {413}),
        "far more in tiny chunks": (_chunked(GOOD.ljust(LIMIT + 1), 16), {413}),
        "a huge length": (_declared("999999999999999999", GOOD), {413}),
        "a length beyond 64 bits": (_declared("9" * 40, GOOD), {400, 413}),
        "a negative length": (_declared("-5", GOOD), {400}),
        "a length in words": (_declared("many", GOOD), {400}),
        "a length too short": (_declared("10", GOOD), {400}),
        "two lengths": (_declared("10", GOOD).replace(b"\r\n\r\n", b"\r\nContent-Length: 20\r\n\r\n", 1), {400}),
        "a length and chunks": (_chunked(GOOD).replace(b"Transfer", b"Content-Length: 5\r\nTransfer", 1), {200, 400}),
        "chunks that are none": (_chunked(GOOD).replace(b"\r\n0\r\n", b"\r\nzz\r\n", 1), {400}),
        "an unknown encoding": (_post(GOOD, "Transfer-Encoding: gzip"), {400, 501}),
        "lists in lists": (_post(b"[" * depth + b"]" * depth), {400, 422}),
        "lists in lists in a field": (_post(STIMULI[:-1] + b"[" * depth + b"]" * depth + b"}"), {400, 422}),
        "objects in objects": (_post(b'{"a":' * depth + b"1" + b"}" * depth), {400, 422}),
        "nothing but openings": (_post(b"[" * LIMIT), {400, 422}),
        "a string without end": (_post(STIMULI + b'"' + b'\\"' * (LIMIT // 2 - 10)), {400}),
        "spans without end": (_post(_many_keys(STIMULI + SPANS, b":[0,1]", b"}}]}")), {413, 422}),
        "unknown fields without end": (_post(_many_keys(b"{", b":1", b"}")), {413, 422}),
        "a number of a million digits": (_post(b'{"stimuli":[{"token_ids":[' + b"9" * 1_000_000 + b"]}]}"), {400, 422}),
    }  # fmt: skip


def _many_keys(opening: bytes, value: bytes, closing: bytes) -> bytes:
    pairs = b",".join(b'"k%d"%s' % (index, value) for index in range(LIMIT // (len(value) + 12)))
    body = opening + pairs + closing
    assert LIMIT // 2 < len(body) <= LIMIT
    return body


def values_that_cannot_be(world: World) -> Tally:
    verdicts = Verdicts()
    with ServerProcess(world, "--max-stimuli", "3", "--max-tokens-per-text", "8") as server:
        for route in ("/v1/activations", "/v1/plan"):
            assert raw.send(server.url, raw.request("POST", route, body=GOOD)).status == 200
            for name, (body, field, statuses) in VALUES.items():
                reply = raw.send(server.url, raw.request("POST", route, JSON_TYPE, body=body))
                found = json.loads(reply.body).get("error", {}) if reply.body[:1] == b"{" else {}
                good = reply.status in statuses and found.get("field") == field
                verdicts.judge(good, f"{route} {name}: {reply.status} {found}, field {field} was due")
    return verdicts.tally


def _text(text: str, **more: Any) -> bytes:
    return json.dumps({"stimuli": [{"id": "s", "text": text}], **more}).encode()


def _tokens(tokens: str) -> bytes:
    return b'{"stimuli":[{"id":"s","token_ids":%s}]}' % tokens.encode()


def _capture(capture: str) -> bytes:
    return b'{"stimuli":[{"id":"s","text":"A church"}],"capture":%s}' % capture.encode()


UNPROCESSABLE: Final = {422}
FOUR_STIMULI: Final = json.dumps({"stimuli": [{"id": str(number), "text": "a"} for number in range(4)]}).encode()
VALUES: Final[dict[str, tuple[bytes, str | None, set[int]]]] = {
    "a stimulus too many": (FOUR_STIMULI, "stimuli", UNPROCESSABLE),
    "no stimuli": (b'{"stimuli":[]}', "stimuli", UNPROCESSABLE),
    "a token too many": (_text("a " * 8), "stimuli[0]", UNPROCESSABLE),
    "no text": (_text("", add_special_tokens=False), "stimuli[0]", UNPROCESSABLE),
    "an id twice": (b'{"stimuli":[{"id":"s","text":"a"},{"id":"s","text":"b"}]}', None, UNPROCESSABLE),
    "a layer before the first": (_capture('{"layers":[-13]}'), "capture.layers", UNPROCESSABLE),
    "a layer after the last": (_capture('{"layers":[12]}'), "capture.layers", UNPROCESSABLE),
    "a layer twice": (_capture('{"layers":[1,1]}'), "capture.layers", UNPROCESSABLE),
    "the same layer from both ends": (_capture('{"layers":[11,-1]}'), "capture.layers", UNPROCESSABLE),
    "no layers": (_capture('{"layers":[]}'), "capture", UNPROCESSABLE),
    "a slice of nothing": (_capture('{"layers":"5:5"}'), "capture.layers", UNPROCESSABLE),
    "a slice with no step": (_capture('{"layers":"0:5:0"}'), "capture.layers", UNPROCESSABLE),
    "a huge layer": (_capture('{"layers":[1e400]}'), "capture.layers[0]", UNPROCESSABLE),
    "a layer of 30 digits": (_capture('{"layers":[%s]}' % ("9" * 30)), "capture.layers", UNPROCESSABLE),
    "a fraction for a layer": (_capture('{"layers":[1.5]}'), "capture.layers[0]", UNPROCESSABLE),
    "a boolean for a layer": (_capture('{"layers":[true]}'), "capture.layers[0]", UNPROCESSABLE),
    "a site twice": (_capture('{"sites":["embed","embed"]}'), "capture.sites", UNPROCESSABLE),
    "an unknown site": (_capture('{"sites":["../../etc/passwd"]}'), "capture.sites", UNPROCESSABLE),
    "a selector twice": (_capture('{"select":["last","last"]}'), "capture.select", UNPROCESSABLE),
    "a position that is not there": (_capture('{"select":[99999999999999999999]}'), "stimuli[0]", UNPROCESSABLE),
    "a span that is not there": (_capture('{"select":[{"span":"none"}]}'), None, UNPROCESSABLE),
    "an unknown field": (_text("a", model="other"), "model", UNPROCESSABLE),
    "an unknown dtype": (_text("a", dtype="int8"), "dtype", UNPROCESSABLE),
    "a negative token": (_tokens("[-1]"), "stimuli[0].token_ids[0]", UNPROCESSABLE),
    "a token beyond the vocabulary": (_tokens("[50000]"), "stimuli[0].token_ids", UNPROCESSABLE),
    "a token beyond 32 bits": (_tokens("[2147483648]"), "stimuli[0].token_ids[0]", UNPROCESSABLE),
    "a token beyond 64 bits": (_tokens("[%s]" % ("9" * 25)), "stimuli[0].token_ids[0]", UNPROCESSABLE),
    "a fraction for a token": (_tokens("[0.5]"), "stimuli[0].token_ids[0]", UNPROCESSABLE),
    "a number that is none for a token": (_tokens("[NaN]"), "stimuli[0].token_ids[0]", {400, 422}),
    "infinity for a token": (_tokens("[Infinity]"), "stimuli[0].token_ids[0]", {400, 422}),
    "a lone surrogate": (b'{"stimuli":[{"id":"s","text":"\\ud800"}]}', None, {400}),
    "a surrogate in UTF-8": (b'{"stimuli":[{"id":"s","text":"\xed\xa0\x80"}]}', None, {400}),
    "a NUL in an id": (b'{"stimuli":[{"id":"\\u0000","text":"a"}]}', "stimuli[0].id", UNPROCESSABLE),
    "an empty id": (b'{"stimuli":[{"id":"","text":"a"}]}', "stimuli[0].id", UNPROCESSABLE),
    "a huge id": (json.dumps({"stimuli": [{"id": "x" * 257, "text": "a"}]}).encode(), "stimuli[0].id", UNPROCESSABLE),
    "a span beyond the text": (b'{"stimuli":[{"id":"s","text":"a","spans":{"x":[0,2]}}]}', "stimuli[0]", UNPROCESSABLE),
    "a span from a negative place": (
        b'{"stimuli":[{"id":"s","text":"a","spans":{"x":[-1,1]}}]}', "stimuli[0].spans.x[0]", UNPROCESSABLE,
    ),
    "two sources": (b'{"stimuli":[{"id":"s","text":"a","token_ids":[1]}]}', "stimuli[0]", UNPROCESSABLE),
    "nothing": (b"null", None, UNPROCESSABLE),
}  # fmt: skip
"""Bodies by name, with the field that the answer must name and the statuses that are right."""


class CountingEngine(BatchedEngine):
    """Counts the captures that were begun."""

    def __init__(self) -> None:
        super().__init__(SyntheticRunner())
        self.n_captures = 0

    async def capture(self, job: Job) -> AsyncGenerator[Block, None]:
        self.n_captures += 1
        async for block in super().capture(job):
            yield block


def answers_beyond_the_limit(world: World) -> Tally:
    verdicts = Verdicts()
    row_bytes = 64 * 4
    for _ in range(world.pick(8, 200)):
        body, n_rows = _random_request(world)
        limit = n_rows * row_bytes
        engine = CountingEngine()
        with running_server(lambda engine=engine: engine, _settings(limit)) as url:  # type: ignore[misc]
            answer = httpx2.post(f"{url}/v1/activations", json=body)
            real = _value_bytes(answer.content)
            told = int(answer.headers.get("X-Expected-Bytes", -1))
            good = answer.status_code == 200 and real == told == limit and engine.n_captures == 1
            verdicts.judge(good, f"{limit} bytes allowed: {answer.status_code}, {told} announced, {real} came")
        with running_server(lambda engine=engine: engine, _settings(limit - 1)) as url:  # type: ignore[misc]
            answer = httpx2.post(f"{url}/v1/activations", json=body)
            found = answer.json()["error"]
            good = (answer.status_code, found["value"], found["limit"], engine.n_captures) == (413, limit, limit - 1, 1)
            verdicts.judge(good, f"{limit - 1} bytes allowed: {answer.status_code}, {found}")
    return verdicts.tally


def _settings(max_response_bytes: int) -> Settings:
    return Settings(engine="synthetic", port=0, max_response_bytes=max_response_bytes)


def _random_request(world: World) -> tuple[dict[str, Any], int]:
    """A request for every token of some texts at some layers, and the number of vectors in its answer."""
    chance = world.random
    texts = [" ".join(chance.choices(["church", "organ", "a", "town"], k=chance.randrange(1, 40))) for _ in range(5)]
    layers = sorted(chance.sample(range(12), chance.randrange(1, 12)))
    stimuli = [{"id": str(index), "text": text} for index, text in enumerate(texts)]
    n_tokens = sum(len(text.split()) + 1 for text in texts)
    capture = {"layers": layers, "select": ["all", "mean"]}
    return {"stimuli": stimuli, "capture": capture}, (n_tokens + len(texts)) * len(layers)


def _value_bytes(content: bytes) -> int:
    table = pa.ipc.open_stream(content).read_all()
    return sum(chunk.flatten().nbytes for column in table.columns[4:] for chunk in column.chunks)


FAULTS: Final = (
    Fault("S9", "bodies beyond the limit, lies and bombs", bodies_beyond_the_limit, small_s=120),
    Fault("S11", "values that cannot be", values_that_cannot_be),
    Fault("S12", "answers beyond the limit, to the byte", answers_beyond_the_limit),
)
