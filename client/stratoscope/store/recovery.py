"""Putting a run folder in order after a crash, before anything is written to it."""

import os
from pathlib import Path
from typing import Final

from stratoscope.errors import ShardDamagedError
from stratoscope.store.durable import TEMPORARY_SUFFIX, sync_folder
from stratoscope.store.ledger import Ledger, ShardRecord
from stratoscope.store.shard import FOLDER, SUFFIX, file_sha256

ORPHANS: Final = "orphans"


def recover(run_dir: Path, ledger: Ledger) -> None:
    """Sweep unfinished files, move aside shards that the ledger does not know, check those that it knows.

    Raises
    ------
    ShardDamagedError
        If a committed shard is missing or has another length.
    """
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    for path in [*folder.glob(f".*{TEMPORARY_SUFFIX}"), *run_dir.glob(f".*{TEMPORARY_SUFFIX}")]:
        path.unlink()
    records = ledger.shards()
    known = {record.name for record in records}
    for path in [path for path in folder.glob(f"*{SUFFIX}") if path.name not in known]:
        _set_aside(path, folder / ORPHANS)
    faults = shard_faults(run_dir, records)
    if faults:
        raise ShardDamagedError(f"the run {run_dir} is damaged: {'; '.join(faults)}. Restore it from a copy")


def shard_faults(run_dir: Path, records: list[ShardRecord], *, contents: bool = False) -> list[str]:
    """List what is wrong with committed shards.

    Parameters
    ----------
    contents
        Whether to read every byte and compare its hash, instead of comparing lengths only.
    """
    faults = []
    for record in records:
        path = run_dir / FOLDER / record.name
        if not path.is_file():
            faults.append(f"shard {record.name} with {record.stimuli} stimuli is missing")
        elif path.stat().st_size != record.bytes:
            faults.append(f"shard {record.name} has {path.stat().st_size} bytes instead of {record.bytes}")
        elif contents and file_sha256(path) != record.sha256:
            faults.append(f"shard {record.name} was altered: its SHA-256 is not {record.sha256}")
    return faults


def _set_aside(path: Path, orphans: Path) -> None:
    # Never committed, so nothing is lost; kept all the same, for a person may want to know where it came from.
    orphans.mkdir(exist_ok=True)
    os.replace(path, orphans / path.name)  # noqa: PTH105
    sync_folder(path.parent)
