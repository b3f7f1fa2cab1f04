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

from stratoscope.rows import FloatArray
from stratoscope.store.thrift import read_struct

_DATA_PAGE: Final = 0
_BYTE_STREAM_SPLIT: Final = 9
_RUN_LENGTHS: Final = 3
_LEVELS: Final = 2
_VALUE_BYTES: Final = 4

Bytes = npt.NDArray[np.uint8]


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


def find_chunk(column: pq.ColumnChunkMetaData) -> Chunk | None:
    """Return where a column's pages lie, or None if they are not of the kind that `read_chunk` reads."""
    known = (
        column.physical_type == "FLOAT"
        and column.compression == "ZSTD"
        and set(column.encodings) == {"RLE", "BYTE_STREAM_SPLIT"}
        and not column.has_dictionary_page
    )
    return Chunk(column.data_page_offset, column.total_compressed_size, column.num_values) if known else None


def read_chunk(file: pa.NativeFile, chunk: Chunk, out: FloatArray) -> None:
    """Read a column's pages; each must have its checksum.

    Parameters
    ----------
    out : contiguous float32 array
        Takes the values, as many as there are.

    Raises
    ------
    PagesError
        If a page is damaged, lacks a checksum or holds a null, or the pages are not exactly the values wanted.
    OSError
        If the disk fails.
    """
    bits = out.reshape(-1).view(np.uint32)
    if bits.size != chunk.n_values:
        raise PagesError(f"there are {chunk.n_values} values where {bits.size} were expected")
    file.seek(chunk.start)
    done = 0
    try:
        for planes in _pages(memoryview(file.read_buffer(chunk.n_bytes)).cast("B")):
            _join(planes, bits[done : done + planes.shape[1]])
            done += planes.shape[1]
    except (IndexError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise PagesError(f"a page cannot be read: {error}") from error
    if done != bits.size:
        raise PagesError(f"the pages hold {done} values where {bits.size} were expected")


def _pages(data: memoryview) -> Iterator[Bytes]:
    """Give the byte planes of each page, of shape (4, n_values)."""
    codec = pa.Codec("zstd")
    place = 0
    while place < len(data):
        header, place = read_struct(data, place)
        n_values = _check(header)
        body = data[place : place + header[3]]
        if zlib.crc32(body) != header[4] & 0xFFFFFFFF:
            raise PagesError("it differs from its checksum")
        plain = codec.decompress(body, decompressed_size=header[2])
        yield _values(memoryview(plain).cast("B"), n_values)
        place += header[3]


def _check(header: dict[int, Any]) -> int:
    """Return the number of values of a page of the one kind that shards have."""
    page = header[5]
    if header[1] != _DATA_PAGE or (page[2], page[3], page[4]) != (_BYTE_STREAM_SPLIT, _RUN_LENGTHS, _RUN_LENGTHS):
        raise PagesError(f"it is of another kind: {header}")
    return int(page[1])


def _values(page: memoryview, n_values: int) -> Bytes:
    """Skip the levels, of lists and then of nulls, each behind its length."""
    for _ in range(_LEVELS):
        page = page[4 + int.from_bytes(page[:4], "little") :]
    if len(page) != _VALUE_BYTES * n_values:
        raise PagesError(f"it has {len(page)} bytes for {n_values} values, so some are null")
    return np.frombuffer(page, np.uint8).reshape(_VALUE_BYTES, n_values)


def _join(planes: Bytes, out: npt.NDArray[np.uint32]) -> None:
    """Put the bytes of each value together; widened bfloat16 has nothing in the lower two."""
    np.copyto(out, _pairs(planes[2], planes[3]))
    np.left_shift(out, 16, out=out)
    if planes[:2].max(initial=0):
        np.bitwise_or(out, _pairs(planes[0], planes[1]), out=out)


def _pairs(low: Bytes, high: Bytes) -> npt.NDArray[np.uint16]:
    pairs = high.astype(np.uint16)
    np.left_shift(pairs, 8, out=pairs)
    return np.bitwise_or(pairs, low, out=pairs)
