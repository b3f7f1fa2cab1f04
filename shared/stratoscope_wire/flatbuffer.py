"""The tables in which Arrow describes its messages, read without believing them."""

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from stratoscope_wire.errors import StreamCorruptError

Pairs = npt.NDArray[np.int64]

PAIR_BYTES: Final = 16
BEYOND: Final = "the metadata of a message points beyond its end"


class Table:
    """A table of a flatbuffer; every read is checked against the buffer's end.

    Parameters
    ----------
    buffer, position
        Where it lies.

    Raises
    ------
    StreamCorruptError
        By every method, if the buffer does not hold what it says.
    """

    def __init__(self, buffer: memoryview, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._fields = position - self._read("i", position)
        self._n_fields = (self._read("H", self._fields) - 4) // 2

    @classmethod
    def root(cls, buffer: memoryview) -> "Table":
        """Return the table that a buffer holds."""
        return cls(buffer, cls._unpack(buffer, "I", 0))

    def number(self, field: int, form: str) -> int:
        """Return a number; one that is left out is 0."""
        offset = self._offset(field)
        return self._read(form, self._position + offset) if offset else 0

    def table(self, field: int) -> "Table | None":
        """Return a table, if it is there."""
        offset = self._offset(field)
        if not offset:
            return None
        place = self._position + offset
        return Table(self._buffer, place + self._read("I", place))

    def pairs(self, field: int) -> Pairs:
        """Return a vector of structs of two int64; one that is left out is empty."""
        offset = self._offset(field)
        if not offset:
            return np.empty((0, 2), "<i8")
        place = self._position + offset
        place += self._read("I", place)
        n_pairs = self._read("I", place)
        if n_pairs * PAIR_BYTES > len(self._buffer) - place - 4:
            raise StreamCorruptError(BEYOND)
        return np.frombuffer(self._buffer, "<i8", 2 * n_pairs, place + 4).reshape(-1, 2)

    def _offset(self, field: int) -> int:
        return self._read("H", self._fields + 4 + 2 * field) if field < self._n_fields else 0

    def _read(self, form: str, position: int) -> int:
        return self._unpack(self._buffer, form, position)

    @staticmethod
    def _unpack(buffer: memoryview, form: str, position: int) -> int:
        size = struct.calcsize(f"<{form}")
        if not 0 <= position <= len(buffer) - size:
            raise StreamCorruptError(BEYOND)
        number: int = struct.unpack_from(f"<{form}", buffer, position)[0]
        return number
