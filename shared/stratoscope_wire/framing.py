"""The framing of an Arrow stream, looked at before Arrow's reader is: what must not be there is refused unread.

Arrow's own reader would decompress, follow dictionaries and believe lengths.
"""

from dataclasses import dataclass
from typing import Final

from stratoscope_wire.compression import Compression, check_codec, inflated_bytes
from stratoscope_wire.errors import StreamCorruptError
from stratoscope_wire.flatbuffer import Table

MAX_METADATA_BYTES: Final = 1 << 20
"""Longest description of a message; that of a thousand columns takes a third of it."""

CONTINUATION: Final = 0xFFFFFFFF
PREFIX_BYTES: Final = 8

SCHEMA: Final = 1
RECORD_BATCH: Final = 3
KINDS: Final = {1: "schema", 2: "dictionary", 3: "record batch", 4: "tensor", 5: "sparse tensor"}

MESSAGE_KIND: Final = 1
MESSAGE_HEADER: Final = 2
MESSAGE_BODY_BYTES: Final = 3
BATCH_LENGTH: Final = 0
BATCH_BUFFERS: Final = 2
BATCH_COMPRESSION: Final = 3
"""Places of fields in the tables of Arrow's Message.fbs."""

BUFFER_PADDING: Final = 64


@dataclass(frozen=True, slots=True)
class Due:
    """What may come next.

    Attributes
    ----------
    kind
        The only kind of message: `SCHEMA` or `RECORD_BATCH`.
    max_body_bytes, max_rows
        As many as were announced.
    row_bytes
        Most that a row may take once it is unpacked.
    compression
        How every batch must be packed.
    """

    kind: int
    max_body_bytes: int = 0
    max_rows: int = 0
    row_bytes: int = 0
    compression: Compression | None = None


def metadata_bytes(prefix: memoryview, start: int) -> int:
    """Return how long the description of a message is, 0 at the end of the stream.

    Parameters
    ----------
    prefix
        First `PREFIX_BYTES` of the message.
    start
        Its place in the stream, for the error.

    Raises
    ------
    StreamCorruptError
        If no message begins here, or its description is too long.
    """
    if int.from_bytes(prefix[:4], "little") != CONTINUATION:
        raise StreamCorruptError(f"byte {start} of the stream begins no Arrow message")
    n_bytes = int.from_bytes(prefix[4:], "little", signed=True)
    if not 0 <= n_bytes <= MAX_METADATA_BYTES:
        raise StreamCorruptError(
            f"a message announces {n_bytes} bytes of metadata; at most {MAX_METADATA_BYTES} are accepted"
        )
    return n_bytes


def body_bytes(metadata: memoryview, due: Due) -> int:
    """Return how long the body of a message is.

    Raises
    ------
    StreamCorruptError
        If the description is one that no honest server sends.
    """
    n_bytes = _check_metadata(Table.root(metadata), due)
    if not 0 <= n_bytes <= due.max_body_bytes:
        raise StreamCorruptError(
            f"a message announces a body of {n_bytes} bytes; at most {due.max_body_bytes} can be due"
        )
    return n_bytes


def check_packed(metadata: memoryview, body: memoryview, due: Due) -> None:
    """Check what a batch says it is once it is unpacked, before anything unpacks it.

    Raises
    ------
    StreamCorruptError
        If that is more than its rows can take.
    """
    batch = Table.root(metadata).table(MESSAGE_HEADER)
    assert batch is not None
    buffers = batch.pairs(BATCH_BUFFERS)
    most = batch.number(BATCH_LENGTH, "q") * due.row_bytes + (len(buffers) + 1) * BUFFER_PADDING
    n_bytes = inflated_bytes(buffers, body)
    if n_bytes > most:
        raise StreamCorruptError(
            f"a record batch announces {n_bytes} bytes once it is unpacked; at most {most} can be due"
        )


def _check_metadata(message: Table, due: Due) -> int:
    found = message.number(MESSAGE_KIND, "B")
    if found != due.kind:
        raise StreamCorruptError(
            f"a {KINDS.get(found, 'message of an unknown kind')} came where a {KINDS[due.kind]} was due"
        )
    if due.kind == RECORD_BATCH:
        batch = message.table(MESSAGE_HEADER)
        if batch is None:
            raise StreamCorruptError("a record batch has no description")
        check_codec(batch.table(BATCH_COMPRESSION), due.compression)
        n_rows = batch.number(BATCH_LENGTH, "q")
        if not 0 <= n_rows <= due.max_rows:
            raise StreamCorruptError(f"a record batch announces {n_rows} rows; at most {due.max_rows} can be due")
    return message.number(MESSAGE_BODY_BYTES, "q")
