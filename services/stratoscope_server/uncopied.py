"""Sending without copying: the parts of a batch go to the socket from where they lie.

h11 would join them, and asyncio (before Python 3.12) would copy twice whatever the socket does not take at once.
"""

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import h11

from stratoscope_wire.encoder import Piece

STATE_KEY: Final = "takes_pieces"
"""In the ASGI scope's ``state`` where the connection takes `Pieces` as a body."""

MAX_VECTORS: Final = 512
HANDED_BYTES: Final = 16 << 10
"""Given to asyncio when the socket is full, so that it tells when there is room again."""


class Pieces:
    """Parts of a body, one behind the other, as one thing with a length in bytes."""

    def __init__(self, parts: Sequence[Piece]) -> None:
        self.parts = parts
        self._n_bytes = sum(map(len, parts))

    def __len__(self) -> int:
        return self._n_bytes


class UncopiedConnection(h11.Connection):
    """h11's state of a connection, which frames `Pieces` without joining them."""

    def send(self, event: h11.Event) -> Pieces | bytes | None:  # type: ignore[override]
        """Return what is to be written for an event; `Pieces` for a body of them."""
        if not (isinstance(event, h11.Data) and isinstance(event.data, Pieces)):
            return super().send(event)
        around: Sequence[Any] = self.send_with_data_passthrough(event) or ()
        parts: list[Piece] = []
        for part in around:
            parts += part.parts if isinstance(part, Pieces) else [part]
        return Pieces(parts)


class UncopiedTransport:
    """An asyncio transport to which `Pieces` can be written.

    What the socket does not take stays where it is and goes out on `flush`, to be called when asyncio says that it has
    written everything. Whoever owns the memory must wait for that, as ASGI's `send` does before it takes more.

    Parameters
    ----------
    inner
        The transport itself; it must write to its socket as it is, without encryption.
    """

    def __init__(self, inner: asyncio.Transport) -> None:
        self._inner = inner
        self._rest: deque[memoryview] = deque()
        self._socket = inner.get_extra_info("socket")
        # So that asyncio tells whenever something is left, and again when nothing is.
        inner.set_write_buffer_limits(high=0)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._inner, name)

    @property
    def is_waiting(self) -> bool:
        """Whether something is still to be written."""
        return bool(self._rest)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes are not written yet."""
        return self._inner.get_write_buffer_size() + sum(map(len, self._rest))

    def write(self, data: bytes | Pieces) -> None:
        """Write, now or as soon as there is room."""
        if not isinstance(data, Pieces) and not self._rest:
            self._inner.write(data)
            return
        parts = data.parts if isinstance(data, Pieces) else [data]
        self._rest += [memoryview(part).cast("B") for part in parts if len(part)]
        self.flush()

    def flush(self) -> None:
        """Write as much as the socket takes."""
        while self._rest and not self._inner.get_write_buffer_size() and not self._inner.is_closing():
            if not self._send_some():
                self._inner.write(bytes(self._take(HANDED_BYTES)))

    def close(self) -> None:
        """Close once everything is written."""
        while self._rest:
            self._inner.write(bytes(self._take(HANDED_BYTES)))
        self._inner.close()

    def drop(self) -> None:
        """Let go of what can no longer be written."""
        self._rest.clear()

    def _send_some(self) -> bool:
        """Send; return whether the socket took all that it was offered."""
        offered = [*self._rest][:MAX_VECTORS]
        n_left = sum(map(len, offered))
        try:
            n_sent = os.writev(self._socket.fileno(), offered)
        except OSError:
            # Full, or broken: asyncio finds out which, and does what is to be done.
            return False
        n_left -= n_sent
        while n_sent:
            n_sent -= len(self._take(n_sent))
        return n_left == 0

    def _take(self, most: int) -> memoryview:
        first = self._rest.popleft()
        if len(first) > most:
            self._rest.appendleft(first[most:])
        return first[:most]
