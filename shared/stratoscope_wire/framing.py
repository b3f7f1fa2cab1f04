"""The framing of an Arrow stream, looked at before Arrow's reader is: what must not be there is refused unread.

Arrow's own reader would decompress, follow dictionaries and believe lengths. A message that is not all there yet is
none of this module's business: the reader then reports a cut.
"""

import struct
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


def is_message_whole(stream: memoryview, start: int, *, kind: int, max_body_bytes: int, max_rows: int) -> bool:
    """Look at the message that starts at a byte of a stream.

    Parameters
    ----------
    kind
        The only one that may come here: `SCHEMA` or `RECORD_BATCH`.
    max_body_bytes, max_rows
        As many as were announced.

    Returns
    -------
    bool
        Whether all its bytes are there; ``False`` also at the end of the stream.

    Raises
    ------
    StreamCorruptError
        If it holds what no honest server sends.
    """
    prefix = stream[start : start + PREFIX_BYTES]
    if len(prefix) < PREFIX_BYTES:
        return False
    marker = int.from_bytes(prefix[:4], "little")
    n_metadata = int.from_bytes(prefix[4:], "little", signed=True)
    if marker != CONTINUATION:
        raise StreamCorruptError(f"byte {start} of the stream begins no Arrow message")
    if n_metadata == 0:
        return False
    if not 0 < n_metadata <= MAX_METADATA_BYTES:
        raise StreamCorruptError(
            f"a message announces {n_metadata} bytes of metadata; at most {MAX_METADATA_BYTES} are accepted"
        )
    body = start + PREFIX_BYTES + n_metadata
    if len(stream) < body:
        return False
    n_body: int = _check_metadata(_Table.root(stream[start + PREFIX_BYTES : body]), kind, max_rows)
    if not 0 <= n_body <= max_body_bytes:
        raise StreamCorruptError(f"a message announces a body of {n_body} bytes; at most {max_body_bytes} can be due")
    return len(stream) >= body + n_body


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
