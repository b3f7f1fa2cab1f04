"""Putting files on disk so that they survive a crash: whole, or not at all."""

import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

TEMPORARY_SUFFIX: Final = ".tmp"


def temporary_path(folder: Path) -> Path:
    """Return a fresh name for a file that is not finished."""
    return folder / f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"


def sync_file(path: Path) -> None:
    """Make a file's contents durable."""
    with path.open("rb+") as file:
        _sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name and put it in place of `path` in one step.

    Raises
    ------
    OSError
        If it cannot be written; `path` is then as it was.
    """
    temporary = temporary_path(path.parent)
    try:
        with temporary.open("xb") as file:
            write(file)
        sync_file(temporary)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":
        # There fsync leaves the data in the drive's cache.
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)
