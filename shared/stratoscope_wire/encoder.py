"""Writing an answer: blocks of rows in, pieces of an Arrow IPC stream out."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stratoscope_wire.checksum import BatchChecksum, stream_checksum
from stratoscope_wire.compression import Compression, write_options
from stratoscope_wire.dtypes import NUMPY_TYPES, Values, is_finite, value_bytes
from stratoscope_wire.errors import BlockError
from stratoscope_wire.schema import KEY_FIELDS, BatchMark, ErrorRecord, Footer, StreamHeader, response_schema
from stratoscope_wire.sites import Column

POISON: Final = bytes.fromhex("FFFFFFFF10000000")
"""A message header that promises 16 bytes which never come: every Arrow reader raises on it."""

END_OF_STREAM: Final = bytes.fromhex("FFFFFFFF00000000")
"""Arrow's end-of-stream marker."""

TARGET_BATCH_BYTES: Final = 4 << 20
"""Batches are cut at about this size; a single row is never cut."""

Piece = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one or more stimuli, layer-major: what an engine hands over, and what becomes Arrow columns.

    Attributes
    ----------
    stimulus_id, selector : sequence of str, length n_rows
        Rows of a stimulus are adjacent, in the order of the request's selectors.
    position, token_id : int32 array of shape (n_rows,)
        -1 in a pooled row.
    values : sequence of arrays of shape (n_rows, width)
        One per column of the capture, C-contiguous, in the wire's dtype.
    open
        Whether the last stimulus goes on in the next block.
    """

    stimulus_id: Sequence[str]
    selector: Sequence[str]
    position: npt.NDArray[np.int32]
    token_id: npt.NDArray[np.int32]
    values: Sequence[Values]
    open: bool = False


class _Pieces:
    """A sink for Arrow's writer that keeps the buffers themselves instead of copying them."""

    closed: Final = False

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def write(self, data: bytes | pa.Buffer) -> int:
        self._pieces.append(data if isinstance(data, bytes) else memoryview(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces


class StreamEncoder:
    """Encodes one answer. Call `start`, then `encode` per block, then exactly one of `finish` and `fail`.

    Parameters
    ----------
    columns
        Columns of the capture, in canonical order.
    header
        What is announced; `finish` refuses to state success if anything else was encoded.
    compression
        How batches are packed; their checksums are those of what was packed.
    """

    def __init__(self, columns: Sequence[Column], header: StreamHeader, compression: Compression | None = None) -> None:
        self._header = header
        self._options = write_options(compression)
        self._columns = columns
        self._schema = response_schema(columns, header.dtype)
        self._types = [field.type for field in self._schema][len(KEY_FIELDS) :]
        self._row_bytes = sum(column.width for column in columns) * value_bytes(header.dtype)
        self._sink = _Pieces()
        self._began = time.monotonic()
        self._checksums: list[str] = []
        self._rows = 0
        self._stimuli = 0

    def start(self) -> list[Piece]:
        """Return the schema message."""
        schema = self._schema.with_metadata(self._header.to_metadata())
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._sink, mode="w"), schema, options=self._options)
        self._empty = pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
        return self._sink.take()

    def encode(self, block: Block) -> Iterator[list[Piece]]:
        """Yield the messages of a block, one batch at a time, without copying its values.

        Raises
        ------
        BlockError
            If a column has not the shape or type announced, or a value that is not finite.
        """
        self._check(block)
        n_rows = len(block.stimulus_id)
        step = max(1, TARGET_BATCH_BYTES // max(1, self._row_bytes))
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            same = stop < n_rows and block.stimulus_id[stop] == block.stimulus_id[stop - 1]
            yield self._batch(block, start, stop, is_open=same or (stop == n_rows and block.open))

    def finish(self) -> list[Piece]:
        """Return footer and end-of-stream.

        Raises
        ------
        BlockError
            If stimuli or rows differ from what the header announced; the stream must then `fail`.
        """
        if (self._stimuli, self._rows) != (self._header.stimuli, self._header.rows):
            raise BlockError(
                f"the engine delivered {self._stimuli} stimuli in {self._rows} rows instead of "
                f"{self._header.stimuli} in {self._header.rows}"
            )
        footer = Footer(
            status="ok",
            stimuli=self._stimuli,
            rows=self._rows,
            batches=len(self._checksums),
            bytes=self._rows * self._row_bytes,
            checksum=stream_checksum(self._checksums),
            seconds=round(time.monotonic() - self._began, 3),
        )
        self._writer.write_batch(self._empty, custom_metadata=footer.to_metadata())
        self._writer.close()
        return self._sink.take()

    def fail(self, code: str, message: str, *, retryable: bool) -> list[Piece]:
        """Return an error record and the poison. The transport must then break the connection.

        Arrow's writer is left open on purpose: closing it would append a valid end to a failed stream.
        """
        request_id = self._header.request_id
        record = ErrorRecord(status="error", code=code, message=message, retryable=retryable, request_id=request_id)
        self._writer.write_batch(self._empty, custom_metadata=record.to_metadata())
        return [*self._sink.take(), POISON]

    def _check(self, block: Block) -> None:
        n_rows = len(block.stimulus_id)
        kind = NUMPY_TYPES[self._header.dtype]
        if len(block.values) != len(self._columns):
            raise BlockError(f"{len(block.values)} columns were delivered instead of {len(self._columns)}")
        for column, values in zip(self._columns, block.values, strict=True):
            if values.shape != (n_rows, column.width) or values.dtype != kind:
                raise BlockError(
                    f"column {column.name} is {values.dtype} of shape {values.shape} instead of {kind.__name__} of "
                    f"shape {(n_rows, column.width)}"
                )

    def _batch(self, block: Block, start: int, stop: int, *, is_open: bool) -> list[Piece]:
        rows = slice(start, stop)
        checksum = BatchChecksum(len(self._checksums), stop - start)
        keys = [
            pa.array(block.stimulus_id[rows], pa.utf8()),
            pa.array(block.selector[rows], pa.utf8()),
            pa.array(block.position[rows], pa.int32()),
            pa.array(block.token_id[rows], pa.int32()),
        ]
        for key in keys:
            checksum.add(key)
        # Here and not for the whole block, so that the second look and the socket find the values in the cache.
        for column, array in zip(self._columns, block.values, strict=True):
            checksum.add_values(array[rows])
            if not is_finite(array[rows], self._header.dtype):
                raise BlockError(f"column {column.name} has a value that is not finite")
        values = [
            pa.FixedSizeListArray.from_arrays(pa.array(array[rows].reshape(-1), kind.value_type), type=kind)
            for array, kind in zip(block.values, self._types, strict=True)
        ]
        batch = pa.RecordBatch.from_arrays([*keys, *values], schema=self._empty.schema)
        mark = BatchMark(seq=len(self._checksums), open=is_open, checksum=checksum.text)
        self._writer.write_batch(batch, custom_metadata=mark.to_metadata())
        self._checksums.append(mark.checksum)
        self._rows += batch.num_rows
        ids = block.stimulus_id[rows]
        self._stimuli += 1 + sum(a != b for a, b in itertools.pairwise(ids)) - int(is_open)
        return self._sink.take()
