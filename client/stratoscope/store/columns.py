"""The columns of a shard, encoded page by page on several processors and written one after the other."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import BinaryIO

from stratoscope.store.content import ColumnRows
from stratoscope.store.encoder import PageEncoder, Part, rows_per_page
from stratoscope.store.footer import ColumnChunk
from stratoscope.store.sharing import THREADS


def write_columns(file: BinaryIO, columns: Mapping[str, ColumnRows]) -> list[ColumnChunk]:
    """Write columns from where the file stands; return where they lie.

    Parameters
    ----------
    columns
        By name. Their pages are encoded ahead of the file, at most all of them.
    """
    chunks = []
    parts = {name: list(_cut(rows)) for name, rows in columns.items()}
    with ThreadPoolExecutor(THREADS) as pool:
        pages = pool.map(PageEncoder().encode, chain.from_iterable(parts.values()))
        for name, rows in columns.items():
            start = file.tell()
            plain_bytes = 0
            for page in islice(pages, len(parts[name])):
                file.write(page.header)
                file.write(page.body)
                plain_bytes += len(page.header) + page.plain_bytes
            chunks.append(ColumnChunk(name, start, file.tell() - start, plain_bytes, rows.n_rows * rows.width))
    return chunks


def _cut(rows: ColumnRows) -> Iterator[Part]:
    step = rows_per_page(rows.width)
    return (partial(rows.part, first, min(first + step, rows.n_rows)) for first in range(0, rows.n_rows, step))
