"""The checksum of a batch: XXH3-64 over its contents and its place in the stream.

It covers, in this order: ``seq`` and the number of rows as little-endian int64; then for each column of ids the
int32 offsets and the UTF-8 bytes, for each other column its values. Padding and framing are left out, so it can be
recomputed from any Arrow implementation's view of the batch. XXH3 guards against accidents, not against an attacker.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import xxhash

from stratoscope_wire.dtypes import Values

PREFIX = "xxh3:"


class BatchChecksum:
    """Sums up a batch column by column, so that whoever looks at a column next finds it in the cache.

    Parameters
    ----------
    seq, n_rows
        Of the batch.
    """

    def __init__(self, seq: int, n_rows: int) -> None:
        self._state = xxhash.xxh3_64(np.array([seq, n_rows], dtype="<i8").tobytes())

    def add(self, column: pa.Array) -> None:
        """Add the next column, which must start at offset 0."""
        for buffer in _contents(column):
            self._state.update(buffer)

    def add_values(self, values: Values) -> None:
        """Add the values of the next column, which must be C-contiguous."""
        self._state.update(values.data)

    @property
    def text(self) -> str:
        """The checksum of what was added, as ``xxh3:`` and 16 hex digits."""
        return PREFIX + self._state.hexdigest()


def batch_checksum(batch: pa.RecordBatch, seq: int) -> str:
    """Return the checksum of a batch whose columns start at offset 0."""
    checksum = BatchChecksum(seq, batch.num_rows)
    for column in batch.columns:
        checksum.add(column)
    return checksum.text


def stream_checksum(checksums: Iterable[str]) -> str:
    """Return the checksum of a stream: that of its batches' checksums, in order, as ASCII."""
    return PREFIX + xxhash.xxh3_64("".join(checksums).encode("ascii")).hexdigest()


def _contents(column: pa.Array) -> list[pa.Buffer]:
    n_rows = len(column)
    if pa.types.is_string(column.type):
        _, offsets, data = column.buffers()
        used = int.from_bytes(offsets.slice(4 * n_rows, 4), "little")
        return [offsets.slice(0, 4 * (n_rows + 1)), *([data.slice(0, used)] if data is not None else [])]
    if pa.types.is_fixed_size_list(column.type):
        values = column.values
        return [values.buffers()[1].slice(0, n_rows * column.type.list_size * values.type.byte_width)]
    return [column.buffers()[1].slice(0, n_rows * column.type.byte_width)]
