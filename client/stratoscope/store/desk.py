"""The desk: a local folder on which a run of an object store is written, one shard at a time."""

import hashlib
import json
import logging
import os
import platform
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import pyarrow as pa

from stratoscope.errors import RunError, RunLockedError
from stratoscope.stimuli.table import StimulusTable
from stratoscope.store.asides import put_aside
from stratoscope.store.damage import require_whole
from stratoscope.store.disk import disk_faults
from stratoscope.store.durable import replace_file
from stratoscope.store.ledger import FILE_NAME, ShardRecord, now
from stratoscope.store.manifest import FILE_NAME as MANIFEST
from stratoscope.store.measurement import Measurement
from stratoscope.store.objects import ObjectStore, is_url
from stratoscope.store.published import LEDGERS, epoch_of, ledger_name, ledger_names, read_ledger
from stratoscope.store.recovery import sweep
from stratoscope.store.shard import FOLDER, SUFFIX
from stratoscope.store.writer import RunWriter
from stratoscope_wire.request import Dtype

WRITERS: Final = "writers"
SUPERSEDED: Final = "superseded"
KEPT_LEDGERS: Final = 2
"""Snapshots left in the store: a reader may still be fetching the last but one."""

SHARDS_TO_LEDGER: Final = 8
"""The ledger is uploaded once the shards that it alone names have so many times its bytes."""

logger = logging.getLogger(__name__)


def default_desk(store: ObjectStore) -> Path:
    """Return the folder in the user's cache that belongs to an address."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "stratoscope" / "desks" / hashlib.sha256(store.url.encode()).hexdigest()[:24]


class DeskWriter(RunWriter):
    """Writes to a run in an object store; used as `RunWriter` is.

    A shard is committed on the desk, uploaded, read back, named by a ledger that is uploaded after it, perhaps after
    more shards, and only then removed from the desk.

    Parameters
    ----------
    url
        Address of the run.
    measurement
        What is measured.
    desk
        Local folder; by default one in the user's cache.
    take_over
        Whether to end the turn of a writer on another desk.

    Raises
    ------
    RunLockedError
        If another desk writes to the run.
    StorageError
        If the store or the disk fails.
    """

    def __init__(self, url: str, measurement: Measurement, *, desk: Path | None, take_over: bool) -> None:
        self.store = ObjectStore.at(url)
        self._take_over = take_over
        self._claim = self.store.path(WRITERS)
        self._known: list[str] = []
        self._epoch = self._number = 0
        self._waiting: list[ShardRecord] = []
        self._uploaded: set[str] = set()
        self._ledger_bytes = 0
        super().__init__(desk or default_desk(self.store), measurement)

    def _prepare(self) -> None:
        self._take_turn()
        self._known = ledger_names(self.store)
        if self._known:
            self._epoch = epoch_of(self._known[-1]) + 1
            self._fetch_ledger(self._known[-1])

    def _take_turn(self) -> None:
        """Claim the run. Of two that claim at once at least one sees the other, so never do both go on."""
        identity = self.run_dir / "desk.id"
        with disk_faults(identity):
            if not identity.exists():
                replace_file(identity, lambda file: file.write(uuid.uuid4().hex.encode()))
            name = f"{identity.read_text(encoding='ascii')}.json"
        self._claim = self.store.path(WRITERS, name)
        content = {"host": platform.node(), "pid": os.getpid(), "since": now()}
        self._claim.write_bytes(json.dumps(content).encode())
        others = sorted(set(self.store.list(WRITERS)) - {name})
        if others and not self._take_over:
            held = self.store.path(WRITERS, others[0]).read_bytes().decode("utf-8", "replace")[:200]
            self._claim.unlink()
            raise RunLockedError(
                f"another desk is writing to the run {self.store.url}, or was killed while it did: {held}. Wait for "
                "it, run its command again there, or take over with --take-over"
            )
        for other in others:
            self.store.path(WRITERS, other).unlink()

    def _fetch_ledger(self, name: str) -> None:
        """Bring the store's ledger here, unless this desk's own is that one or goes on from it."""
        known = self.run_dir / LEDGERS / name
        if known.is_file():
            return
        content = read_ledger(self.store, name)
        with disk_faults(known):
            for path in self.run_dir.glob(f"{FILE_NAME}*"):
                put_aside(path, self.run_dir / SUPERSEDED)
            known.parent.mkdir(exist_ok=True)
            replace_file(self.run_dir / FILE_NAME, lambda file: file.write(content))
            replace_file(known, lambda file: file.write(content))

    def _recover(self) -> None:
        sweep(self.run_dir)
        self._find_waiting()
        here = {shard.name for shard in self._waiting}
        away = [shard for shard in self._ledger.shards() if shard.name not in here]
        names = {shard.name for shard in away}
        listed = self.store.list(FOLDER)
        self.store.sizes.update({f"{FOLDER}/{name}": listed[name] for name in names & listed.keys()})
        require_whole(self.store.path(), [one for one in self._ledger.stimuli() if one.shard in names], away)

    def _find_waiting(self) -> None:
        """Look for the shards on the desk, once: for every shard anew it would cost the square of their number."""
        self._waiting = [shard for shard in self._ledger.shards() if self._here(shard.name).is_file()]

    def enter(self, table: StimulusTable) -> None:
        """Enter the table's stimuli; as `RunWriter.enter`."""
        super().enter(table)
        self._find_waiting()

    def commit(self, batches: Sequence[tuple[pa.RecordBatch, Dtype]]) -> ShardRecord:
        """Commit verified batches as one shard on the desk; as `RunWriter.commit`."""
        record = super().commit(batches)
        self._waiting.append(record)
        return record

    def write_manifest(self, *, at_leisure: bool = False) -> None:
        """Upload what is on the desk, then the ledger that names it, then the manifest; then clear the desk.

        Parameters
        ----------
        at_leisure
            Whether the ledger may wait, and with it the desk keep its shards, until these have several times its size:
            once for each shard, it would cost a large run more than its data.

        Raises
        ------
        RunLockedError
            If another desk took over.
        StorageError
            If an object cannot be written, or does not read back; the desk keeps what it has.
        """
        super().write_manifest(at_leisure=at_leisure)
        self._require_turn()
        for shard in self._waiting:
            if shard.name not in self._uploaded:
                self.store.path(FOLDER, shard.name).upload(self._here(shard.name), shard.sha256)
                self._uploaded.add(shard.name)
        if at_leisure and sum(shard.bytes for shard in self._waiting) < SHARDS_TO_LEDGER * self._ledger_bytes:
            return
        self._publish()
        with disk_faults(self.run_dir):
            for shard in self._waiting:
                self._here(shard.name).unlink()
        self._waiting.clear()
        self._uploaded.clear()

    def _require_turn(self) -> None:
        if not self._claim.is_file():
            raise RunLockedError(f"another desk took over the run {self.store.url}; this one stops. Go on there")

    def _publish(self) -> None:
        folder = self.run_dir / LEDGERS
        with disk_faults(folder):
            folder.mkdir(exist_ok=True)
            content = self._ledger.copy(folder)
            name = ledger_name(self._epoch, self._number, content)
            replace_file(folder / name, lambda file: file.write(content))
        self._require_turn()
        self.store.path(LEDGERS, name).upload(folder / name, hashlib.sha256(content).hexdigest())
        self.store.path(MANIFEST).write_bytes((self.run_dir / MANIFEST).read_bytes())
        self._number += 1
        self._ledger_bytes = len(content)
        self._known.append(name)
        while len(self._known) > KEPT_LEDGERS:
            self.store.path(LEDGERS, self._known.pop(0)).unlink()
        with disk_faults(folder):
            for path in folder.glob("*.sqlite"):
                if path.name not in self._known:
                    path.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.write_manifest()
        finally:
            super().__exit__(kind, error, trace)

    def close(self) -> None:
        """Close the ledger, end the turn, and let go of the lock."""
        try:
            if self._claim.key != WRITERS and self._claim.is_file():
                self._claim.unlink()
        except RunError as error:
            logger.warning("the claim stays, and this desk takes it up again: %s", error)
        finally:
            super().close()

    def _here(self, name: str) -> Path:
        assert name.endswith(SUFFIX)
        return self.run_dir / FOLDER / name


def open_writer(run_dir: str | Path, measurement: Measurement, *, desk: Path | None, take_over: bool) -> RunWriter:
    """Open a run for writing, in a folder or by its address."""
    if is_url(run_dir):
        return DeskWriter(str(run_dir), measurement, desk=desk, take_over=take_over)
    return RunWriter(run_dir, measurement)
