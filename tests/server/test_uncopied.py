"""Answers whose parts go to the socket from where they lie, to readers who take their time."""

import json
import socket
import time
from collections.abc import AsyncGenerator

import pyarrow as pa
import pyarrow.compute as pc

from stratoscope_server.engines import synthetic
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Job
from stratoscope_wire import ActivationsRequest, Block, Expected, StreamDecoder
from tests.conftest import StartServer

SOCKET_BYTES = 16 << 10
TEXTS = [f"{number} " + "word " * 400 for number in range(3)]
REQUEST = {
    "stimuli": [{"id": f"s{number}", "text": text} for number, text in enumerate(TEXTS)],
    "capture": {"sites": ["resid_post", "attn_out"], "layers": "all", "select": ["all"]},
}


class ReusingEngine(BatchedEngine):
    """Uses the memory of a block again as soon as it is asked for the next one, as a ring does."""

    n_reused = 0

    async def capture(self, job: Job) -> AsyncGenerator[Block, None]:
        async for block in super().capture(job):
            yield block
            for values in block.values:
                values[...] = 7.0
                self.n_reused += 1


def slowly_read(url: str) -> bytes:
    """Read an answer with a small window and pauses; return its body."""
    host, _, port = url.removeprefix("http://").partition(":")
    sent = json.dumps(REQUEST).encode()
    head = f"POST /v1/activations HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(sent)}\r\n\r\n"
    data = b""
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        reader.connect((host, int(port)))
        reader.sendall(head.encode() + sent)
        while came := reader.recv(300_000):
            data += came
            time.sleep(0.001)
    return dechunked(data.partition(b"\r\n\r\n")[2])


def dechunked(data: bytes) -> bytes:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        n_bytes = int(size, 16)
        if not n_bytes:
            return body
        body, data = body + data[:n_bytes], data[n_bytes + 2 :]


def test_a_slow_reader_gets_every_value_though_the_engine_uses_its_memory_again(start_server: StartServer) -> None:
    engine = ReusingEngine(synthetic.SyntheticRunner(), max_batch_tokens=1)
    with start_server(lambda: engine) as url:
        data = slowly_read(url)
    assert len(data) > 100 * SOCKET_BYTES, "more than the sockets hold"
    assert engine.n_reused == 24 * len(TEXTS)
    request = ActivationsRequest.model_validate(REQUEST)
    columns = engine.card.columns(request.capture.sites, request.capture.layers)
    table = pa.Table.from_batches(list(StreamDecoder(data, Expected.of(request, columns, engine.card.fingerprint))))
    ids = synthetic.SyntheticTokenizer().encode(TEXTS[1], add_special_tokens=True).token_ids
    rows = table.filter(pc.equal(table.column("stimulus_id"), "s1")).column("resid_post.5").combine_chunks()
    truth = synthetic.activations(ids, engine.card.columns(["resid_post"], [5])[0])
    assert rows.flatten().to_numpy().tobytes() == truth.tobytes()
