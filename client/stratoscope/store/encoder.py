"""The encoder of a shard's pages: what `pages` reads, and every reader of Parquet.

Arrow's writer works out two levels for every value of a fixed-size list, which takes longer than all else. In a column
without nulls they are the same for every row: the first value begins a list, the others go on with it.
"""

import threading
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from stratoscope.rows import FloatArray
from stratoscope.store.scratch import Scratch
from stratoscope.store.thrift import i32, struct, varint

PAGE_BYTES: Final = 2 << 20
"""Bytes of values in a page, or one row if that is longer."""

FRAME: Final = {
    "strategy": zstandard.STRATEGY_FAST,
    "window_log": 18,
    "hash_log": 6,
    "chain_log": 6,
    "search_log": 1,
    "min_match": 7,
    "target_length": 0,
    "write_content_size": 1,
}
"""Zstandard with next to no search: activations repeat nothing, and what can be gained is a code for the exponents.

It is smaller than level 1, and about twice as fast both ways (`docs/scale.md` has the figures).
"""

BYTE_STREAM_SPLIT: Final = 9
RUN_LENGTHS: Final = 3
DATA_PAGE: Final = 0


Part = Callable[[Scratch], FloatArray]
"""Gives the rows of a page, contiguous and of shape (n_rows, width), if need be in the memory that it is given."""


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
    body: bytes
    plain_bytes: int


def rows_per_page(width: int) -> int:
    """Return how many rows a page holds."""
    return max(1, PAGE_BYTES // (4 * width))


class PageEncoder(threading.local):
    """Encodes pages, each thread with memory of its own that it uses again."""

    def __init__(self) -> None:
        self._widened = Scratch()
        self._scratch = Scratch()
        self._compressor = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(**FRAME))

    def encode(self, part: Part) -> EncodedPage:
        """Encode rows as one page: levels, then the four byte planes, compressed, with a checksum."""
        rows = part(self._widened)
        levels = _levels(*rows.shape)
        plain = self._scratch.take(len(levels) + rows.nbytes)
        plain[: len(levels)] = np.frombuffer(levels, np.uint8)
        _split(rows.reshape(-1).view(np.uint32), plain[len(levels) :].reshape(4, -1))
        body = self._compress(plain, [len(levels) + place * rows.size for place in range(5)])
        return EncodedPage(_header(rows.size, len(plain), body), body, len(plain))

    def _compress(self, plain: npt.NDArray[np.uint8], ends: Sequence[int]) -> bytes:
        """Compress to one frame in which each part has blocks, and so a code, of its own."""
        frame = self._compressor.compressobj(size=len(plain))
        done, parts = 0, []
        for end in ends:
            parts += [frame.compress(plain[done:end].data), frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
            done = end
        return b"".join([*parts, frame.flush()])


def _header(n_values: int, plain_bytes: int, body: bytes) -> bytes:
    checksum = zlib.crc32(body)
    facts = {
        1: i32(DATA_PAGE),
        2: i32(plain_bytes),
        3: i32(len(body)),
        4: i32(checksum - (checksum >> 31 << 32)),
        5: struct({1: i32(n_values), 2: i32(BYTE_STREAM_SPLIT), 3: i32(RUN_LENGTHS), 4: i32(RUN_LENGTHS)}),
    }
    return struct(facts).content


@lru_cache(maxsize=8)
def _levels(n_rows: int, width: int) -> bytes:
    """Say of every value whether it begins a list, then that none is null."""
    row = _run(1, 0) + (_run(width - 1, 1) if width > 1 else b"")
    return b"".join(len(runs).to_bytes(4, "little") + runs for runs in (row * n_rows, _run(n_rows * width, 1)))


def _run(length: int, level: int) -> bytes:
    return varint(length << 1) + bytes([level])


def _split(bits: npt.NDArray[np.uint32], planes: npt.NDArray[np.uint8]) -> None:
    """Take the bytes of each value apart; widened bfloat16 has nothing in the lower two."""
    first = 0
    if not int(np.bitwise_or.reduce(bits)) & 0xFFFF:
        planes[:2] = 0
        first = 2
    for place in range(first, 4):
        np.right_shift(bits, 8 * place, out=planes[place], casting="unsafe")
