"""Orphans: whole shards that a crash kept from the ledger. One that can prove what it is gets adopted.

A wrong adoption would be worse than fetching again, so everything is proved from the bytes: the file's name is their
hash, which was taken after they were read back; model, capture and schema are the run's; every stimulus in it is
complete, finite, still missing, and has the very content that the run has under its id now.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stratoscope.errors import ShardDamagedError
from stratoscope.store.asides import put_aside
from stratoscope.store.disk import disk_faults
from stratoscope.store.durable import sync_file, sync_folder
from stratoscope.store.ledger import Ledger, Placement, ShardRecord, StimulusRecord, now
from stratoscope.store.measurement import Measurement
from stratoscope.store.shard import (
    CAPTURE_KEY,
    CONTENTS_KEY,
    FINGERPRINT_KEY,
    FOLDER,
    KEY_NAMES,
    NAME_DIGITS,
    SUFFIX,
    contents_digest,
    placements,
    same_fields,
    shard_schema,
)
from stratoscope_wire.errors import StreamCorruptError
from stratoscope_wire.rows import StimulusRows

ORPHANS: Final = "orphans"

logger = logging.getLogger(__name__)


def settle_orphans(run_dir: Path, ledger: Ledger, measurement: Measurement) -> None:
    """Adopt every orphan that can prove what it is, and put the others aside.

    Raises
    ------
    StorageError
        If the disk fails.
    """
    folder = run_dir / FOLDER
    known = {record.name for record in ledger.shards()}
    for path in sorted(path for path in folder.glob(f"*{SUFFIX}") if path.name not in known):
        try:
            shard, found = prove_orphan(path, measurement, {record.id: record for record in ledger.stimuli()})
        except ShardDamagedError as doubt:
            aside = put_aside(path, folder / ORPHANS)
            logger.info("%s is not in the ledger and was put aside as %s: %s", path.name, aside, doubt)
            continue
        with disk_faults(path):
            sync_file(path)
            sync_folder(folder)
        ledger.commit_shard(shard, found)
        logger.info("%s, which a crash kept from the ledger, was adopted with %d stimuli", path.name, shard.stimuli)


def prove_orphan(
    path: Path, measurement: Measurement, records: Mapping[str, StimulusRecord]
) -> tuple[ShardRecord, list[Placement]]:
    """Return what the ledger is to say of a shard it does not know.

    Parameters
    ----------
    records
        What the ledger says of every stimulus, by id.

    Raises
    ------
    ShardDamagedError
        If anything about it is in doubt.
    """
    if path.is_symlink() or not path.is_file():
        raise ShardDamagedError("it is no regular file")
    try:
        # Read once: what is hashed is what is looked at.
        content = path.read_bytes()
    except OSError as error:
        raise ShardDamagedError(f"it cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    if path.name != f"{digest[:NAME_DIGITS]}{SUFFIX}":
        raise ShardDamagedError("its name is not the hash of its bytes")
    table = _table(content)
    _check_measurement(table.schema, measurement)
    found = placements(table)
    _check_stimuli(table, found, measurement, records)
    _check_values(table)
    return ShardRecord(path.name, digest, len(content), table.num_rows, len(found), now()), found


def _table(content: bytes) -> pa.Table:
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            table = file.read()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ShardDamagedError(f"it cannot be read: {error}") from None
    if table.num_rows == 0:
        raise ShardDamagedError("it is empty")
    return table


def _check_measurement(schema: pa.Schema, measurement: Measurement) -> None:
    expected = shard_schema(measurement)
    facts = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    if facts.get(FINGERPRINT_KEY) != measurement.card.fingerprint:
        raise ShardDamagedError(f"it holds rows of the model {facts.get(FINGERPRINT_KEY)}")
    try:
        capture = json.loads(facts.get(CAPTURE_KEY, ""))
        same = all(capture[name] == value for name, value in measurement.facts.items())
    except (ValueError, TypeError, KeyError):
        same = False
    if not same or not same_fields(schema, expected):
        raise ShardDamagedError("it holds another capture")


def _check_stimuli(
    table: pa.Table, found: list[Placement], measurement: Measurement, records: Mapping[str, StimulusRecord]
) -> None:
    ids = [place.id for place in found]
    if len(set(ids)) != len(ids):
        raise ShardDamagedError("the rows of a stimulus in it are not adjacent")
    for name in ids:
        if name not in records or records[name].state != "todo":
            raise ShardDamagedError(f"its stimulus {name!r} is not missing in the run")
    expected = contents_digest((name, records[name].content_hash) for name in ids)
    if (table.schema.metadata or {}).get(CONTENTS_KEY.encode(), b"").decode() != expected:
        raise ShardDamagedError("its stimuli have other content than in the run")
    keys = zip(*(table.column(name).to_pylist() for name in KEY_NAMES[1:]), strict=True)
    for place in found:
        rows = StimulusRows(place.id, measurement.capture.labels, records[place.id].stimulus.token_ids)
        try:
            for _ in range(place.rows):
                rows.add(*next(keys))
            rows.close()
        except StreamCorruptError as error:
            raise ShardDamagedError(str(error)) from None


def _check_values(table: pa.Table) -> None:
    for name in table.schema.names[len(KEY_NAMES) :]:
        for chunk in table.column(name).chunks:
            if not np.isfinite(np.from_dlpack(chunk.flatten())).all():
                raise ShardDamagedError(f"column {name} in it has a value that is not finite")
