"""The stream beside the bare socket: encoding, sending, receiving with verification and storing, in the same rounds."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xxhash

from stratoscope.captures import to_json
from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.stimuli import StimulusTable
from stratoscope_server.engines.synthetic import activations
from stratoscope_wire import PROTOCOL_VERSION, ActivationsRequest, Block, Capture, ModelCard, Stimulus, StreamEncoder
from stratoscope_wire.request import Dtype
from stratoscope_wire.schema import StreamHeader
from throughput.figure import Figure
from throughput.loopback import drain_request, socket_rate
from throughput.resident import forget_peak, peak_resident_bytes, resident_bytes
from throughput.serving import Server, remembered

GB = 1e9
SELECT = "all"
PIECE_BYTES = 2 << 20
COPIED_BYTES = 64 << 20
"""More than the caches hold."""


@dataclass(frozen=True, slots=True)
class Work:
    """Texts of one length, read at every position after every layer."""

    card: ModelCard
    n_texts: int
    n_tokens: int

    @property
    def text(self) -> str:
        """As many tokens as wanted, the start token counted."""
        return " ".join(f"w{number}" for number in range(self.n_tokens - 1))

    @property
    def n_bytes(self) -> int:
        """Activations in all, as float32."""
        return self.n_texts * self.n_tokens * self.card.n_layers * self.card.d_model * 4

    @property
    def sizes(self) -> dict[str, float]:
        """For the figures."""
        return {
            "n_stimuli": self.n_texts,
            "n_tokens": self.n_texts * self.n_tokens,
            "n_layers": self.card.n_layers,
            "n_columns": self.card.n_layers,
            "d_model": self.card.d_model,
            "n_bytes": self.n_bytes,
        }

    def request(self, numbers: Iterable[int], dtype: Dtype = "float32") -> ActivationsRequest:
        """Ask for some of it at once."""
        stimuli = [Stimulus(id=f"s{number}", text=self.text) for number in numbers]
        return ActivationsRequest(stimuli=stimuli, capture=Capture(sites=["resid_post"], select=[SELECT]), dtype=dtype)


def measure(*, n_texts: int = 8, n_tokens: int = 512, rounds: int = 3, memory_factor: int = 4) -> list[Figure]:
    """Measure every stage of the stream beside the limits, interleaved, and the memory of both sides.

    Parameters
    ----------
    n_texts, n_tokens
        Of one answer; 8 texts of 512 tokens are 537 MB.
    memory_factor
        So many answers are streamed one after another for the figures of memory.
    """
    with remembered() as server, Client(server.url) as client:
        work = Work(client.model(), n_texts, n_tokens)
        stages = _stages(work, server, client)
        for stage in stages.values():
            stage()
        rates: dict[str, list[float]] = {name: [] for name in stages}
        for _ in range(rounds):
            for name, stage in stages.items():
                rates[name].append(stage())
        return [*_figures(work, rates), *_memory(work, server, client, memory_factor)]


def _stages(work: Work, server: Server, client: Client) -> dict[str, Callable[[], float]]:
    block = _block(work)
    piece = np.ones(PIECE_BYTES // 4, np.float32)
    source, target = (np.ones(COPIED_BYTES, np.uint8) for _ in range(2))
    body = to_json(work.request(range(work.n_texts)))
    return {
        "socket": lambda: socket_rate(work.n_bytes),
        "copy": lambda: _repeat(work.n_bytes, COPIED_BYTES, lambda: np.copyto(target, source)),
        "checksum": lambda: _repeat(work.n_bytes, PIECE_BYTES, lambda: xxhash.xxh3_64(piece.data)),
        "encode": lambda: _encode(work, block),
        "serve": lambda: drain_request(server.url, body, work.n_bytes),
        "receive": lambda: _receive(work, client, "float32"),
        "receive bfloat16": lambda: _receive(work, client, "bfloat16"),
        "collect": lambda: _collect(work, client),
    }


def _figures(work: Work, rates: dict[str, list[float]]) -> Iterator[Figure]:
    socket, copy = "loopback socket/bytes received", "memory copy/bytes copied"
    rows = {
        "socket": ("limit", "loopback socket", "bytes received", ""),
        "copy": ("limit", "memory copy", "bytes copied", ""),
        "checksum": ("wire", "stratoscope", "bytes checksummed", copy),
        "encode": ("wire", "stratoscope", "bytes encoded", socket),
        "serve": ("wire", "stratoscope", "bytes served to a reader that discards them", socket),
        "receive": ("receive", "stratoscope", "bytes received, decoded and verified", socket),
        "receive bfloat16": ("receive", "stratoscope", "bytes received, decoded and verified, as bfloat16", socket),
        "collect": ("write", "stratoscope", "bytes collected into Parquet", socket),
    }
    for name, values in rates.items():
        stage, subject, measure, limit = rows[name]
        yield Figure(stage, subject, measure, "GB/s", tuple(rate / GB for rate in values), work.sizes, limit)


def _block(work: Work) -> Block:
    ids = np.arange(1, work.n_tokens + 1, dtype=np.int32)
    values = [activations(ids, column) for column in work.card.columns(["resid_post"], "all")]
    positions = np.arange(work.n_tokens, dtype=np.int32)
    return Block(["s0"] * work.n_tokens, [SELECT] * work.n_tokens, positions, ids, values)


def _encode(work: Work, block: Block) -> float:
    began = time.perf_counter()
    columns = work.card.columns(["resid_post"], "all")
    for number in range(work.n_texts):
        n_bytes = work.n_bytes // work.n_texts
        header = StreamHeader(
            protocol=PROTOCOL_VERSION,
            fingerprint=work.card.fingerprint,
            request_id=f"r{number}",
            dtype="float32",
            stimuli=1,
            rows=work.n_tokens,
            bytes=n_bytes,
        )
        encoder = StreamEncoder(columns, header)
        n_encoded = sum(map(len, encoder.start()))
        n_encoded += sum(len(piece) for pieces in encoder.encode(block) for piece in pieces)
        encoder.finish()
        if n_encoded < n_bytes:
            raise RuntimeError(f"{n_encoded} bytes were encoded where {n_bytes} are due at least")
    return work.n_bytes / (time.perf_counter() - began)


def _receive(work: Work, client: Client, dtype: Dtype) -> float:
    """Fetch one text an answer, as a collection does with texts of this size, and let go of it."""
    n_rows = 0
    began = time.perf_counter()
    for number in range(work.n_texts):
        n_rows += sum(batch.num_rows for batch in client.fetch(work.request([number], dtype)))
    seconds = time.perf_counter() - began
    if n_rows != work.n_texts * work.n_tokens:
        raise RuntimeError(f"{n_rows} rows came instead of {work.n_texts * work.n_tokens}")
    return work.n_bytes * (1.0 if dtype == "float32" else 0.5) / seconds


def _collect(work: Work, client: Client) -> float:
    ids = [f"s{number}" for number in range(work.n_texts)]
    table = StimulusTable.from_frame(pl.DataFrame({"id": ids, "text": [work.text] * work.n_texts}))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        counts = collect(table, Path(folder) / "run", client, sites=["resid_post"], select=[SELECT])
        seconds = time.perf_counter() - began
    if not counts.is_complete:
        raise RuntimeError(f"{counts.committed} of {counts.total} texts were collected")
    return work.n_bytes / seconds


def _memory(work: Work, server: Server, client: Client, n_answers: int) -> Iterator[Figure]:
    """Stream answers one after another, each let go of before the next."""
    pids = {"server": server.pid, "client": os.getpid()}
    for pid in pids.values():
        forget_peak(pid)
    held: dict[str, list[int]] = {side: [] for side in pids}
    for _ in range(n_answers):
        _receive(work, client, "float32")
        for side, pid in pids.items():
            held[side].append(resident_bytes(pid))
    sizes = {**work.sizes, "n_bytes": work.n_bytes * n_answers}
    for side, pid in pids.items():
        values = (held[side][n_answers // 4] / GB, held[side][-1] / GB)
        yield Figure("memory", f"stratoscope {side}", "resident at a quarter and at the end", "GB", values, sizes)
        peak = (peak_resident_bytes(pid) / GB,)
        yield Figure("memory", f"stratoscope {side}", "peak resident while streaming", "GB", peak, sizes)


def _repeat(n_bytes: int, step: int, run: Callable[[], Any]) -> float:
    n_steps = max(1, n_bytes // step)
    began = time.perf_counter()
    for _ in range(n_steps):
        run()
    return n_steps * step / (time.perf_counter() - began)
