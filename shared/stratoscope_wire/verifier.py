"""Holding record batches against what was asked for: nothing is believed that can be checked."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa

from stratoscope_wire.checksum import BatchChecksum, stream_checksum
from stratoscope_wire.dtypes import is_finite, value_bytes
from stratoscope_wire.errors import StreamCorruptError
from stratoscope_wire.expected import Expected
from stratoscope_wire.rows import StimulusRows
from stratoscope_wire.schema import KEY_FIELDS, BatchMark, Footer, StreamHeader

N_KEYS: Final = len(KEY_FIELDS)


class BatchVerifier:
    """Verifies the batches of one answer, in their order.

    Parameters
    ----------
    expected
        What was asked for.
    """

    def __init__(self, expected: Expected) -> None:
        self.row_bytes = sum(column.width for column in expected.columns) * value_bytes(expected.dtype)
        self._expected = expected
        self._checksums: list[str] = []
        self._rows = 0
        self._done: set[str] = set()
        self._current: StimulusRows | None = None

    @property
    def progress(self) -> str:
        """How much is complete, for messages."""
        return f"after {len(self._done)} of {len(self._expected.stimulus_ids)} stimuli"

    def _refuse_nulls(self, batch: pa.RecordBatch) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            inner = column.values.null_count if pa.types.is_fixed_size_list(column.type) else 0
            if column.null_count or inner:
                raise StreamCorruptError(f"column {name} of a batch has nulls")

    def verify(self, batch: pa.RecordBatch, metadata: Mapping[bytes, bytes] | None) -> BatchMark:
        """Verify a batch and return its mark.

        Raises
        ------
        StreamCorruptError
            If anything is not as it must be.
        """
        mark = BatchMark.from_metadata(metadata)
        self._refuse_nulls(batch)
        if mark.seq != len(self._checksums):
            raise StreamCorruptError(f"batch {mark.seq} came where batch {len(self._checksums)} was due")
        checksum, not_finite = self._look_through(batch, mark.seq)
        if mark.checksum != checksum:
            raise StreamCorruptError(f"batch {mark.seq} is damaged: its checksum is not {mark.checksum}")
        self._verify_rows(batch, is_open=mark.open)
        if not_finite:
            raise StreamCorruptError(f"batch {mark.seq} has a value in column {not_finite[0]} that is not finite")
        self._checksums.append(mark.checksum)
        self._rows += batch.num_rows
        return mark

    def _look_through(self, batch: pa.RecordBatch, seq: int) -> tuple[str, list[str]]:
        """Return a batch's checksum and the columns with a value that is not finite, having touched each only once."""
        checksum, not_finite = BatchChecksum(seq, batch.num_rows), []
        for index in range(N_KEYS):
            checksum.add(batch.column(index))
        for index, column in enumerate(self._expected.columns):
            values = np.from_dlpack(batch.column(N_KEYS + index).values)
            checksum.add_values(values)
            if not is_finite(values, self._expected.dtype):
                not_finite.append(column.name)
        return checksum.text, not_finite

    def _verify_rows(self, batch: pa.RecordBatch, *, is_open: bool) -> None:
        first = batch.column(0)[0].as_py()
        if self._current is not None and self._current.stimulus_id != first:
            raise StreamCorruptError(f"stimulus {self._current.stimulus_id!r} was to go on, but {first!r} came")
        rows = zip(*(batch.column(index).to_pylist() for index in range(N_KEYS)), strict=True)
        for stimulus_id, selector, position, token_id in rows:
            if self._current is None or self._current.stimulus_id != stimulus_id:
                self._close_stimulus()
                self._current = self._begin(stimulus_id)
            self._current.add(selector, position, token_id)
        if not is_open:
            self._close_stimulus()

    def _begin(self, stimulus_id: str) -> StimulusRows:
        if stimulus_id not in self._expected.stimulus_ids:
            raise StreamCorruptError(f"stimulus {stimulus_id!r} was not asked for")
        if stimulus_id in self._done:
            raise StreamCorruptError(f"stimulus {stimulus_id!r} came twice")
        return StimulusRows(stimulus_id, self._expected.selectors, self._expected.token_ids.get(stimulus_id))

    def _close_stimulus(self) -> None:
        if self._current is not None:
            self._current.close()
            self._done.add(self._current.stimulus_id)
            self._current = None

    def verify_end(self, header: StreamHeader, footer: Footer) -> None:
        """Verify that what was stated before and after the batches is what arrived.

        Raises
        ------
        StreamCorruptError
            If it is not.
        """
        arrived = (len(self._done), self._rows, self._rows * self.row_bytes)
        for record in (header, footer):
            if (record.stimuli, record.rows, record.bytes) != arrived:
                raise StreamCorruptError(
                    f"the {type(record).__name__} states {record.stimuli} stimuli, {record.rows} rows, {record.bytes} "
                    f"bytes; {arrived[0]}, {arrived[1]}, {arrived[2]} arrived"
                )
        if footer.batches != len(self._checksums) or footer.checksum != stream_checksum(self._checksums):
            raise StreamCorruptError("the footer's batches or checksum are not those that arrived")
