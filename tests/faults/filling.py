"""Filling a file system to its last byte."""

import errno
import os
from pathlib import Path
from typing import Final

FILLER: Final = "filler"


def fill(folder: Path) -> None:
    """Write a file until not a byte more fits."""
    descriptor = os.open(folder / FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for size in (1 << 20, 4096, 1):
        while _fits(descriptor, size):
            pass
    os.close(descriptor)


def _fits(descriptor: int, size: int) -> bool:
    try:
        return os.write(descriptor, bytes(size)) == size
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
