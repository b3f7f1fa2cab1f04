"""Memory of server and client during a job whose data are ten times what may be held, and of one layer's probe."""

import json
import sys
import tempfile
import time
from pathlib import Path

from stratoscope.store.writer import RunWriter
from throughput.figure import Figure
from throughput.made import Made
from throughput.processes import Watch, run_watched, served

MIB = 1 << 20
FIXED_MIB = 32
"""Threads, connections, the compressor and what an allocator keeps."""
TOKENS = 400
TOKEN_BYTES = 36 * 64 * 4
"""Three sites of the synthetic model's twelve layers, as float32."""

COLLECT = """
import sys
from stratoscope import Client
from stratoscope.collection import CollectSettings, collect
from stratoscope.stimuli import load_stimuli
table, out, url, request_bytes, shard_bytes, concurrency = sys.argv[1:]
with Client(url) as client:
    collect(load_stimuli(table), out, client, sites=["resid_post", "attn_out", "mlp_out"], select=["all"],
            concurrency=int(concurrency),
            settings=CollectSettings(request_bytes=int(request_bytes), shard_bytes=int(shard_bytes)))
"""

PROBE = """
import sys
import numpy as np
from stratoscope import Run
from stratoscope.probes import sweep
column = Run.open(sys.argv[1]).activations()["resid_post", 1]
y = np.arange(len(column)) // 2 % 2
sweep({("resid_post", 1): column}, y, groups=np.arange(len(column)) // 2, probe="ridge_classifier", alpha=1.0,
      controls=(), say=lambda _: None)
"""


def measure(*, request_mib: int = 1, shard_mib: int = 2, concurrency: int = 2, times: int = 10) -> list[Figure]:
    """Collect `times` the client's bound, at these sizes; then fit one layer of a run.

    The product's sizes are 32 and 64 MiB, two requests in flight.
    """
    bound = client_bound_mib(request_mib, shard_mib, concurrency)
    n_texts = max(4, int(times * bound * MIB / (TOKENS * TOKEN_BYTES)))
    sizes: dict[str, float] = {"n_stimuli": n_texts, "n_tokens": TOKENS, "n_bytes": n_texts * TOKENS * TOKEN_BYTES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = _texts(folder / "small.jsonl", 1), _texts(folder / "large.jsonl", n_texts)
        with served(folder, "--engine", "synthetic") as (url, pid):
            order = (url, str(request_mib * MIB), str(shard_mib * MIB), str(concurrency))

            def collect(table: Path, run: str) -> Watch:
                return run_watched([sys.executable, "-c", COLLECT, str(table), str(folder / run), *order])

            idle_client = collect(small, "idle")
            with Watch(pid) as idle_server:
                time.sleep(0.5)
            with Watch(pid) as server:
                client = collect(large, "run")
    figures = [
        *_figures("client", client, idle_client.peak, bound, sizes),
        *_figures("server", server, idle_server.peak, None, sizes),
    ]
    return [*figures, *_probe()]


def client_bound_mib(request_mib: float, shard_mib: float, concurrency: int) -> float:
    """What a collection may hold beyond an idle client; see docs/scale.md."""
    held = shard_mib + request_mib
    return 2 * concurrency * request_mib + 4 * held + FIXED_MIB


def _figures(subject: str, watch: Watch, idle: float, bound: float | None, sizes: dict[str, float]) -> list[Figure]:
    found = {
        "idle": idle, "at a quarter": watch.at(0.25), "at half": watch.at(0.5), "at the end": watch.at(0.95),
        "peak": watch.peak, "peak beyond idle": watch.peak - idle,
    }  # fmt: skip
    limit = "limit/bound beyond idle" if bound is not None else ""
    figures = [
        Figure("memory", subject, f"{subject} {what}", "MiB", (value,), sizes, limit if "beyond" in what else "")
        for what, value in found.items()
    ]
    if bound is not None:
        figures.append(Figure("memory", "limit", "bound beyond idle", "MiB", (bound,), sizes))
    return figures


def _probe(n_stimuli: int = 1000, d_model: int = 1024, n_layers: int = 10) -> list[Figure]:
    made = Made(n_stimuli, n_layers, d_model)
    small = Made(20, n_layers, 16)
    sizes: dict[str, float] = {"n_stimuli": n_stimuli, "d_model": d_model, "n_bytes": made.float_bytes}
    with tempfile.TemporaryDirectory() as name:
        peaks = []
        for which, run in (("small", small), ("large", made)):
            folder = Path(name) / which
            with RunWriter(folder, run.measurement) as writer:
                writer.enter(run.table)
                for batches in run.shards(max(1, 8 * MIB // (4 * n_layers * run.d_model))):
                    writer.commit(batches)
            peaks.append(run_watched([sys.executable, "-c", PROBE, str(folder)]).peak)
    column = n_stimuli * d_model * 4 / MIB
    return [
        Figure("memory", "probe", "peak of one layer's fit beyond idle", "MiB", (peaks[1] - peaks[0],), sizes),
        Figure("memory", "limit", "one column as float32", "MiB", (column,), sizes),
    ]


def _texts(path: Path, n: int) -> Path:
    lines = (
        json.dumps({"id": f"s{index}", "text": " ".join(f"w{index}x{word}" for word in range(TOKENS - 1))})
        for index in range(n)
    )
    path.write_text("\n".join(lines) + "\n")
    return path
