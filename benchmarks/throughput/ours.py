"""Our side: a real server whose answers are collected into a run, and the engine alone in this process."""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from stratoscope import Client
from stratoscope.collection import collect
from stratoscope.local_server import local_server
from stratoscope.stimuli import StimulusTable
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.pretrained.smollm2 import provide_smollm2
from stratoscope_server.engines.protocol import Job, Prompt
from stratoscope_server.engines.torch.engine import load_engine
from stratoscope_server.selection import select_rows
from stratoscope_server.settings import Settings
from throughput.peer import States

MODEL: Final = "smollm2-135m"
SITES: Final = ("resid_post", "attn_out", "mlp_out")


def model_folder() -> Path:
    """Return the checkpoint that every side loads."""
    return provide_smollm2(Settings().cache_dir)


def in_process(dtype: str = "bfloat16") -> BatchedEngine:
    """Load the engine that `serve` would."""
    return load_engine(MODEL, revision=None, dtype=dtype, device="cpu", cache_dir=Settings().cache_dir)


@contextmanager
def served(folder: Path, dtype: str = "bfloat16") -> Iterator[Client]:
    """Serve the model in a process of its own and give a client of it."""
    with local_server(
        ["--engine", "torch", "--model", MODEL, "--dtype", dtype], folder / "server.log", say=lambda _: None
    ) as client:
        yield client


def collected(client: Client, texts: Sequence[str]) -> float:
    """Return the seconds from texts to a committed run: asked, received, verified and stored as Parquet."""
    table = StimulusTable.from_frame(pl.DataFrame({"id": [f"t{i}" for i in range(len(texts))], "text": texts}))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        counts = collect(table, Path(folder) / "run", client, sites=SITES)
        seconds = time.perf_counter() - began
    assert counts.is_complete, counts
    return seconds


def delivered_states(client: Client, texts: Sequence[str]) -> States:
    """Return every column's rows of texts."""
    found = client.activations(texts, sites=SITES)
    layers = range(client.model().n_layers)
    return {f"{site}.{layer}": np.asarray(found[site, layer]) for site in SITES for layer in layers}


@dataclass(frozen=True, slots=True)
class Computed:
    """What the engine alone did.

    Attributes
    ----------
    seconds
        From texts to the last block.
    lengths
        Tokens of each text.
    n_beginnings
        Different beginnings of all texts: the tokens that must be computed if what is shared is computed once.
    """

    seconds: float
    lengths: list[int]
    n_beginnings: int


def computed(engine: BatchedEngine, texts: Sequence[str]) -> Computed:
    """Run texts through the engine and let the blocks go as they come."""
    began = time.perf_counter()
    prompts = tuple(_prompt(engine, f"t{index}", text) for index, text in enumerate(texts))
    job = Job("bench", prompts, engine.card.columns(list(SITES)), "bfloat16")
    n_rows = asyncio.run(_drain(engine, job))
    seconds = time.perf_counter() - began
    assert n_rows == len(texts), n_rows
    ids = [tuple(prompt.token_ids.tolist()) for prompt in prompts]
    beginnings = {text[:end] for text in ids for end in range(1, len(text) + 1)}
    return Computed(seconds, [len(text) for text in ids], len(beginnings))


async def _drain(engine: BatchedEngine, job: Job) -> int:
    n_rows = 0
    async with aclosing(engine.capture(job)) as blocks:
        async for block in blocks:
            n_rows += len(block.stimulus_id)
    return n_rows


def _prompt(engine: BatchedEngine, name: str, text: str) -> Prompt:
    encoded = engine.tokenizer.encode(text, add_special_tokens=True)
    return Prompt(name, encoded.token_ids, select_rows(["last"], len(encoded.token_ids), {}, encoded.offsets))
