"""Reading an answer: default deny.

A stream is accepted when every stimulus asked for came once, complete, in the right shape, with finite values; every
batch carries its sequence number and a matching checksum; the footer says ``ok`` and equals what arrived; and the
end-of-stream marker is the last thing sent. Anything else raises one of the errors in `stratoscope_wire.errors`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from stratoscope_wire.checksum import batch_checksum, stream_checksum
from stratoscope_wire.dtypes import is_finite, value_bytes
from stratoscope_wire.encoder import END_OF_STREAM
from stratoscope_wire.errors import (
    FingerprintMismatchError,
    RemoteStreamError,
    StreamCorruptError,
    StreamCutError,
)
from stratoscope_wire.framing import RECORD_BATCH, SCHEMA, is_message_whole
from stratoscope_wire.request import ActivationsRequest, Dtype
from stratoscope_wire.rows import StimulusRows
from stratoscope_wire.schema import KEY_FIELDS, BatchMark, ErrorRecord, Footer, StreamHeader, response_schema
from stratoscope_wire.sites import Column
from stratoscope_wire.version import PROTOCOL_VERSION

N_KEYS: Final = len(KEY_FIELDS)

KEY_BYTES_PER_ROW: Final = 2048
"""Most that a row's id, selector, position and token id take in a batch."""

PADDING_BYTES: Final = 1 << 20
"""Most that the buffers of a batch are padded by: 64 bytes each."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What was asked for, against which an answer is held.

    Attributes
    ----------
    stimulus_ids
        Every id, each to come back once.
    selectors
        Labels of the selectors, in the order of the request.
    columns
        Columns of the capture, in canonical order.
    dtype
        Type of the values on the wire.
    fingerprint
        Of the model that must answer.
    token_ids
        For stimuli sent as token ids, those ids.
    """

    stimulus_ids: frozenset[str]
    selectors: tuple[str, ...]
    columns: tuple[Column, ...]
    dtype: Dtype
    fingerprint: str
    token_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, request: ActivationsRequest, columns: tuple[Column, ...], fingerprint: str) -> "Expected":
        """Derive the expectation from a request."""
        return cls(
            stimulus_ids=frozenset(stimulus.id for stimulus in request.stimuli),
            selectors=request.capture.labels,
            columns=columns,
            dtype=request.dtype,
            fingerprint=fingerprint,
            token_ids={s.id: s.token_ids for s in request.stimuli if s.token_ids is not None},
        )


class StreamDecoder:
    """Verifies one answer while reading it.

    Iterating gives record batches in which every stimulus is complete and verified. The answer as a whole is
    accepted only when the iteration ends without an error. What to keep after an error:
    `StreamCutError` and `RemoteStreamError`: the batches already given; `StreamCorruptError`: nothing.

    Parameters
    ----------
    source
        The received bytes.
    expected
        What was asked for.
    """

    def __init__(self, source: bytes | memoryview | pa.Buffer, expected: Expected) -> None:
        self._source = pa.BufferReader(source)
        self._bytes = memoryview(source).cast("B")
        self._expected = expected
        self._schema = response_schema(expected.columns, expected.dtype)
        self._row_bytes = sum(column.width for column in expected.columns) * value_bytes(expected.dtype)
        self._checksums: list[str] = []
        self._rows = 0
        self._done: set[str] = set()
        self._current: StimulusRows | None = None
        self.header: StreamHeader | None = None
        self.footer: Footer | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        reader = self._open()
        held: list[pa.RecordBatch] = []
        while self.footer is None:
            batch, metadata = self._next(reader)
            if batch.num_rows == 0:
                self._end(metadata)
                break
            mark = self._verify(batch, metadata)
            held.append(batch)
            if not mark.open:
                yield from held
                held = []
        self._verify_end()

    def _open(self) -> pa.RecordBatchReader:
        is_whole = is_message_whole(self._bytes, 0, kind=SCHEMA, max_body_bytes=0, max_rows=0)
        try:
            reader = pa.ipc.open_stream(self._source)
        except (pa.ArrowException, OSError) as error:
            if is_whole:
                raise StreamCorruptError(f"the answer's schema cannot be read: {error}") from None
            raise StreamCutError(f"the stream ends or breaks in its schema: {error}") from None
        self.header = StreamHeader.from_metadata(reader.schema.metadata)
        if self.header.protocol != PROTOCOL_VERSION:
            raise StreamCorruptError(f"the server speaks protocol {self.header.protocol}, not {PROTOCOL_VERSION}")
        if self.header.fingerprint != self._expected.fingerprint:
            raise FingerprintMismatchError(
                f"another model answered: fingerprint {self.header.fingerprint}, expected {self._expected.fingerprint}"
            )
        if not reader.schema.remove_metadata().equals(self._schema, check_metadata=True):
            raise StreamCorruptError(f"the answer's schema is not the one asked for:\n{reader.schema.to_string()}")
        if self.header.bytes != self.header.rows * self._row_bytes:
            raise StreamCorruptError(
                f"the answer announces {self.header.bytes} bytes in {self.header.rows} rows of {self._row_bytes} bytes"
            )
        if self.header.dtype != self._expected.dtype or self.header.stimuli != len(self._expected.stimulus_ids):
            raise StreamCorruptError(
                f"the answer announces {self.header.stimuli} stimuli as {self.header.dtype}; asked for were "
                f"{len(self._expected.stimulus_ids)} as {self._expected.dtype}"
            )
        return reader

    def _next(self, reader: pa.RecordBatchReader) -> tuple[pa.RecordBatch, Mapping[bytes, bytes] | None]:
        assert self.header is not None
        is_whole = is_message_whole(
            self._bytes,
            self._source.tell(),
            kind=RECORD_BATCH,
            max_body_bytes=self.header.bytes + self.header.rows * KEY_BYTES_PER_ROW + PADDING_BYTES,
            max_rows=self.header.rows,
        )
        try:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            batch.validate(full=True)
        except StopIteration:
            raise StreamCutError(f"the stream ends without a footer, {self._progress()}") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            if is_whole:
                raise StreamCorruptError(f"a batch cannot be read, {self._progress()}: {error}") from None
            raise StreamCutError(f"the stream breaks, {self._progress()}: {error}") from None
        return batch, metadata

    def _refuse_nulls(self, batch: pa.RecordBatch) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            inner = column.values.null_count if pa.types.is_fixed_size_list(column.type) else 0
            if column.null_count or inner:
                raise StreamCorruptError(f"column {name} of a batch has nulls")

    def _verify(self, batch: pa.RecordBatch, metadata: Mapping[bytes, bytes] | None) -> BatchMark:
        mark = BatchMark.from_metadata(metadata)
        self._refuse_nulls(batch)
        if mark.seq != len(self._checksums):
            raise StreamCorruptError(f"batch {mark.seq} came where batch {len(self._checksums)} was due")
        if mark.checksum != batch_checksum(batch, mark.seq):
            raise StreamCorruptError(f"batch {mark.seq} is damaged: its checksum is not {mark.checksum}")
        self._verify_rows(batch, is_open=mark.open)
        for index, column in enumerate(self._expected.columns):
            values = batch.column(N_KEYS + index).values.to_numpy(zero_copy_only=False)
            if not is_finite(values, self._expected.dtype):
                raise StreamCorruptError(f"batch {mark.seq} has a value in column {column.name} that is not finite")
        self._checksums.append(mark.checksum)
        self._rows += batch.num_rows
        return mark

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

    def _end(self, metadata: Mapping[bytes, bytes] | None) -> None:
        if (metadata or {}).get(b"status") == b"error":
            record = ErrorRecord.from_metadata(metadata)
            raise RemoteStreamError(
                f"the server failed ({record.code}), {self._progress()}: {record.message} "
                f"[request {record.request_id}]",
                code=record.code,
                retryable=record.retryable,
            )
        self.footer = Footer.from_metadata(metadata)

    def _verify_end(self) -> None:
        assert self.header is not None
        assert self.footer is not None
        arrived = (len(self._done), self._rows, self._rows * self._row_bytes)
        for record in (self.header, self.footer):
            if (record.stimuli, record.rows, record.bytes) != arrived:
                raise StreamCorruptError(
                    f"the {type(record).__name__} states {record.stimuli} stimuli, {record.rows} rows, {record.bytes} "
                    f"bytes; {arrived[0]}, {arrived[1]}, {arrived[2]} arrived"
                )
        if self.footer.batches != len(self._checksums) or self.footer.checksum != stream_checksum(self._checksums):
            raise StreamCorruptError("the footer's batches or checksum are not those that arrived")
        tail = bytes(self._source.read(len(END_OF_STREAM) + 1))
        if END_OF_STREAM.startswith(tail) and tail != END_OF_STREAM:
            raise StreamCutError("the stream ends after its footer, without the end-of-stream marker")
        if tail != END_OF_STREAM:
            raise StreamCorruptError("bytes follow the stream's footer that are not its end")

    def _progress(self) -> str:
        return f"after {len(self._done)} of {len(self._expected.stimulus_ids)} stimuli"
