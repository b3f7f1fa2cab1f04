"""Shards: immutable Parquet files of rows, readable by polars, pandas and DuckDB without any code of ours."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stratoscope.errors import ShardDamagedError, StorageError
from stratoscope.rows import FloatArray
from stratoscope.store.columns import write_columns
from stratoscope.store.content import ColumnRows, Content
from stratoscope.store.footer import footer, pages_end
from stratoscope.store.ledger import Placement
from stratoscope.store.measurement import Measurement
from stratoscope.store.objects import ObjectPath, RunPath
from stratoscope_wire import Column
from stratoscope_wire.request import Dtype
from stratoscope_wire.schema import KEY_FIELDS, response_schema

FOLDER: Final = "shards"
SUFFIX: Final = ".parquet"
NAME_DIGITS: Final = 24
KEY_NAMES: Final = tuple(field.name for field in KEY_FIELDS)
FINGERPRINT_KEY: Final = "stratoscope.fingerprint"
CAPTURE_KEY: Final = "stratoscope.capture"
CONTENTS_KEY: Final = "stratoscope.contents"


def shard_schema(measurement: Measurement) -> pa.Schema:
    """Return the schema of a run's shards: four key columns, then one fixed-size list of float32 per column."""
    facts = {
        FINGERPRINT_KEY: measurement.card.fingerprint,
        "stratoscope.model": measurement.card.model,
        "stratoscope.revision": measurement.card.revision,
        CAPTURE_KEY: measurement.capture_json(),
    }
    return response_schema(measurement.columns, "float32").with_metadata(facts)


def shard_content(batches: Sequence[tuple[pa.RecordBatch, Dtype]], measurement: Measurement) -> Content:
    """Bring verified batches into the form of a shard; only the keys are copied."""
    keys = [pa.concat_arrays([batch.column(name) for batch, _ in batches]) for name in KEY_NAMES]
    names = [column.name for column in measurement.columns]
    columns = {name: ColumnRows.of([(batch.column(name), dtype) for batch, dtype in batches]) for name in names}
    return Content(shard_schema(measurement), pa.Table.from_arrays(keys, schema=pa.schema(KEY_FIELDS)), columns)


def same_fields(found: pa.Schema, expected: pa.Schema) -> bool:
    """Tell whether two schemas have the same fields, with the same metadata."""
    # Parquet names the items of a list differently, so the fields' metadata is compared by itself.
    return bool(found.equals(expected)) and [f.metadata for f in found] == [f.metadata for f in expected]


def placements(keys: pa.Table) -> list[Placement]:
    """Say where each stimulus lies in a shard; its rows are adjacent."""
    row0 = 0
    found = []
    for stimulus_id, rows in groupby(keys.column("stimulus_id").to_pylist()):
        n_rows = sum(1 for _ in rows)
        found.append(Placement(stimulus_id, row0, n_rows))
        row0 += n_rows
    return found


def contents_digest(contents: Iterable[tuple[str, str]]) -> str:
    """Return one SHA-256 over the ids and content hashes of a shard's stimuli, in the order of their rows."""
    return hashlib.sha256(json.dumps(list(contents), ensure_ascii=True).encode()).hexdigest()


def with_contents(content: Content, contents: Iterable[tuple[str, str]]) -> Content:
    """Say in a shard's metadata what was measured, so that it can prove it without a ledger."""
    facts = {**(content.schema.metadata or {}), CONTENTS_KEY: contents_digest(contents)}
    return replace(content, schema=content.schema.with_metadata(facts))


def write_shard(content: Content, path: Path) -> None:
    """Write a shard: one row group, byte planes split and compressed, every page with a checksum."""
    keys = _key_file(content.keys)
    with path.open("wb") as file:
        file.write(keys[: pages_end(keys)])
        chunks = write_columns(file, content.columns)
        file.write(footer(content.schema, content.keys.num_rows, keys, chunks))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_keys(path: RunPath, fingerprint: str) -> pa.Table:
    """Read the key columns of a shard.

    Raises
    ------
    ShardDamagedError
        If it cannot be read or holds another model's rows.
    """
    table = _read(path, KEY_NAMES)
    found = (table.schema.metadata or {}).get(FINGERPRINT_KEY.encode(), b"").decode()
    if found != fingerprint:
        raise ShardDamagedError(
            f"shard {path.name} holds rows of the model {found!r}, the run those of {fingerprint!r}"
        )
    return table.select(KEY_NAMES).cast(pa.schema(KEY_FIELDS))


def read_column(path: RunPath, column: Column) -> FloatArray:
    """Read one column of activations of a shard with Arrow's reader, as an array of shape (n_rows, width).

    Raises
    ------
    ShardDamagedError
        If the shard cannot be read.
    """
    rows = _read(path, [column.name]).column(0)
    kind = rows.type
    fits = pa.types.is_fixed_size_list(kind) and kind.list_size == column.width and kind.value_type == pa.float32()
    if not fits or rows.null_count:
        raise ShardDamagedError(f"column {column.name} of shard {path} is {kind}, not {column.width} float32 wide")
    values = rows.combine_chunks().flatten()
    if values.null_count or len(values) != len(rows) * column.width:
        raise ShardDamagedError(f"column {column.name} of shard {path} holds nulls")
    return np.asarray(np.from_dlpack(values), np.float32).reshape(-1, column.width)


def _read(path: RunPath, names: Sequence[str]) -> pa.Table:
    with opened(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
        table = file.read(columns=list(names))
    if table.schema.names != list(names):
        raise ShardDamagedError(f"shard {path} has the columns {table.schema.names}; expected were {list(names)}")
    return table


@contextmanager
def opened(path: RunPath) -> Iterator[pa.NativeFile]:
    """Open a shard; raises as `shard_faults`."""
    with shard_faults(path), pa.OSFile(str(path)) if isinstance(path, Path) else path.open() as file:
        yield file


@contextmanager
def shard_faults(path: RunPath) -> Iterator[None]:
    """Say of which shard a fault is.

    Raises
    ------
    StorageError
        If an object cannot be opened, or its store fails while it is read.
    ShardDamagedError
        If a file cannot be opened or read, or is no Parquet.
    """
    try:
        yield
    except OSError as error:
        # Arrow gives one class for a store that is not reached and for a damaged page.
        if isinstance(path, ObjectPath):
            raise StorageError(f"shard {path} cannot be read: {error}", errno=error.errno) from error
        raise ShardDamagedError(f"shard {path} cannot be read: {error}") from error
    except pa.ArrowException as error:
        raise ShardDamagedError(f"shard {path} cannot be read: {error}") from error


def _key_file(keys: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(
        keys,
        sink,
        row_group_size=keys.num_rows,
        use_dictionary=False,
        write_statistics=False,
        compression="zstd",
        compression_level=1,
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue()).cast("B")
