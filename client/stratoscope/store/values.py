"""The values of one column of a run, read into one array, several shards at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stratoscope.errors import ShardDamagedError
from stratoscope.rows import FloatArray, IndexArray
from stratoscope.store.pages import Chunk, PagesError, find_chunk, read_chunk
from stratoscope.store.shard import read_column
from stratoscope_wire import Column

READERS: Final = 2


def read_values(shards: Sequence[tuple[Path, int]], column: Column, target: IndexArray, n_selected: int) -> FloatArray:
    """Read one column.

    Parameters
    ----------
    shards
        Files, each with its number of rows.
    target : intp array of shape (n_rows,)
        For each row of all shards, which row of the result it is; -1 for none.

    Returns
    -------
    float32 array of shape (n_selected, width)
        Beside it as much memory is taken as one shard's column needs, for each reader.

    Raises
    ------
    ShardDamagedError
        If a shard cannot be read.
    """
    values = np.empty((n_selected, column.width), np.float32)
    pieces = np.split(target, np.cumsum([n_rows for _, n_rows in shards])[:-1]) if shards else []

    def read(path: Path, here: IndexArray) -> None:
        kept = here >= 0
        if not kept.any():
            return
        first = int(here[0])
        if np.array_equal(here, np.arange(first, first + len(here))):
            read_shard(path, column, values[first : first + len(here)])
        else:
            piece = np.empty((len(here), column.width), np.float32)
            read_shard(path, column, piece)
            values[here[kept]] = piece[kept]

    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(read, (path for path, _ in shards), pieces):
            pass
    return values


def read_shard(path: Path, column: Column, out: FloatArray) -> None:
    """Read one column of a shard; every page is held against its checksum.

    Parameters
    ----------
    out : float32 array of shape (n_rows, width)
        Takes the values.

    Raises
    ------
    ShardDamagedError
        If it cannot be read, or has not these rows.
    """
    try:
        with pa.OSFile(str(path)) as file:
            chunk = _chunk(pq.read_metadata(file), column, len(out))
            if chunk is not None:
                read_chunk(file, chunk, out)
                return
    except (PagesError, pa.ArrowException, OSError) as error:
        raise ShardDamagedError(f"column {column.name} of shard {path} cannot be read: {error}") from error
    rows = read_column(path, column)
    if len(rows) != len(out):
        raise ShardDamagedError(f"shard {path} has {len(rows)} rows; the ledger says {len(out)}")
    np.copyto(out, rows)


def _chunk(metadata: pq.FileMetaData, column: Column, n_rows: int) -> Chunk | None:
    """Find the pages of a column; None if Arrow must read, and judge, the file."""
    if metadata.num_row_groups != 1 or metadata.num_rows != n_rows:
        return None
    wanted = f"{column.name}.list.element"
    for index, leaf in enumerate(metadata.schema):
        if leaf.path == wanted:
            in_list = leaf.max_repetition_level == 1 and leaf.max_definition_level >= 1
            chunk = find_chunk(metadata.row_group(0).column(index)) if in_list else None
            return chunk if chunk is not None and chunk.n_values == n_rows * column.width else None
    return None
