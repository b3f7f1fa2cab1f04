"""The clients: the real one for ours, vllm-lens's way for the baseline. Both run in the process that measures."""

import asyncio
import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zstandard

from stratoscope import Client
from stratoscope.captures import make_capture
from stratoscope.fetchers import Fetchers
from stratoscope.servers import as_sources
from stratoscope_wire import ActivationsRequest, Stimulus
from stratoscope_wire.dtypes import to_float32
from stratoscope_wire.request import Dtype

Bits = npt.NDArray[Any]


def requests(
    texts: Sequence[str], sites: Sequence[str], select: str, dtype: Dtype, stimuli_per_request: int
) -> list[ActivationsRequest]:
    """Split texts, named t0, t1 ..., into requests."""
    capture = make_capture(sites, "all", [select])
    stimuli = [Stimulus(id=f"t{index}", text=text) for index, text in enumerate(texts)]
    return [
        ActivationsRequest(stimuli=stimuli[start : start + stimuli_per_request], capture=capture, dtype=dtype)
        for start in range(0, len(stimuli), stimuli_per_request)
    ]


def deliver(client: Client, wanted: Sequence[ActivationsRequest], concurrency: int) -> dict[str, float]:
    """Fetch requests as `stratoscope.collect` does, on threads; every answer is decoded and verified."""
    n_bytes = n_stimuli = 0
    began = time.perf_counter()
    with Fetchers(as_sources([client], max_failures=1), wanted, concurrency) as fetchers:
        for fetched in fetchers:
            if fetched is None:
                continue
            assert fetched.error is None, fetched.error
            assert fetched.n_calls == 1, "a request was repeated"
            n_stimuli += len(fetched.request.stimuli)
            n_bytes += sum(batch.nbytes for batch in fetched.batches)
    seconds = time.perf_counter() - began
    assert n_stimuli == sum(len(request.stimuli) for request in wanted)
    return {"seconds": seconds, "bytes": n_bytes}


def states_of(batches: Sequence[pa.RecordBatch], dtype: Dtype) -> dict[str, Bits]:
    """Return one stimulus's float32 rows by column."""
    table = pa.Table.from_batches(batches).combine_chunks()
    names = table.schema.names[4:]
    return {name: to_float32(_rows(table.column(name).chunk(0)), dtype) for name in names}


def _rows(array: pa.Array) -> Bits:
    values: Bits = array.values.to_numpy()
    return values.reshape(len(array), -1)


async def deliver_lens(
    base_url: str, texts: Sequence[str], run: str, *, compress: bool, concurrency: int
) -> dict[str, Any]:
    """Ask the baseline for each text on its own, so many at once, and decode every answer."""
    n_bytes = n_tokens = 0
    last: Mapping[str, Bits] = {}
    limits = httpx2.Limits(max_connections=concurrency)
    began = time.perf_counter()
    async with httpx2.AsyncClient(base_url=base_url, timeout=600, limits=limits, trust_env=False) as client:

        async def ask(index: int) -> None:
            nonlocal n_bytes, n_tokens, last
            order = {"prompt": texts[index], "id": f"{run}x{index}", "compress": compress}
            answer = (await client.post("/v1/completions", json=order)).raise_for_status().json()
            tensor = decode_tensor(answer["activations"]["residual_stream"])
            n_bytes += tensor.nbytes
            n_tokens += tensor.shape[1]
            last = dict(zip(answer["columns"], tensor, strict=True))

        await asyncio.gather(*(ask(index) for index in range(len(texts))))
    return {"seconds": time.perf_counter() - began, "bytes": n_bytes, "tokens": n_tokens, "last": last}


def decode_tensor(entry: Mapping[str, Any]) -> Bits:
    """Return the array of an entry, of shape (n_columns, n_tokens, d_model), as vllm-lens's client makes it."""
    raw = base64.b64decode(entry["data"])
    if entry["compression"] == "zstd":
        raw = zstandard.ZstdDecompressor().decompress(raw)
    array: Bits = np.frombuffer(raw, np.dtype(entry["dtype"])).reshape(entry["shape"]).copy()
    return array


def lens_states(found: Mapping[str, Bits]) -> Iterator[tuple[str, Bits]]:
    """Yield the float32 rows of each column of the baseline."""
    for name, bits in found.items():
        yield name, to_float32(bits.view(np.uint16), "bfloat16") if bits.dtype == np.int16 else bits
