"""The values of one column of a run, read into one array, several shards at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from stratoscope.errors import ShardDamagedError
from stratoscope.rows import FloatArray, IndexArray
from stratoscope.store.objects import RunPath
from stratoscope.store.pages import Chunk, Page, PageDecoder, PagesError, find_chunk, is_compressed, read_pages
from stratoscope.store.shard import opened, read_column, shard_faults
from stratoscope.store.sharing import Piece, share
from stratoscope.store.source import source_of
from stratoscope_wire import Column


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
        out : contiguous float32 array of shape (n_rows, width)
            Takes the values.

        Raises
        ------
        ShardDamagedError, StorageError
            If it cannot be read, or has not these rows; or its store fails.
        """
        self.fill(column, self.pages(column), out, PageDecoder())

    def pages(self, column: Column) -> list[Page] | None:
        """Read one column without decoding it; None if its pages are of a kind that Arrow must read, and judge.

        Raises
        ------
        ShardDamagedError, StorageError
            As `read`.
        """
        start, n_bytes = self._places[self._columns.index(column)].tolist()
        if not n_bytes:
            return None
        with self._faults(column):
            source = source_of(self.path, start, n_bytes)
            pages = list(read_pages(source, Chunk(start, n_bytes, self.n_rows * column.width)))
            return pages if is_compressed(pages[0]) else None

    def fill(self, column: Column, pages: Sequence[Page] | None, out: FloatArray, decoder: PageDecoder) -> None:
        """Decode what `pages` gave of one column, all of it or some adjacent rows.

        Parameters
        ----------
        out : contiguous float32 array of shape (n_rows, width)
            Takes the values.

        Raises
        ------
        ShardDamagedError, StorageError
            As `read`.
        """
        if pages is None:
            rows = read_column(self.path, column)
            if len(rows) != self.n_rows:
                raise ShardDamagedError(f"shard {self.path} has {len(rows)} rows; the ledger says {self.n_rows}")
            np.copyto(out, rows)
            return
        bits, done = out.reshape(-1).view(np.uint32), 0
        with self._faults(column):
            for page in pages:
                decoder.decode(page, bits[done : done + page.n_values])
                done += page.n_values

    @contextmanager
    def _faults(self, column: Column) -> Iterator[None]:
        try:
            with shard_faults(self.path):
                yield
        except PagesError as error:
            raise ShardDamagedError(f"column {column.name} of shard {self.path} cannot be read: {error}") from error

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
        Beside it as much memory is taken as one shard's column needs, for each thread.

    Raises
    ------
    ShardDamagedError
        If a shard cannot be read.
    """
    values = np.empty((n_selected, column.width), np.float32)
    pieces = np.split(target, np.cumsum([shard.n_rows for shard in shards])[:-1]) if shards else []
    decoder = PageDecoder()
    share(partial(_begin, shard, column, here, values, decoder) for shard, here in zip(shards, pieces, strict=True))
    return values


def _begin(
    shard: ShardReader, column: Column, here: IndexArray, values: FloatArray, decoder: PageDecoder
) -> list[Piece]:
    """Read a shard's part of a column; return the decoding of its pages, if each has whole rows."""
    if not (here >= 0).any():
        return []
    pages = shard.pages(column)
    if pages is None or any(page.n_values % column.width for page in pages):
        _put(here, values, partial(shard.fill, column, pages, decoder=decoder))
        return []
    ends = np.cumsum([page.n_values // column.width for page in pages])
    parts = zip(pages, np.split(here, ends[:-1]), strict=True)
    return [partial(_put, rows, values, partial(shard.fill, column, [page], decoder=decoder)) for page, rows in parts]


def _put(here: IndexArray, values: FloatArray, fill: Callable[[FloatArray], None]) -> list[Piece]:
    """Have rows filled in where they belong, at once if they are adjacent there."""
    kept, first = here >= 0, int(here[0])
    if first >= 0 and np.array_equal(here, np.arange(first, first + len(here))):
        fill(values[first : first + len(here)])
    elif kept.any():
        rows = np.empty((len(here), values.shape[1]), np.float32)
        fill(rows)
        values[here[kept]] = rows[kept]
    return []
