"""The arena: anonymous shared memory, and the regions in it that wait for rows or for their reader.

The memory is a memfd: it has no name in any file system, so that nothing of it is left after any kind of exit, a killed
process included, and ``/dev/shm`` may be small.
"""

import asyncio
import mmap
import os
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from stratoscope_server.engines.vllm.layout import ALIGNMENT, aligned

# NaN in every type of the wire: a value that nobody wrote is then refused as not finite before it is sent.
_UNWRITTEN = 0xFF


class Arena:
    """Hands out regions of one block of shared memory, first come, first served.

    Not for use from several threads: it belongs to one event loop.

    Parameters
    ----------
    n_bytes
        Its size.

    Attributes
    ----------
    fd
        File descriptor of the memory.
    n_bytes
        Size, a multiple of 64.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = _region_size(n_bytes)
        self.fd = os.memfd_create("stratoscope", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.n_bytes)
        self._map = mmap.mmap(self.fd, self.n_bytes)
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self._free: list[tuple[int, int]] = [(0, self.n_bytes)]
        self._taken: dict[int, int] = {}
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    @property
    def used_bytes(self) -> int:
        """Bytes handed out."""
        return sum(self._taken.values())

    async def reserve(self, n_bytes: int) -> int:
        """Wait for room and return the offset of a region, all of whose values are not a number.

        Raises
        ------
        ValueError
            If the arena is smaller than that.
        """
        size = _region_size(n_bytes)
        if size > self.n_bytes:
            raise ValueError(f"{size} bytes were asked of an arena of {self.n_bytes}")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, future))
        self._serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(future.result())
            self._serve()
            raise

    def release(self, offset: int) -> None:
        """Take a region back. Nobody may write to it any more."""
        size = self._taken.pop(offset)
        self._free.append((offset, size))
        self._free.sort()
        merged: list[tuple[int, int]] = []
        for begin, length in self._free:
            if merged and sum(merged[-1]) == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((begin, length))
        self._free = merged
        self._serve()

    def view(self, offset: int, n_values: int, kind: type[np.generic]) -> npt.NDArray[Any]:
        """Return values of a region without copying them."""
        size = n_values * np.dtype(kind).itemsize
        return self._bytes[offset : offset + size].view(kind)

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last process that maps it lets it go."""
        os.close(self.fd)

    def _serve(self) -> None:
        while self._waiting:
            size, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            found = next((index for index, (_, length) in enumerate(self._free) if length >= size), None)
            if found is None:
                return
            offset, length = self._free.pop(found)
            if length > size:
                self._free.insert(found, (offset + size, length - size))
            self._taken[offset] = size
            self._bytes[offset : offset + size] = _UNWRITTEN
            self._waiting.popleft()
            future.set_result(offset)


def _region_size(n_bytes: int) -> int:
    return max(ALIGNMENT, aligned(n_bytes))
