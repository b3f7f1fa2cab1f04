"""The lock that makes sure of a single writer."""

import fcntl
import os
from pathlib import Path

from stratoscope.errors import RunLockedError, StorageError
from stratoscope.store.disk import disk_faults


class RunLock:
    """Holds ``run.lock`` for as long as a run is written to. The system lets go of it when the process dies.

    Parameters
    ----------
    run_dir
        Folder of the run.

    Raises
    ------
    RunLockedError
        At once, if another process holds it.
    StorageError
        If the disk fails.
    """

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / "run.lock"
        with disk_faults(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise RunLockedError(
                f"another process ({holder or 'unknown'}) is writing to the run {run_dir}; wait for it, or stop it"
            ) from None
        try:
            with disk_faults(path):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, f"pid {os.getpid()}".encode(), 0)
        except StorageError:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Let go of the lock."""
        os.close(self._descriptor)
