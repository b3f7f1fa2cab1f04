"""The disk under a run: whether there is room on it, and what its failures mean."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from stratoscope.errors import StorageError, StorageFullError

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

RESERVE_BYTES: Final = 1 << 20
"""Kept free next to a shard, so that the ledger and the manifest can tell of it."""

GO_ON: Final = "Run the same command again to go on; what was committed stays"


def require_space(folder: Path, n_bytes: int) -> None:
    """Refuse to begin what would not fit.

    Raises
    ------
    StorageFullError
        If less than `n_bytes` and a reserve are free.
    """
    needed = n_bytes + RESERVE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageFullError(
            f"No space left for {folder}: the next file takes up to {needed:,} bytes and {free:,} are free; it was not "
            f"begun. Free {needed - free:,} bytes. {GO_ON}",
            errno=errno.ENOSPC,
        )


def disk_faults(path: Path, n_bytes: int | None = None) -> AbstractContextManager[None]:
    """Turn what the system reports about a file into an error that names it.

    Parameters
    ----------
    path
        What is written or read.
    n_bytes
        How much is to be written, where that is known.

    Raises
    ------
    StorageError
        Instead of any other `OSError`.
    """
    return faults(lambda error: storage_error(path, error.errno, error.strerror or str(error), n_bytes))


@contextmanager
def faults(told: Callable[[OSError], StorageError]) -> Iterator[None]:
    """Raise what tells of an `OSError` instead of it; a `StorageError` tells already."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise told(error) from error


def storage_error(path: Path, number: int | None, reason: str, n_bytes: int | None = None) -> StorageError:
    """Build the error for a failure of the disk.

    Parameters
    ----------
    number
        The system's, or ``None``.
    reason
        In the system's words.
    """
    if number in FULL:
        needed = "" if n_bytes is None else f"{n_bytes:,} bytes are needed, "
        return StorageFullError(f"{path}: {reason}; {needed}{_free(path)}. Free some space. {GO_ON}", errno=number)
    return StorageError(f"{path}: {reason}; it is not used any further. Check the disk. {GO_ON}", errno=number)


def _free(path: Path) -> str:
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    return f"{shutil.disk_usage(folder).free:,} bytes are free"
