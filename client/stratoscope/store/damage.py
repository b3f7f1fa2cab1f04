"""Damage: committed shards that are missing, altered or not what the ledger says, and the stimuli in them."""

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from stratoscope.errors import ShardDamagedError, StorageError
from stratoscope.store.ledger import ShardRecord, StimulusRecord
from stratoscope.store.objects import RunPath, faults_of
from stratoscope.store.shard import FOLDER, file_sha256, read_keys


@dataclass(frozen=True, slots=True)
class Damage:
    """A committed shard that cannot be relied upon.

    Attributes
    ----------
    shard
        Name of its file.
    fault
        What is wrong, as a sentence.
    stimulus_ids
        What lies in it, and nowhere else.
    """

    shard: str
    fault: str
    stimulus_ids: tuple[str, ...]


def find_damage(
    run_dir: RunPath,
    records: Sequence[StimulusRecord],
    shards: Sequence[ShardRecord],
    *,
    fingerprint: str | None = None,
) -> list[Damage]:
    """List the shards of a run that are damaged.

    Parameters
    ----------
    records, shards
        What the ledger says.
    fingerprint
        Of the run's model: reads every byte, and compares hash, model and rows. Without it only presence and length
        are looked at.

    Raises
    ------
    StorageError
        If the disk fails.
    """
    placed = records_by_shard(records, shards)
    damages = []
    for shard in shards:
        path = run_dir / FOLDER / shard.name
        try:
            with faults_of(path):
                fault = _outside_fault(path, shard)
                if fault is None and fingerprint is not None:
                    with _at_hand(path) as local:
                        fault = _inside_fault(local, shard, fingerprint, placed[shard.name])
        except StorageError as error:
            # A bad place on the disk damages one shard; anything else, such as a missing permission, damages none.
            if error.errno != errno.EIO:
                raise
            fault = f"shard {shard.name} cannot be read: {error}"
        if fault is not None:
            damages.append(Damage(shard.name, fault, tuple(record.id for record in placed[shard.name])))
    return damages


def require_whole(run_dir: RunPath, records: Sequence[StimulusRecord], shards: Sequence[ShardRecord]) -> None:
    """Refuse a run of which a committed file is missing or has another length.

    Raises
    ------
    ShardDamagedError
        Saying what is wrong and how to mend it.
    """
    damages = find_damage(run_dir, records, shards)
    if damages:
        n_stimuli = sum(len(damage.stimulus_ids) for damage in damages)
        raise ShardDamagedError(
            f"the run {run_dir} is damaged, {n_stimuli} of its {len(records)} stimuli cannot be relied upon: "
            f"{'; '.join(damage.fault for damage in damages)}. `stratoscope verify {run_dir} --repair` sets exactly "
            "these back to missing, and the same collect command then fetches them again; or restore the files from "
            "a copy"
        )


def records_by_shard(
    records: Sequence[StimulusRecord], shards: Sequence[ShardRecord]
) -> dict[str, list[StimulusRecord]]:
    """Return the stimuli in each shard, in the order of their rows."""
    placed: dict[str, list[StimulusRecord]] = {shard.name: [] for shard in shards}
    for record in records:
        if record.shard is not None:
            placed[record.shard].append(record)
    return {name: sorted(held, key=lambda record: record.row0 or 0) for name, held in placed.items()}


def checked_keys(
    run_dir: RunPath, fingerprint: str, placed: Mapping[str, Sequence[StimulusRecord]]
) -> Iterator[pa.Table]:
    """Read the key columns of shards one by one, and hold them against the ledger.

    Raises
    ------
    ShardDamagedError
        If a shard cannot be read, holds another model's rows, or other rows than the ledger says.
    """
    for name, records in placed.items():
        keys = read_keys(run_dir / FOLDER / name, fingerprint)
        if keys.column("stimulus_id").to_pylist() != list(_ids_of_rows(records)):
            raise ShardDamagedError(f"the rows of shard {name} are not those that the ledger has for it")
        yield keys


def _outside_fault(path: RunPath, shard: ShardRecord) -> str | None:
    if not path.is_file():
        return f"shard {shard.name} with {shard.stimuli} stimuli is missing"
    if path.stat().st_size != shard.bytes:
        return f"shard {shard.name} has {path.stat().st_size} bytes instead of {shard.bytes}"
    return None


@contextmanager
def _at_hand(path: RunPath) -> Iterator[Path]:
    # What is fetched whole and then judged cannot be called damaged because of the network.
    if isinstance(path, Path):
        yield path
        return
    with path.fetched() as local:
        yield local


def _inside_fault(path: Path, shard: ShardRecord, fingerprint: str, records: Sequence[StimulusRecord]) -> str | None:
    if file_sha256(path) != shard.sha256:
        return f"shard {shard.name} was altered: its SHA-256 is not {shard.sha256}"
    try:
        [keys] = checked_keys(path.parent.parent, fingerprint, {shard.name: records})
    except ShardDamagedError as error:
        return str(error)
    return None if keys.num_rows == shard.rows else f"shard {shard.name} has not the {shard.rows} rows of the ledger"


def _ids_of_rows(records: Sequence[StimulusRecord]) -> Iterator[str]:
    row = 0
    for record in records:
        if record.row0 != row:
            raise ShardDamagedError(
                f"the ledger has a gap before the rows of stimulus {record.id!r} in shard {record.shard}"
            )
        row += record.rows or 0
        yield from [record.id] * (record.rows or 0)
