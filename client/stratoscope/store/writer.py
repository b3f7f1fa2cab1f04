"""Writing a run: one writer, one commit point per shard."""

import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyarrow as pa

from stratoscope.captures import to_json
from stratoscope.errors import RunError, StimulusChangedError
from stratoscope.stimuli.table import StimulusTable
from stratoscope.store.check import check_shard
from stratoscope.store.content import Content
from stratoscope.store.disk import disk_faults, require_space
from stratoscope.store.durable import sync_file, sync_folder, temporary_path
from stratoscope.store.ledger import Ledger, ShardRecord, StimulusRecord, now
from stratoscope.store.lock import RunLock
from stratoscope.store.manifest import installed_versions, write_manifest
from stratoscope.store.measurement import Measurement
from stratoscope.store.orphans import settle_orphans
from stratoscope.store.recovery import recover
from stratoscope.store.shard import (
    FOLDER,
    NAME_DIGITS,
    SUFFIX,
    file_sha256,
    placements,
    shard_content,
    with_contents,
    write_shard,
)
from stratoscope_wire.request import Dtype

logger = logging.getLogger(__name__)

MANIFEST_SHARE: Final = 50
"""While shards are written, at most one part in so many of the time goes into the manifest."""


class RunWriter:
    """Writes to a run; use it as a context manager, from one thread.

    Opening takes the lock, puts the folder in order after a crash, and refuses a run of another model or capture.

    Parameters
    ----------
    run_dir
        Folder of the run; made if it does not exist.
    measurement
        What is measured.

    Raises
    ------
    RunLockedError
        At once, if another process writes to the run.
    FingerprintChangedError, CaptureChangedError
        If the run holds something else.
    ShardDamagedError
        If a committed file is missing or short.
    StorageError
        If the disk is full or fails.
    """

    def __init__(self, run_dir: str | Path, measurement: Measurement) -> None:
        self.run_dir = Path(run_dir)
        self.measurement = measurement
        _make_folder(self.run_dir)
        self._lock = RunLock(self.run_dir)
        self._manifest_due = 0.0
        self._is_first = True
        try:
            self._prepare()
            self._ledger = Ledger(self.run_dir, writable=True)
            try:
                self._begin()
            except BaseException:
                self._ledger.close()
                raise
        except BaseException:
            self._lock.release()
            raise

    def _prepare(self) -> None:
        """Do what comes before the ledger is opened, under the lock."""

    def _recover(self) -> None:
        recover(self.run_dir, self._ledger)

    def _begin(self) -> None:
        held = self._ledger.measurement()
        if held is not None:
            held.check_same(self.measurement, self.run_dir)
        self._recover()
        if held is None:
            self._ledger.begin(self.measurement, installed_versions())
        with disk_faults(self.run_dir):
            sync_folder(self.run_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the ledger and let go of the lock."""
        self._ledger.close()
        self._lock.release()

    def enter(self, table: StimulusTable) -> None:
        """Enter the table's stimuli; labels, groups and order of known ones are brought up to date.

        Stimuli without activations may be changed or left out freely. Only then are orphans adopted, so that a
        changed stimulus is never given what was measured for its former content.

        Raises
        ------
        StimulusChangedError
            If a committed stimulus has other content now, or is no longer in the table; nothing is then changed.
        """
        with self._ledger.transaction():
            records = self._ledger.stimuli()
            _check_unchanged([record for record in records if record.state == "done"], table, self.run_dir)
            known = set(table.ids)
            self._ledger.forget(record.id for record in records if record.id not in known)
            contents = zip(table.stimuli, table.content_hashes, table.field_rows(), strict=True)
            self._ledger.enter(
                (stimulus.id, position, digest, to_json(stimulus).decode(), json.dumps(fields, ensure_ascii=False))
                for position, (stimulus, digest, fields) in enumerate(contents)
            )
        settle_orphans(self.run_dir, self._ledger, self.measurement)

    def stimuli(self) -> list[StimulusRecord]:
        """Return what the ledger says of every stimulus, in order."""
        return self._ledger.stimuli()

    def commit(self, batches: Sequence[tuple[pa.RecordBatch, Dtype]]) -> ShardRecord:
        """Commit verified batches as one shard. Once this returns, they survive a power failure.

        Parameters
        ----------
        batches
            Each with the dtype it came in; every stimulus in them complete and not yet committed.

        Raises
        ------
        StorageError
            If the disk is full or fails; no half-written shard is then left, and nothing is entered.
        RunError
            If a stimulus is unknown or already committed.
        """
        content = shard_content(batches, self.measurement)
        found = placements(content.keys)
        if len({place.id for place in found}) != len(found):
            raise RunError("the rows of a stimulus are not adjacent, or it came twice; nothing was committed")
        hashes = self._ledger.content_hashes([place.id for place in found])
        content = with_contents(content, ((place.id, hashes.get(place.id, "")) for place in found))
        folder = self.run_dir / FOLDER
        with disk_faults(folder, content.nbytes):
            require_space(folder, content.nbytes)
            record = self._write(content, len(found), folder)
        self._ledger.commit_shard(record, found)
        facts = {"run": str(self.run_dir), "shard": record.name, "stimuli": record.stimuli, "bytes": record.bytes}
        logger.info("committed %s with %d stimuli", record.name, record.stimuli, extra={"facts": facts})
        return record

    def note_failures(self, ids: Sequence[str], error: str, *, final: bool) -> None:
        """Count a failed attempt at stimuli, and give them up if it is final."""
        self._ledger.note_failures(ids, error, final=final)

    def write_manifest(self, *, at_leisure: bool = False) -> None:
        """Bring ``manifest.json`` up to date.

        Parameters
        ----------
        at_leisure
            Whether it may stay as it is for now. It lists all shards and counts all stimuli: once for each shard, that
            would cost a large run more than its data.
        """
        began = time.monotonic()
        if at_leisure and began < self._manifest_due:
            return
        write_manifest(self.run_dir, self._ledger)
        ended = time.monotonic()
        self._manifest_due = ended + MANIFEST_SHARE * (ended - began)

    def _write(self, content: Content, n_stimuli: int, folder: Path) -> ShardRecord:
        temporary = temporary_path(folder)
        try:
            write_shard(content, temporary)
            sync_file(temporary)
            with ThreadPoolExecutor(1) as pool:
                hashed = pool.submit(file_sha256, temporary)
                check_shard(content, temporary, by_arrow=self._is_first)
                digest = hashed.result()
            self._is_first = False
            n_bytes = temporary.stat().st_size
            name = f"{digest[:NAME_DIGITS]}{SUFFIX}"
            os.replace(temporary, folder / name)  # noqa: PTH105
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(folder)
        return ShardRecord(name, digest, n_bytes, content.keys.num_rows, n_stimuli, now())


def _make_folder(run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise RunError(f"{run_dir} is a file; name a folder for the run")
    missing = [folder for folder in (run_dir, *run_dir.absolute().parents) if not folder.exists()]
    with disk_faults(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        # Every new name in the path, or a power failure may take the run away with a folder above it.
        for folder in [*missing, run_dir]:
            sync_folder(folder.absolute().parent)


def _check_unchanged(committed: Sequence[StimulusRecord], table: StimulusTable, run_dir: Path) -> None:
    wanted = dict(zip(table.ids, table.content_hashes, strict=True))
    gone = [record.id for record in committed if record.id not in wanted]
    if gone:
        raise StimulusChangedError(
            f"the run {run_dir} holds {len(gone)} stimuli that the table lacks, the first is {gone[0]!r}; put them "
            "back, or use another run folder"
        )
    changed = [record.id for record in committed if record.content_hash != wanted[record.id]]
    if changed:
        raise StimulusChangedError(
            f"{len(changed)} stimuli have other content than in the run {run_dir}, the first is {changed[0]!r}; give "
            "them new ids, or use another run folder"
        )
