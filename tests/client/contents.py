"""The content of a shard, made of a table of float32 such as a shard is read as."""

from pathlib import Path

import pyarrow as pa

from stratoscope.store.content import ColumnRows, Content
from stratoscope.store.shard import KEY_NAMES, write_shard
from stratoscope_wire.schema import KEY_FIELDS


def content_of(table: pa.Table) -> Content:
    """Take a table's columns as they are, each chunk as a piece that came by itself."""
    keys = table.select(KEY_NAMES).combine_chunks().cast(pa.schema(KEY_FIELDS))
    names = [name for name in table.column_names if name not in KEY_NAMES]
    columns = {name: ColumnRows.of([(chunk, "float32") for chunk in table.column(name).chunks]) for name in names}
    return Content(table.schema, keys, columns)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as a shard."""
    write_shard(content_of(table), path)
