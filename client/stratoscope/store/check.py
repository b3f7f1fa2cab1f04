"""The check of a shard that was just written: read back, and compared with what was to be written."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stratoscope.errors import ShardDamagedError
from stratoscope.store.pages import Bits, Page, PagesError, find_chunk, read_pages
from stratoscope.store.scratch import Scratch
from stratoscope.store.shard import KEY_NAMES, activations, same_fields
from stratoscope.store.sharing import Piece, share


def check_shard(table: pa.Table, path: Path, *, by_arrow: bool = False) -> None:
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
            metadata = file.metadata
            widths = {field.type: field.name for field in table.schema} if by_arrow else {}
            names = [*KEY_NAMES, *(name for name in widths.values() if name not in KEY_NAMES)]
            same = (
                metadata.num_row_groups == 1
                and metadata.num_rows == table.num_rows
                and same_fields(file.schema_arrow, table.schema)
                and file.schema_arrow.metadata == table.schema.metadata
                and file.read(columns=names).equals(table.select(names))
            )
        if same:
            _check_columns(table, path, metadata)
    except (PagesError, pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise ShardDamagedError(f"the shard just written to {path} cannot be read back: {error}") from error
    if not same:
        raise ShardDamagedError(f"the shard just written to {path} does not read back as it was written")


def _check_columns(table: pa.Table, path: Path, metadata: pq.FileMetaData) -> None:
    scratch, decoded = Scratch(), Scratch()
    group = metadata.row_group(0)
    places = {group.column(index).path_in_schema: group.column(index) for index in range(metadata.num_columns)}
    names = table.schema.names[len(KEY_NAMES) :]
    share(partial(_check_column, table, path, name, places[f"{name}.list.element"], scratch, decoded) for name in names)


def _check_column(
    table: pa.Table, path: Path, name: str, place: pq.ColumnChunkMetaData, scratch: Scratch, decoded: Scratch
) -> list[Piece]:
    bits = activations(table, name).reshape(-1).view(np.uint32)
    chunk = find_chunk(place)
    if chunk is None or chunk.n_values != len(bits):
        raise PagesError(f"column {name} is laid out otherwise than it was written")
    with pa.OSFile(str(path)) as file:
        pages = list(read_pages(file, chunk))
    check = partial(_check_page, name, scratch=scratch, decoded=decoded)
    return [partial(check, page, bits[page.first : page.first + page.n_values]) for page in pages]


def _check_page(name: str, page: Page, expected: Bits, scratch: Scratch, decoded: Scratch) -> list[Piece]:
    found = decoded.take(expected.nbytes).view(np.uint32)
    page.decode(found, scratch)
    if not np.array_equal(found, expected):
        raise PagesError(f"column {name} has other values than were written")
    return []
