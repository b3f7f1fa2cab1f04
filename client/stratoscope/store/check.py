"""The check of a shard that was just written: read back, and compared with what was to be written."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stratoscope.errors import ShardDamagedError
from stratoscope.store.content import ColumnRows, Content
from stratoscope.store.pages import Page, PageDecoder, PagesError, find_chunk, read_pages
from stratoscope.store.scratch import Scratch
from stratoscope.store.shard import KEY_NAMES, same_fields
from stratoscope.store.sharing import Piece, share
from stratoscope.store.source import FileSource


class _Memory(NamedTuple):
    """What each thread uses again: for rows as they came, and for a page as it is read back."""

    widened: Scratch
    decoded: Scratch
    decoder: PageDecoder


def check_shard(content: Content, path: Path, *, by_arrow: bool = False) -> None:
    """Read a shard back and compare every value with what was to be written.

    Keys, schema and metadata are read by Arrow, activations as a run is read: every page is held against its checksum,
    every value is compared bit for bit.

    Parameters
    ----------
    by_arrow
        Whether Arrow must read the same too, of one column of each width: a second opinion on how a shard is laid out.

    Raises
    ------
    ShardDamagedError
        If it differs.
    OSError
        If the disk fails.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_keys(content, file)
            if by_arrow:
                for name in {rows.width: name for name, rows in content.columns.items()}.values():
                    _check_by_arrow(name, content.columns[name], file)
            _check_columns(content, path, file.metadata)
    except (PagesError, pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise ShardDamagedError(f"the shard just written to {path} does not read back as written: {error}") from error


def _check_keys(content: Content, file: pq.ParquetFile) -> None:
    schema = file.schema_arrow
    if not same_fields(schema, content.schema) or schema.metadata != content.schema.metadata:
        raise PagesError("its schema is another")
    if file.num_row_groups != 1 or not file.read(columns=list(KEY_NAMES)).equals(content.keys):
        raise PagesError("its keys are others")


def _check_by_arrow(name: str, rows: ColumnRows, file: pq.ParquetFile) -> None:
    found = np.from_dlpack(file.read(columns=[name]).column(0).combine_chunks().flatten())
    expected = rows.part(0, rows.n_rows, Scratch()).reshape(-1)
    if not np.array_equal(found.view(np.uint32), expected.view(np.uint32)):
        raise PagesError(f"Arrow reads other values in column {name} than were written")


def _check_columns(content: Content, path: Path, metadata: pq.FileMetaData) -> None:
    memory = _Memory(Scratch(), Scratch(), PageDecoder())
    group = metadata.row_group(0)
    places = {group.column(index).path_in_schema: group.column(index) for index in range(metadata.num_columns)}
    share(
        partial(_check_column, name, rows, path, places[f"{name}.list.element"], memory)
        for name, rows in content.columns.items()
    )


def _check_column(
    name: str, rows: ColumnRows, path: Path, place: pq.ColumnChunkMetaData, memory: _Memory
) -> list[Piece]:
    chunk = find_chunk(place)
    if chunk is None or chunk.n_values != rows.n_rows * rows.width:
        raise PagesError(f"column {name} is laid out otherwise than it was written")
    return [partial(_check_page, name, rows, page, memory) for page in read_pages(FileSource(path), chunk)]


def _check_page(name: str, rows: ColumnRows, page: Page, memory: _Memory) -> list[Piece]:
    (first, rest), (n_rows, more) = divmod(page.first, rows.width), divmod(page.n_values, rows.width)
    expected = rows.part(first, first + n_rows, memory.widened).reshape(-1).view(np.uint32)
    if rest or more or len(expected) != page.n_values:
        raise PagesError(f"a page of column {name} ends within a row")
    found = memory.decoded.take(expected.nbytes).view(np.uint32)
    memory.decoder.decode(page, found)
    if not np.array_equal(found, expected):
        raise PagesError(f"column {name} has other values than were written")
    return []
