"""The pages of a shard's column, decoded straight into an array.

Arrow's reader unpacks two levels for every value of a fixed-size list, to find out that nothing is null, and that takes
longer than all else. A page proves it by its length: it has 4 bytes for each of its values, so there is no gap.
"""

import threading
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import zstandard

from stratoscope.store.encoder import BYTE_STREAM_SPLIT, DATA_PAGE, RUN_LENGTHS
from stratoscope.store.scratch import Scratch
from stratoscope.store.source import Bytes, Source
from stratoscope.store.thrift import read_struct

_LEVELS: Final = 2
_VALUE_BYTES: Final = 4
_LEAST_BYTES: Final = 64
_HEADER_BYTES: Final = 512

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
    source, place, n_bytes
        Where its body stands.
    plain_bytes
        Of the body, once decompressed.
    checksum
        What the body must have.
    """

    first: int
    n_values: int
    source: Source
    place: int
    n_bytes: int
    plain_bytes: int
    checksum: int


class PageDecoder(threading.local):
    """Decodes pages, each thread with memory of its own that it uses again.

    Memory taken from the system for every page, and given back, costs two threads more than decoding does.
    """

    def __init__(self) -> None:
        self._body, self._plain, self._pairs = Scratch(), Scratch(), Scratch()
        self._decompressor = zstandard.ZstdDecompressor()

    def decode(self, page: Page, out: Bits) -> None:
        """Read a page, compare its checksum, decode it.

        Parameters
        ----------
        out : contiguous uint32 array of shape (n_values,)
            Takes the bits of the values.

        Raises
        ------
        PagesError
            If it is damaged or holds a null.
        OSError
            If the disk fails.
        """
        body = _read(page.source, page.place, self._body.take(page.n_bytes))
        if zlib.crc32(body.data) != page.checksum:
            raise PagesError("a page differs from its checksum")
        plain = self._decompress(body, self._plain.take(page.plain_bytes))
        _join(_values(plain, page.n_values), out, self._pairs.take(2 * page.n_values).view(np.uint16))

    def _decompress(self, body: Bytes, plain: Bytes) -> Bytes:
        try:
            with self._decompressor.stream_reader(body.data) as stream:
                whole = stream.readinto(plain.data) == len(plain) and not stream.read(1)
        except zstandard.ZstdError as error:
            raise PagesError(f"a page cannot be decompressed: {error}") from error
        if not whole:
            raise PagesError(f"a page does not have the {len(plain)} bytes that its header says")
        return plain


def find_chunk(column: pq.ColumnChunkMetaData) -> Chunk | None:
    """Return where a column's pages lie, or None if they are not of the kind that `read_pages` reads.

    How they are compressed is seen by `is_compressed`: asked for a codec that it does not know, as a flipped bit makes
    it, Arrow ends the process.
    """
    known = (
        column.physical_type == "FLOAT"
        and set(column.encodings) == {"RLE", "BYTE_STREAM_SPLIT"}
        and not column.has_dictionary_page
    )
    return Chunk(column.data_page_offset, column.total_compressed_size, column.num_values) if known else None


def read_pages(source: Source, chunk: Chunk) -> Iterator[Page]:
    """Find a column's pages, in order; each must have a checksum.

    Raises
    ------
    PagesError
        If a page is of another kind, or they do not have exactly the chunk's values.
    OSError
        If the disk fails.
    """
    place, end = chunk.start, chunk.start + chunk.n_bytes
    memory = np.empty(_HEADER_BYTES, np.uint8)
    first = 0
    while place < end:
        data = _read(source, place, memory[: end - place])
        try:
            header, length = read_struct(data.data, 0)
            page = Page(first, _check(header), source, place + length, header[3], header[2], header[4] & 0xFFFFFFFF)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise PagesError(f"a page cannot be read: {error}") from error
        first += page.n_values
        place = page.place + page.n_bytes
        if place > end:
            raise PagesError(f"a page ends {place - end} bytes after its column")
        yield page
    if first != chunk.n_values:
        raise PagesError(f"the pages hold {first} values where {chunk.n_values} were expected")


def is_compressed(page: Page) -> bool:
    """Tell whether a page is compressed by Zstandard.

    Raises
    ------
    PagesError, OSError
        As `PageDecoder.decode`.
    """
    n_bytes = min(page.n_bytes, len(zstandard.FRAME_HEADER))
    return _read(page.source, page.place, np.empty(n_bytes, np.uint8)).tobytes() == zstandard.FRAME_HEADER


def _read(source: Source, place: int, out: Bytes) -> Bytes:
    try:
        source.read(place, out)
    except EOFError as error:
        raise PagesError(str(error)) from error
    return out


def _check(header: dict[int, Any]) -> int:
    """Return the number of values of a page of the one kind that shards have."""
    page, n_values = header[5], int(header[5][1])
    if header[1] != DATA_PAGE or (page[2], page[3], page[4]) != (BYTE_STREAM_SPLIT, RUN_LENGTHS, RUN_LENGTHS):
        raise PagesError(f"it is of another kind: {header}")
    # Nothing is checked yet: a flipped bit must not ask for more memory than there is.
    if n_values <= 0 or header[3] <= 0 or not 0 <= header[2] - 4 * n_values <= 4 * n_values + _LEAST_BYTES:
        raise PagesError(f"it has lengths that no page has: {header}")
    return n_values


def _values(page: Bytes, n_values: int) -> Bytes:
    """Skip the levels, of lists and then of nulls, each behind its length."""
    for _ in range(_LEVELS):
        page = page[4 + int.from_bytes(page[:4].data, "little") :]
    if len(page) != _VALUE_BYTES * n_values:
        raise PagesError(f"it has {len(page)} bytes for {n_values} values, so some are null")
    return page.reshape(_VALUE_BYTES, n_values)


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
