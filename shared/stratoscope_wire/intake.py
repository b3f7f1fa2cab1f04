"""Taking in an answer while it arrives: default deny.

A stream is accepted when every stimulus asked for came once, complete, in the right shape, with finite values; every
batch carries its sequence number and a matching checksum; the footer says ``ok`` and equals what arrived; and the
end-of-stream marker is the last thing sent. Anything else raises one of the errors in `stratoscope_wire.errors`.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import pyarrow as pa

from stratoscope_wire.cutter import MessageCutter
from stratoscope_wire.encoder import END_OF_STREAM
from stratoscope_wire.errors import FingerprintMismatchError, RemoteStreamError, StreamCorruptError, StreamCutError
from stratoscope_wire.expected import Expected
from stratoscope_wire.framing import RECORD_BATCH, SCHEMA, Due
from stratoscope_wire.memory import MessageMemory
from stratoscope_wire.schema import ErrorRecord, Footer, StreamHeader, response_schema
from stratoscope_wire.verifier import BatchVerifier
from stratoscope_wire.version import PROTOCOL_VERSION

KEY_BYTES_PER_ROW: Final = 2048
"""Most that a row's id, selector, position and token id take in a batch."""

PADDING_BYTES: Final = 1 << 20
"""Most that the buffers of a batch are padded by: 64 bytes each."""


class _Shelf:
    """A file for Arrow's reader that holds one message at a time and hands out its parts uncopied."""

    closed: Final = False

    def __init__(self) -> None:
        self._message = pa.py_buffer(b"")
        self._n_read = 0

    def put(self, message: pa.Buffer) -> None:
        self._message, self._n_read = message, 0

    def read_buffer(self, n_bytes: int) -> pa.Buffer:
        part = self._message.slice(self._n_read, min(n_bytes, len(self._message) - self._n_read))
        self._n_read += len(part)
        return part

    def read(self, n_bytes: int) -> bytes:
        return bytes(self.read_buffer(n_bytes))


class StreamIntake:
    """Verifies one answer while it arrives.

    Write what arrives into `room` and say with `filled` how much it was: that gives the record batches in which every
    stimulus is complete and verified by now. The answer as a whole is accepted only when `close` raises nothing. What
    to keep after an error: `StreamCutError` and `RemoteStreamError`: the batches already given;
    `StreamCorruptError`: nothing.

    Parameters
    ----------
    expected
        What was asked for.
    memory
        Where the answer is to lie; memory of its own by default.
    """

    def __init__(self, expected: Expected, memory: MessageMemory | None = None) -> None:
        self._expected = expected
        self._verifier = BatchVerifier(expected)
        self._cutter = MessageCutter(Due(SCHEMA), memory or MessageMemory())
        self._shelf = _Shelf()
        self._reader: pa.RecordBatchReader | None = None
        self._held: list[pa.RecordBatch] = []
        self._is_over = False
        self.header: StreamHeader | None = None
        self.footer: Footer | None = None

    @property
    def room(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return self._cutter.room

    @property
    def is_within(self) -> bool:
        """Whether a message has begun to come and is not whole."""
        return self._cutter.is_within

    def filled(self, n_bytes: int) -> list[pa.RecordBatch]:
        """Take so many bytes as written into `room`; return what is complete with them.

        Raises
        ------
        StreamError
            If the answer cannot be accepted any more.
        """
        if self._is_over:
            raise StreamCorruptError("bytes follow the stream's end")
        try:
            message = self._cutter.filled(n_bytes)
        except StreamCorruptError:
            if self.footer is not None:
                raise StreamCorruptError("bytes follow the stream's footer that are not its end") from None
            raise
        return [] if message is None else self._take(message)

    def write(self, data: bytes | memoryview) -> Iterator[pa.RecordBatch]:
        """Take bytes that lie somewhere else, and give what is complete with them before whatever is wrong is raised.

        Raises
        ------
        StreamError
            If the answer cannot be accepted any more.
        """
        left = memoryview(data)
        while left:
            room = self.room
            n_bytes = min(len(room), len(left))
            room[:n_bytes] = left[:n_bytes]
            left = left[n_bytes:]
            yield from self.filled(n_bytes)

    def close(self) -> None:
        """Declare that nothing follows.

        Raises
        ------
        StreamCutError
            If something is missing.
        StreamCorruptError
            If what stands after the footer is not the beginning of the end.
        """
        started = self._cutter.started
        if self._is_over:
            return
        if self.header is None:
            raise StreamCutError("the stream ends in its schema")
        if self.footer is None:
            how = "breaks in a message" if started else "ends without a footer"
            raise StreamCutError(f"the stream {how}, {self._verifier.progress}")
        if END_OF_STREAM.startswith(started):
            raise StreamCutError("the stream ends after its footer, without the end-of-stream marker")
        raise StreamCorruptError("bytes follow the stream's footer that are not its end")

    def _take(self, message: pa.Buffer) -> list[pa.RecordBatch]:
        is_end = len(message) == len(END_OF_STREAM)
        if self.footer is not None:
            if not is_end:
                raise StreamCorruptError("bytes follow the stream's footer that are not its end")
            self._is_over = True
            return []
        if is_end:
            raise StreamCutError(f"the stream ends without a footer, {self._verifier.progress}")
        self._shelf.put(message)
        if self._reader is None:
            self._reader = self._open()
            return []
        batch, metadata = self._read(self._reader)
        if batch.num_rows == 0:
            self._end(metadata)
            return []
        mark = self._verifier.verify(batch, metadata)
        self._held.append(batch)
        if mark.open:
            return []
        complete, self._held = self._held, []
        return complete

    def _open(self) -> pa.RecordBatchReader:
        try:
            reader = pa.ipc.open_stream(self._shelf)
        except (pa.ArrowException, OSError) as error:
            raise StreamCorruptError(f"the answer's schema cannot be read: {error}") from None
        self.header = StreamHeader.from_metadata(reader.schema.metadata)
        if self.header.protocol != PROTOCOL_VERSION:
            raise StreamCorruptError(f"the server speaks protocol {self.header.protocol}, not {PROTOCOL_VERSION}")
        if self.header.fingerprint != self._expected.fingerprint:
            raise FingerprintMismatchError(
                f"another model answered: fingerprint {self.header.fingerprint}, expected {self._expected.fingerprint}"
            )
        due = response_schema(self._expected.columns, self._expected.dtype)
        if not reader.schema.remove_metadata().equals(due, check_metadata=True):
            raise StreamCorruptError(f"the answer's schema is not the one asked for:\n{reader.schema.to_string()}")
        row_bytes = self._verifier.row_bytes
        if self.header.bytes != self.header.rows * row_bytes:
            raise StreamCorruptError(
                f"the answer announces {self.header.bytes} bytes in {self.header.rows} rows of {row_bytes} bytes"
            )
        if self.header.dtype != self._expected.dtype or self.header.stimuli != len(self._expected.stimulus_ids):
            raise StreamCorruptError(
                f"the answer announces {self.header.stimuli} stimuli as {self.header.dtype}; asked for were "
                f"{len(self._expected.stimulus_ids)} as {self._expected.dtype}"
            )
        n_rows, most_row_bytes = self.header.rows, row_bytes + KEY_BYTES_PER_ROW
        self._cutter.due = Due(
            RECORD_BATCH,
            max_body_bytes=n_rows * most_row_bytes + PADDING_BYTES,
            max_rows=n_rows,
            row_bytes=most_row_bytes,
            compression=self._expected.compression,
        )
        return reader

    def _read(self, reader: pa.RecordBatchReader) -> tuple[pa.RecordBatch, Mapping[bytes, bytes] | None]:
        try:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            batch.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
            raise StreamCorruptError(f"a batch cannot be read, {self._verifier.progress}: {error}") from None
        return batch, metadata

    def _end(self, metadata: Mapping[bytes, bytes] | None) -> None:
        if (metadata or {}).get(b"status") == b"error":
            record = ErrorRecord.from_metadata(metadata)
            raise RemoteStreamError(
                f"the server failed ({record.code}), {self._verifier.progress}: {record.message} "
                f"[request {record.request_id}]",
                code=record.code,
                retryable=record.retryable,
            )
        self.footer = Footer.from_metadata(metadata)
        assert self.header is not None
        self._verifier.verify_end(self.header, self.footer)
