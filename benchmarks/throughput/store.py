"""The store against the disk: a plain write, and a plain memory-mapped read and widening of one layer."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stratoscope.rows import FloatArray
from stratoscope.store.run import Run
from stratoscope.store.shard import check_shard, file_sha256, shard_table, write_shard
from stratoscope.store.writer import RunWriter
from throughput.figure import Figure
from throughput.made import Batches, Made

SHARD_BYTES = 64 << 20


def measure(
    *,
    n_stimuli: int = 128,
    d_model: int = 1024,
    n_layers: int = 6,
    rounds: int = 3,
    folder: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Figure]:
    """Measure writing and reading; the issue's size is 1024 stimuli, 8192 dimensions, 6 layers.

    Parameters
    ----------
    folder
        On the disk to be measured; by default that of temporary files.
    """
    made = Made(n_stimuli, n_layers, d_model)
    sizes: dict[str, float] = {"n_stimuli": n_stimuli, "d_model": d_model, "n_layers": n_layers,
                               "n_bytes": made.float_bytes}  # fmt: skip
    shards = list(made.shards(max(1, shard_bytes // (4 * n_layers * d_model))))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        return [*_writing(place, made, shards, rounds, sizes), *_reading(place, made, shards, rounds, sizes)]


def _writing(place: Path, made: Made, shards: Sequence[Batches], rounds: int, sizes: dict[str, float]) -> list[Figure]:
    raw = [bytes(memoryview(_floats(batches, made)).cast("B")) for batches in shards]
    tables = [shard_table(batches, made.measurement) for batches in shards]
    works: dict[str, Callable[[], Any]] = {
        "plain/write and fsync": lambda: _plain_write(place / "plain", raw),
        "stratoscope/write": lambda: _write_run(place / "run", made, shards),
        "stratoscope/write, two runs at once": lambda: _write_two(place, made, shards),
        "stratoscope/encode": lambda: _each(write_shard, tables, place),
        "stratoscope/read back": lambda: _each(check_shard, tables, place),
        "stratoscope/hash": lambda: [file_sha256(place / f"{i}.parquet") for i in range(len(tables))],
        "stratoscope/widen": lambda: [shard_table(batches, made.measurement) for batches in shards],
    }
    seconds = _interleaved(works, rounds)
    times = {"stratoscope/write, two runs at once": 2}
    return [
        _rate("write" if subject == "stratoscope" else "limit", subject, what, seconds[name], sizes, times.get(name, 1),
              "" if subject == "plain" else "plain/write and fsync")
        for name in works
        for subject, what in [name.split("/", 1)]
    ]  # fmt: skip


def _reading(place: Path, made: Made, shards: Sequence[Batches], rounds: int, sizes: dict[str, float]) -> list[Figure]:
    run_dir, raw = place / "read", place / "layer"
    _write_run(run_dir, made, shards)
    layer = made.n_layers // 2
    np.concatenate([_bits(batches, layer, made) for batches in shards]).tofile(raw)
    columns = Run.open(run_dir).activations()
    expected = _plain_layer(raw, made)
    np.testing.assert_array_equal(columns["resid_post", layer], expected)
    works: dict[str, Callable[[], Any]] = {
        "mmap and widen/read a layer": lambda: _plain_layer(raw, made),
        "stratoscope/read a layer": lambda: columns["resid_post", layer],
    }
    warm = _interleaved(works, rounds)
    files = [raw, *sorted((run_dir / "shards").iterdir())]
    cold = _interleaved(works, rounds, before=lambda: _drop(files))
    size = {**sizes, "n_bytes": 4.0 * made.n_stimuli * made.d_model}
    return [
        _rate("read" if subject == "stratoscope" else "limit", subject, f"{what}, {state}", seconds[name], size, 1,
              "" if subject != "stratoscope" else f"mmap and widen/{what}, {state}")
        for state, seconds in (("page cache warm", warm), ("page cache cold", cold))
        for name in works
        for subject, what in [name.rsplit("/", 1)]
    ]  # fmt: skip


def _interleaved(
    works: dict[str, Callable[[], Any]], rounds: int, before: Callable[[], None] | None = None
) -> dict[str, list[float]]:
    """Time every piece of work once in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            if before is not None:
                before()
            began = time.perf_counter()
            result = work()
            took = time.perf_counter() - began
            del result
            if number:
                seconds[name].append(took)
    return seconds


def _rate(
    stage: str, subject: str, what: str, seconds: Sequence[float], sizes: dict[str, float], times: int, limit: str
) -> Figure:
    values = tuple(times * sizes["n_bytes"] / 1e6 / one for one in seconds)
    return Figure(
        stage, subject, what, "MB/s of float32", values, {**sizes, "n_bytes": times * sizes["n_bytes"]}, limit
    )


def _each(work: Callable[[pa.Table, Path], None], tables: Sequence[pa.Table], place: Path) -> None:
    for index, table in enumerate(tables):
        work(table, place / f"{index}.parquet")


def _plain_write(path: Path, pieces: Sequence[bytes]) -> None:
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _write_run(run_dir: Path, made: Made, shards: Sequence[Batches]) -> None:
    shutil.rmtree(run_dir, ignore_errors=True)
    with RunWriter(run_dir, made.measurement) as writer:
        writer.enter(made.table)
        for batches in shards:
            writer.commit(batches)


def _write_two(place: Path, made: Made, shards: Sequence[Batches]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: _write_run(place / name, made, shards), ("one", "two")))


def _plain_layer(path: Path, made: Made) -> FloatArray:
    bits = np.memmap(path, np.uint16, "r", shape=(made.n_stimuli, made.d_model))
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bits(batches: Batches, layer: int, made: Made) -> Any:
    name = made.measurement.columns[layer].name
    return np.concatenate([batch.column(name).values.to_numpy() for batch, _ in batches])


def _floats(batches: Batches, made: Made) -> Any:
    widened = [_bits(batches, layer, made).astype(np.uint32) << np.uint32(16) for layer in range(made.n_layers)]
    return np.concatenate(widened)


def _drop(files: Sequence[Path]) -> None:
    """Take files out of the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
