"""The footer of a shard: the schema as Arrow writes it, and where the chunk of each column lies."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stratoscope.store.encoder import BYTE_STREAM_SPLIT, RUN_LENGTHS
from stratoscope.store.thrift import Value, i32, i64, listing, read_struct, struct, text, written_fields, written_items

MAGIC: Final = b"PAR1"
_TAIL_BYTES: Final = 8
_FLOAT: Final = 4
_ZSTD: Final = 6
_SCHEMA, _ROWS, _GROUPS, _CREATOR = 2, 3, 4, 6


class ColumnChunk(NamedTuple):
    """The pages of one column of activations.

    Attributes
    ----------
    name
        Of the column.
    start
        Where its first page begins.
    n_bytes, plain_bytes
        Of all pages with their headers; the second before compression.
    n_values
        In all pages.
    """

    name: str
    start: int
    n_bytes: int
    plain_bytes: int
    n_values: int


def footer(schema: pa.Schema, n_rows: int, keys: memoryview, chunks: Sequence[ColumnChunk]) -> bytes:
    """Return what stands behind the last page.

    Parameters
    ----------
    keys
        A whole Parquet file of the key columns alone, whose pages begin this file too.
    """
    sink = pa.BufferOutputStream()
    pq.write_metadata(schema, sink)
    fields = written_fields(_footer_of(memoryview(sink.getvalue()).cast("B")))
    [key_group] = written_items(written_fields(_footer_of(keys))[_GROUPS])
    content = memoryview(key_group.content)
    columns = [*written_items(written_fields(content)[1]), *(_column(chunk) for chunk in chunks)]
    n_bytes = read_struct(content, 0)[0][2] + sum(chunk.plain_bytes for chunk in chunks)
    fields[_ROWS] = i64(n_rows)
    fields[_GROUPS] = listing([struct({1: listing(columns), 2: i64(n_bytes), 3: i64(n_rows)})])
    fields[_CREATOR] = text(f"stratoscope with parquet-cpp-arrow version {pa.__version__}")
    facts = struct(fields).content
    return facts + len(facts).to_bytes(4, "little") + MAGIC


def pages_end(file: memoryview) -> int:
    """Return where the footer of a whole Parquet file begins."""
    return len(file) - _TAIL_BYTES - int.from_bytes(file[-_TAIL_BYTES:-4], "little")


def _footer_of(file: memoryview) -> memoryview:
    return file[pages_end(file) : -_TAIL_BYTES]


def _column(chunk: ColumnChunk) -> Value:
    facts = {
        1: i32(_FLOAT),
        2: listing([i32(RUN_LENGTHS), i32(BYTE_STREAM_SPLIT)]),
        3: listing([text(name) for name in (chunk.name, "list", "element")]),
        4: i32(_ZSTD),
        5: i64(chunk.n_values),
        6: i64(chunk.plain_bytes),
        7: i64(chunk.n_bytes),
        9: i64(chunk.start),
    }
    return struct({2: i64(0), 3: struct(facts)})
