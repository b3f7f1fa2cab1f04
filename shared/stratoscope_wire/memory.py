"""Memory for what arrives, used again once nobody looks at it any more.

A page of memory that is new costs more than receiving, checking and copying what goes into it.
"""

import weakref
from typing import Final

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

STEP_BYTES: Final = 1 << 20
DEFAULT_KEPT_BYTES: Final = 128 << 20
"""Two answers of the size that a collection aims at, and their framing, twice."""


class MessageMemory:
    """Gives memory to messages. Safe to share between threads.

    What is given is held by the buffer made of it; once the last batch, array or view that needs the buffer is gone, it
    is given again.

    Parameters
    ----------
    kept_bytes
        Most that is kept while nobody needs it.
    """

    def __init__(self, kept_bytes: int = DEFAULT_KEPT_BYTES) -> None:
        self._most_idle = kept_bytes // STEP_BYTES
        self._idle: dict[int, list[Bytes]] = {}
        self._leases: dict[int, weakref.ref[Bytes]] = {}

    def take(self, n_bytes: int) -> Bytes:
        """Return memory of that length, with anything in it."""
        n_steps = -(-n_bytes // STEP_BYTES)
        if n_bytes < STEP_BYTES:
            return np.empty(n_bytes, np.uint8)
        idle = self._idle.setdefault(n_steps, [])
        try:
            whole = idle.pop()
        except IndexError:
            whole = np.empty(n_steps * STEP_BYTES, np.uint8)
        lease = whole[:n_bytes]
        key = id(lease)

        def end(_: weakref.ref[Bytes]) -> None:
            # No lock: this runs wherever the last view is let go of, and each step of it is atomic.
            self._leases.pop(key, None)
            if sum(size * len(those) for size, those in list(self._idle.items())) + n_steps <= self._most_idle:
                idle.append(whole)

        self._leases[key] = weakref.ref(lease, end)
        return lease
