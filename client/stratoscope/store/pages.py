"""The pages of a shard's column, decoded straight into an array.

Arrow's reader unpacks two levels for every value of a fixed-size list, to find out that nothing is null, and that takes
longer than all else. A page proves it by its length: it has 4 bytes for each of its values, so there is no gap.
"""

import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stratoscope.store.encoder import BYTE_STREAM_SPLIT, DATA_PAGE, RUN_LENGTHS
from stratoscope.store.scratch import Scratch
from stratoscope.store.thrift import read_struct

_LEVELS: Final = 2
_VALUE_BYTES: Final = 4
_LEAST_BYTES: Final = 64

Bytes = npt.NDArray[np.uint8]
Pairs = npt.NDArray[np.uint16]
Bits = npt.NDArray[np.uint32]


class PagesError(ValueError):
    """A page is damaged, or of another kind than a shard has."""


class Chunk(NamedTuple):
    """Where the pages of one column lie in a shard.

    Attributes
    ----------
    start, n_bytes
        Place in the file.
    n_values
        In all pages.
    """

    start: int
    n_bytes: int
    n_values: int


class Page(NamedTuple):
    """A page, not yet decoded.

    Attributes
    ----------
    first
        Which value of the column is its first.
    n_values
        How many it has.
    body
        As it stands in the file.
    plain_bytes
        Of the body, once decompressed.
    checksum
        What the body must have.
    """

    first: int
    n_values: int
    body: memoryview
    plain_bytes: int
    checksum: int

    def decode(self, out: Bits, scratch: Scratch) -> None:
        """Decode it, after its checksum was compared.

        Parameters
        ----------
        out : contiguous uint32 array of shape (n_values,)
            Takes the bits of the values.

        Raises
        ------
        PagesError
            If it is damaged or holds a null.
        """
        if zlib.crc32(self.body) != self.checksum:
            raise PagesError("a page differs from its checksum")
        try:
            plain = pa.Codec("zstd").decompress(self.body, decompressed_size=self.plain_bytes)
        except (ValueError, OSError, pa.ArrowException) as error:
            raise PagesError(f"a page cannot be decompressed: {error}") from error
        pairs = scratch.take(2 * self.n_values).view(np.uint16)
        _join(_values(memoryview(plain).cast("B"), self.n_values), out, pairs)


def find_chunk(column: pq.ColumnChunkMetaData) -> Chunk | None:
    """Return where a column's pages lie, or None if they are not of the kind that `read_pages` reads."""
    known = (
        column.physical_type == "FLOAT"
        and column.compression == "ZSTD"
        and set(column.encodings) == {"RLE", "BYTE_STREAM_SPLIT"}
        and not column.has_dictionary_page
    )
    return Chunk(column.data_page_offset, column.total_compressed_size, column.num_values) if known else None


def read_pages(file: pa.NativeFile, chunk: Chunk) -> Iterator[Page]:
    """Give a column's pages, in order; each must have a checksum.

    Raises
    ------
    PagesError
        If a page is of another kind, or they do not have exactly the chunk's values.
    OSError
        If the disk fails.
    """
    file.seek(chunk.start)
    data = memoryview(file.read_buffer(chunk.n_bytes)).cast("B")
    place = first = 0
    while place < len(data):
        try:
            header, place = read_struct(data, place)
            page = Page(first, _check(header), data[place : place + header[3]], header[2], header[4] & 0xFFFFFFFF)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise PagesError(f"a page cannot be read: {error}") from error
        first += page.n_values
        place += header[3]
        yield page
    if first != chunk.n_values:
        raise PagesError(f"the pages hold {first} values where {chunk.n_values} were expected")


def _check(header: dict[int, Any]) -> int:
    """Return the number of values of a page of the one kind that shards have."""
    page, n_values = header[5], int(header[5][1])
    if header[1] != DATA_PAGE or (page[2], page[3], page[4]) != (BYTE_STREAM_SPLIT, RUN_LENGTHS, RUN_LENGTHS):
        raise PagesError(f"it is of another kind: {header}")
    # Nothing is checked yet: a flipped bit must not ask for more memory than there is.
    if n_values <= 0 or header[3] <= 0 or not 0 <= header[2] - 4 * n_values <= 4 * n_values + _LEAST_BYTES:
        raise PagesError(f"it has lengths that no page has: {header}")
    return n_values


def _values(page: memoryview, n_values: int) -> Bytes:
    """Skip the levels, of lists and then of nulls, each behind its length."""
    for _ in range(_LEVELS):
        page = page[4 + int.from_bytes(page[:4], "little") :]
    if len(page) != _VALUE_BYTES * n_values:
        raise PagesError(f"it has {len(page)} bytes for {n_values} values, so some are null")
    return np.frombuffer(page, np.uint8).reshape(_VALUE_BYTES, n_values)


def _join(planes: Bytes, out: Bits, pairs: Pairs) -> None:
    """Put the bytes of each value together; widened bfloat16 has nothing in the lower two."""
    np.copyto(out, _pair(planes[2], planes[3], pairs))
    np.left_shift(out, 16, out=out)
    if planes[:2].max(initial=0):
        np.bitwise_or(out, _pair(planes[0], planes[1], pairs), out=out)


def _pair(low: Bytes, high: Bytes, pairs: Pairs) -> Pairs:
    np.copyto(pairs, high)
    np.left_shift(pairs, 8, out=pairs)
    return np.bitwise_or(pairs, low, out=pairs)
