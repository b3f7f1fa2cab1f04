"""Cutting a stream into Arrow messages while its bytes arrive, each in memory of its own."""

from typing import Final

import pyarrow as pa

from stratoscope_wire.framing import PREFIX_BYTES, RECORD_BATCH, Due, body_bytes, check_packed, metadata_bytes
from stratoscope_wire.memory import MessageMemory

FIRST_BYTES: Final = 16 << 20
"""Memory taken for a message before any of its body has come; beyond that, never more than twice what has come."""


class MessageCutter:
    """Receives one message after another.

    Say with `filled` how much was written into `room`. What Arrow reads out of the memory of a message needs no copy,
    and the memory is given back message by message as soon as nothing needs it.

    Parameters
    ----------
    due
        What may come; to be changed between messages.
    memory
        Where messages lie.
    """

    def __init__(self, due: Due, memory: MessageMemory) -> None:
        self.due = due
        self._source = memory
        self._start = self._n_filled = self._n_due = self._n_metadata = 0
        self._begin()

    @property
    def room(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return self._view[self._n_filled :]

    @property
    def is_within(self) -> bool:
        """Whether a message has begun to come."""
        return self._n_filled > 0

    @property
    def started(self) -> bytes:
        """What has come of a message that is not whole."""
        return bytes(self._view[: self._n_filled])

    def filled(self, n_bytes: int) -> pa.Buffer | None:
        """Take so many bytes as written, and return the message if that was the last of it.

        The end-of-stream marker counts as a message.

        Raises
        ------
        StreamCorruptError
            If it is no message that may come now.
        """
        self._n_filled += n_bytes
        if self._n_filled < len(self._view):
            return None
        if self._n_filled == self._n_due:
            self._n_due += self._n_more()
            if self._n_filled == self._n_due:
                self._check_packed()
                whole = pa.py_buffer(self._memory)
                self._start += self._n_due
                self._begin()
                return whole
        self._grow()
        return None

    def _n_more(self) -> int:
        """Return what is due beyond what is known so far."""
        if self._n_filled == PREFIX_BYTES:
            self._n_metadata = metadata_bytes(self._view, self._start)
            return self._n_metadata
        if self._n_filled == PREFIX_BYTES + self._n_metadata:
            return body_bytes(self._view[PREFIX_BYTES:], self.due)
        return 0

    def _check_packed(self) -> None:
        if self.due.compression is not None and self.due.kind == RECORD_BATCH and self._n_metadata:
            body = PREFIX_BYTES + self._n_metadata
            check_packed(self._view[PREFIX_BYTES:body], self._view[body:], self.due)

    def _begin(self) -> None:
        self._n_filled = self._n_metadata = 0
        self._n_due = PREFIX_BYTES
        self._hold(PREFIX_BYTES)

    def _grow(self) -> None:
        n_held, held = self._n_filled, self._view
        self._hold(min(self._n_due, max(FIRST_BYTES, 2 * n_held)))
        self._view[:n_held] = held[:n_held]

    def _hold(self, n_bytes: int) -> None:
        self._memory = self._source.take(n_bytes)
        self._view = self._memory.data
