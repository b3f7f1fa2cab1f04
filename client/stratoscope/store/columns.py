"""The columns of a shard, encoded page by page on several processors and written one after the other."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import BinaryIO

from stratoscope.rows import FloatArray
from stratoscope.store.encoder import PageEncoder, rows_per_page
from stratoscope.store.footer import ColumnChunk
from stratoscope.store.sharing import THREADS


def write_columns(file: BinaryIO, columns: Mapping[str, FloatArray]) -> list[ColumnChunk]:
    """Write columns from where the file stands; return where they lie.

    Parameters
    ----------
    columns : contiguous float32 arrays of shape (n_rows, width)
        By name. Their pages are encoded ahead of the file, at most all of them.
    """
    chunks = []
    with ThreadPoolExecutor(THREADS) as pool:
        pages = pool.map(PageEncoder().encode, (page for rows in columns.values() for page in _cut(rows)))
        for name, rows in columns.items():
            start = file.tell()
            plain_bytes = 0
            for page in islice(pages, len(range(0, len(rows), rows_per_page(rows.shape[1])))):
                file.write(page.header)
                file.write(page.body)
                plain_bytes += len(page.header) + page.plain_bytes
            chunks.append(ColumnChunk(name, start, file.tell() - start, plain_bytes, rows.size))
    return chunks


def _cut(rows: FloatArray) -> Iterator[FloatArray]:
    step = rows_per_page(rows.shape[1])
    return (rows[first : first + step] for first in range(0, len(rows), step))
