"""Sources: where the bytes of a shard's pages are taken from, into memory that is used again."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stratoscope.store.objects import ObjectPath, RunPath

Bytes = npt.NDArray[np.uint8]


class Source(Protocol):
    """Bytes of a shard."""

    def read(self, place: int, out: Bytes) -> None:
        """Fill memory with the bytes that begin at a place of the shard.

        Raises
        ------
        EOFError
            If there are not so many.
        OSError
            If the disk fails.
        """


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file, of which each thread reads only what it needs next.

    It is not mapped: a disk that fails under a mapping ends the process.
    """

    path: Path

    def read(self, place: int, out: Bytes) -> None:
        """Fill memory with the bytes at a place; raises as `Source.read`."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            n_read = os.preadv(descriptor, [out.data], place)
        finally:
            os.close(descriptor)
        if n_read < len(out):
            raise EOFError(f"the file ends {len(out) - n_read} bytes too early")


@dataclass(frozen=True, slots=True)
class FetchedSource:
    """Part of an object, fetched at once: each request to a store takes long."""

    start: int
    content: Bytes

    def read(self, place: int, out: Bytes) -> None:
        """Fill memory with the bytes at a place; raises as `Source.read`."""
        found = self.content[place - self.start : place - self.start + len(out)]
        if len(found) < len(out):
            raise EOFError(f"the object ends {len(out) - len(found)} bytes too early")
        np.copyto(out, found)


def source_of(path: RunPath, start: int, n_bytes: int) -> Source:
    """Return a source of the given part of a shard.

    Raises
    ------
    OSError
        If a part of an object cannot be fetched.
    """
    if not isinstance(path, ObjectPath):
        return FileSource(path)
    with path.open() as file:
        file.seek(start)
        return FetchedSource(start, np.frombuffer(file.read_buffer(n_bytes), np.uint8))
