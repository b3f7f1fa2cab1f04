"""Putting a run folder in order after a crash, before anything is written to it."""

from pathlib import Path

from stratoscope.store.damage import require_whole
from stratoscope.store.disk import disk_faults
from stratoscope.store.durable import TEMPORARY_SUFFIX
from stratoscope.store.ledger import Ledger
from stratoscope.store.shard import FOLDER


def recover(run_dir: Path, ledger: Ledger) -> None:
    """Sweep unfinished files, and check that every shard of the ledger is there.

    Raises
    ------
    ShardDamagedError
        If a committed shard is missing or has another length.
    StorageError
        If the disk fails.
    """
    sweep(run_dir)
    require_whole(run_dir, ledger.stimuli(), ledger.shards())


def sweep(run_dir: Path) -> None:
    """Remove unfinished files.

    Raises
    ------
    StorageError
        If the disk fails.
    """
    folder = run_dir / FOLDER
    with disk_faults(folder):
        folder.mkdir(exist_ok=True)
        for path in [*folder.glob(f".*{TEMPORARY_SUFFIX}"), *run_dir.glob(f".*{TEMPORARY_SUFFIX}")]:
            path.unlink()
