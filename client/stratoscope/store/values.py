"""The values of one column of a run, read into one array, several shards at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from stratoscope.errors import ShardDamagedError
from stratoscope.rows import FloatArray, IndexArray
from stratoscope.store.objects import RunPath
from stratoscope.store.pages import Chunk, PagesError, find_chunk, read_chunk
from stratoscope.store.shard import opened, read_column
from stratoscope_wire import Column

READERS: Final = 2


class ShardReader:
    """Reads columns of one shard. Where they lie is looked up once: a footer of many columns costs more than a column.

    Parameters
    ----------
    path
        Its file or object.
    n_rows
        Rows that the ledger has for it.
    columns
        All columns of activations.
    """

    def __init__(self, path: RunPath, n_rows: int, columns: Sequence[Column]) -> None:
        self.path = path
        self.n_rows = n_rows
        self._columns = columns

    def read(self, column: Column, out: FloatArray) -> None:
        """Read one column; every page is held against its checksum.

        Parameters
        ----------
        out : float32 array of shape (n_rows, width)
            Takes the values.

        Raises
        ------
        ShardDamagedError, StorageError
            If it cannot be read, or has not these rows; or its store fails.
        """
        start, n_bytes = self._places[self._columns.index(column)].tolist()
        if n_bytes:
            try:
                with opened(self.path) as file:
                    read_chunk(file, Chunk(start, n_bytes, self.n_rows * column.width), out)
            except PagesError as error:
                raise ShardDamagedError(f"column {column.name} of shard {self.path} cannot be read: {error}") from error
            return
        rows = read_column(self.path, column)
        if len(rows) != self.n_rows:
            raise ShardDamagedError(f"shard {self.path} has {len(rows)} rows; the ledger says {self.n_rows}")
        np.copyto(out, rows)

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """Start and bytes of each column, shape (n_columns, 2); 0 bytes where Arrow must read, and judge, the file."""
        places = np.zeros((len(self._columns), 2), np.int64)
        with opened(self.path) as file:
            metadata = pq.read_metadata(file)
        if metadata.num_row_groups != 1 or metadata.num_rows != self.n_rows:
            return places
        wanted = {f"{column.name}.list.element": (index, column) for index, column in enumerate(self._columns)}
        group = metadata.row_group(0)
        for index, leaf in enumerate(metadata.schema):
            place, column = wanted.get(leaf.path, (None, None))
            if place is None or column is None or leaf.max_repetition_level != 1 or leaf.max_definition_level < 1:
                continue
            chunk = find_chunk(group.column(index))
            if chunk is not None and chunk.n_values == self.n_rows * column.width:
                places[place] = chunk.start, chunk.n_bytes
        return places


def read_values(shards: Sequence[ShardReader], column: Column, target: IndexArray, n_selected: int) -> FloatArray:
    """Read one column.

    Parameters
    ----------
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
    pieces = np.split(target, np.cumsum([shard.n_rows for shard in shards])[:-1]) if shards else []

    def read(shard: ShardReader, here: IndexArray) -> None:
        kept = here >= 0
        if not kept.any():
            return
        first = int(here[0])
        if np.array_equal(here, np.arange(first, first + shard.n_rows)):
            shard.read(column, values[first : first + shard.n_rows])
        else:
            piece = np.empty((shard.n_rows, column.width), np.float32)
            shard.read(column, piece)
            values[here[kept]] = piece[kept]

    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(read, shards, pieces):
            pass
    return values
