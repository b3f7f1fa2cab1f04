"""The framing of an Arrow stream, looked at before Arrow's reader is: what must not be there is refused unread.

Arrow's own reader would decompress, follow dictionaries and believe lengths.
"""

import struct
from dataclasses import dataclass
from typing import Final

from stratoscope_wire.errors import StreamCorruptError

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
BATCH_COMPRESSION: Final = 3
"""Places of fields in the tables of Arrow's Message.fbs."""


@dataclass(frozen=True, slots=True)
class Due:
    """What may come next.

    Attributes
    ----------
    kind
        The only kind of message: `SCHEMA` or `RECORD_BATCH`.
    max_body_bytes, max_rows
        As many as were announced.
    """

    kind: int
    max_body_bytes: int = 0
    max_rows: int = 0


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
    n_bytes = _check_metadata(_Table.root(metadata), due.kind, due.max_rows)
    if not 0 <= n_bytes <= due.max_body_bytes:
        raise StreamCorruptError(
            f"a message announces a body of {n_bytes} bytes; at most {due.max_body_bytes} can be due"
        )
    return n_bytes


def _check_metadata(message: "_Table", kind: int, max_rows: int) -> int:
    found = message.number(MESSAGE_KIND, "B")
    if found != kind:
        raise StreamCorruptError(
            f"a {KINDS.get(found, 'message of an unknown kind')} came where a {KINDS[kind]} was due"
        )
    if kind == RECORD_BATCH:
        batch = message.table(MESSAGE_HEADER)
        if batch is None:
            raise StreamCorruptError("a record batch has no description")
        if batch.has(BATCH_COMPRESSION):
            raise StreamCorruptError("a record batch is compressed, which was not asked for")
        n_rows = batch.number(BATCH_LENGTH, "q")
        if not 0 <= n_rows <= max_rows:
            raise StreamCorruptError(f"a record batch announces {n_rows} rows; at most {max_rows} can be due")
    return message.number(MESSAGE_BODY_BYTES, "q")


class _Table:
    """A table of a flatbuffer; every read is checked against the buffer's end."""

    def __init__(self, buffer: memoryview, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._fields = position - self._read("i", position)
        self._n_fields = (self._read("H", self._fields) - 4) // 2

    @classmethod
    def root(cls, buffer: memoryview) -> "_Table":
        return cls(buffer, cls._unpack(buffer, "I", 0))

    def has(self, field: int) -> bool:
        return self._offset(field) != 0

    def number(self, field: int, form: str) -> int:
        """Return a number; one that is left out is 0."""
        offset = self._offset(field)
        return self._read(form, self._position + offset) if offset else 0

    def table(self, field: int) -> "_Table | None":
        offset = self._offset(field)
        if not offset:
            return None
        place = self._position + offset
        return _Table(self._buffer, place + self._read("I", place))

    def _offset(self, field: int) -> int:
        return self._read("H", self._fields + 4 + 2 * field) if field < self._n_fields else 0

    def _read(self, form: str, position: int) -> int:
        return self._unpack(self._buffer, form, position)

    @staticmethod
    def _unpack(buffer: memoryview, form: str, position: int) -> int:
        size = struct.calcsize(f"<{form}")
        if not 0 <= position <= len(buffer) - size:
            raise StreamCorruptError("the metadata of a message points beyond its end")
        number: int = struct.unpack_from(f"<{form}", buffer, position)[0]
        return number
