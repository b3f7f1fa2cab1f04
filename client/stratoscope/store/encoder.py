"""The encoder of a shard's pages: what `pages` reads, and every reader of Parquet.

Arrow's writer works out two levels for every value of a fixed-size list, which takes longer than all else. In a column
without nulls they are the same for every row: the first value begins a list, the others go on with it.
"""

import zlib
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from stratoscope.rows import FloatArray
from stratoscope.store.scratch import Scratch
from stratoscope.store.thrift import i32, struct, varint

PAGE_BYTES: Final = 1 << 20
"""Bytes of values in a page, or one row if that is longer."""

COMPRESSION: Final = "zstd"
LEVEL: Final = 1
BYTE_STREAM_SPLIT: Final = 9
RUN_LENGTHS: Final = 3
DATA_PAGE: Final = 0


class EncodedPage(NamedTuple):
    """A page as it stands in the file.

    Attributes
    ----------
    header, body
        Its bytes.
    plain_bytes
        Bytes of the body before it was compressed.
    """

    header: bytes
    body: memoryview
    plain_bytes: int


def rows_per_page(width: int) -> int:
    """Return how many rows a page holds."""
    return max(1, PAGE_BYTES // (4 * width))


def encode_page(rows: FloatArray, scratch: Scratch) -> EncodedPage:
    """Encode rows as one page: levels, then the four byte planes, compressed, with a checksum.

    Parameters
    ----------
    rows : contiguous float32 array of shape (n_rows, width)
    """
    levels = _levels(*rows.shape)
    plain = scratch.take(len(levels) + rows.nbytes)
    plain[: len(levels)] = np.frombuffer(levels, np.uint8)
    _split(rows.reshape(-1).view(np.uint32), plain[len(levels) :].reshape(4, -1))
    body = memoryview(pa.Codec(COMPRESSION, LEVEL).compress(plain)).cast("B")
    checksum = zlib.crc32(body)
    header = struct(
        {
            1: i32(DATA_PAGE),
            2: i32(len(plain)),
            3: i32(len(body)),
            4: i32(checksum - (checksum >> 31 << 32)),
            5: struct({1: i32(rows.size), 2: i32(BYTE_STREAM_SPLIT), 3: i32(RUN_LENGTHS), 4: i32(RUN_LENGTHS)}),
        }
    )
    return EncodedPage(header.content, body, len(plain))


@lru_cache(maxsize=8)
def _levels(n_rows: int, width: int) -> bytes:
    """Say of every value whether it begins a list, then that none is null."""
    row = _run(1, 0) + (_run(width - 1, 1) if width > 1 else b"")
    return b"".join(len(runs).to_bytes(4, "little") + runs for runs in (row * n_rows, _run(n_rows * width, 1)))


def _run(length: int, level: int) -> bytes:
    return varint(length << 1) + bytes([level])


def _split(bits: np.ndarray, planes: np.ndarray) -> None:
    """Take the bytes of each value apart; widened bfloat16 has nothing in the lower two."""
    first = 0
    if not int(np.bitwise_or.reduce(bits)) & 0xFFFF:
        planes[:2] = 0
        first = 2
    for place in range(first, 4):
        np.right_shift(bits, 8 * place, out=planes[place], casting="unsafe")
