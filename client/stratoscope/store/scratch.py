"""Scratch: memory that a thread uses again for one page after the other."""

import threading

import numpy as np
import numpy.typing as npt


class Scratch(threading.local):
    """Memory for each thread that asks. Given back to the system for every page, it would cost more than decoding."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Return this thread's memory; what was taken before is no longer the caller's."""
        if self._bytes.size < n_bytes:
            self._bytes = np.empty(n_bytes, np.uint8)
        return self._bytes[:n_bytes]
