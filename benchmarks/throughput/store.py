"""The store against the disk: a plain write, and a plain memory-mapped read and widening of one layer."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stratoscope.rows import FloatArray
from stratoscope.store.check import check_shard
from stratoscope.store.content import Content
from stratoscope.store.run import Run
from stratoscope.store.shard import file_sha256, shard_content, write_shard
from stratoscope.store.writer import RunWriter
from throughput.figure import Figure
from throughput.made import Batches, Made

SHARD_BYTES = 64 << 20
READS = 40
"""Rounds of reading: a layer takes milliseconds, and a virtual machine's cores are now and then one for a while."""


class Took(NamedTuple):
    """Seconds of the clock, and of all processors."""

    wall: float
    cpu: float


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
        return [
            *_writing(place, made, shards, rounds, sizes),
            *_reading(place, made, shards, max(rounds, READS), sizes),
        ]


def _writing(place: Path, made: Made, shards: Sequence[Batches], rounds: int, sizes: dict[str, float]) -> list[Figure]:
    raw = [bytes(memoryview(_floats(batches, made)).cast("B")) for batches in shards]
    contents = [shard_content(batches, made.measurement) for batches in shards]
    works: dict[str, Callable[[], Any]] = {
        "plain/write and fsync": lambda: _plain_write(place / "plain", raw),
        "stratoscope/write": lambda: _write_run(place / "run", made, shards),
        "stratoscope/write, two runs at once": lambda: _write_two(place, made, shards),
        "stratoscope/encode": lambda: _each(write_shard, contents, place),
        "stratoscope/read back": lambda: _each(check_shard, contents, place),
        "stratoscope/hash": lambda: [file_sha256(place / f"{i}.parquet") for i in range(len(contents))],
    }
    times = {"stratoscope/write, two runs at once": 2}
    return [
        figure
        for name, took in _interleaved(works, rounds).items()
        for figure in _rates("write", name, took, _times(sizes, times.get(name, 1)), "plain/write and fsync")
    ]


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
        figure
        for state, seconds in (("page cache warm", warm), ("page cache cold", cold))
        for name, took in seconds.items()
        for figure in _rates("read", f"{name}, {state}", took, size, f"mmap and widen/read a layer, {state}")
    ]


def _interleaved(
    works: dict[str, Callable[[], Any]], rounds: int, before: Callable[[], None] | None = None
) -> dict[str, list[Took]]:
    """Time every piece of work once in each round, after one round that does not count."""
    seconds: dict[str, list[Took]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            if before is not None:
                before()
            wall, cpu = time.perf_counter(), time.process_time()
            result = work()
            took = Took(time.perf_counter() - wall, time.process_time() - cpu)
            del result
            if number:
                seconds[name].append(took)
    return seconds


def _times(sizes: dict[str, float], times: int) -> dict[str, float]:
    return {**sizes, "n_bytes": times * sizes["n_bytes"]}


def _rates(stage: str, name: str, took: Sequence[Took], sizes: dict[str, float], limit: str) -> list[Figure]:
    """Give bytes of float32 by time, and by time of one processor: on a busy machine, that is the one to trust."""
    subject, what = name.split("/", 1)
    ours = subject == "stratoscope"
    stage = stage if ours else "limit"
    wall = tuple(sizes["n_bytes"] / 1e6 / one.wall for one in took)
    cpu = tuple(sizes["n_bytes"] / 1e6 / one.cpu for one in took)
    return [
        Figure(stage, subject, what, "MB/s", wall, sizes, limit if ours else ""),
        Figure(
            stage, subject, f"{what}, by processor time", "MB/s and core", cpu, sizes,
            f"{limit}, by processor time" if ours else "",
        ),
    ]  # fmt: skip


def _each(work: Callable[[Content, Path], None], contents: Sequence[Content], place: Path) -> None:
    for index, content in enumerate(contents):
        work(content, place / f"{index}.parquet")


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
