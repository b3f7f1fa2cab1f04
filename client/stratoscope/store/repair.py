"""Verifying a run, and repairing it by giving up what is damaged so that it is fetched again."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stratoscope.errors import ConfigurationError, RunNotFoundError
from stratoscope.store.asides import put_aside
from stratoscope.store.damage import Damage, find_damage
from stratoscope.store.ledger import Ledger
from stratoscope.store.lock import RunLock
from stratoscope.store.manifest import write_manifest
from stratoscope.store.objects import RunPath, is_url
from stratoscope.store.published import opened_ledger
from stratoscope.store.shard import FOLDER

DAMAGED: Final = "damaged"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in a run.

    Attributes
    ----------
    n_stimuli, n_committed, n_shards
        Of the whole run; damaged ones count as committed.
    damages
        Shards that cannot be relied upon; empty if all is well.
    """

    n_stimuli: int
    n_committed: int
    n_shards: int
    damages: tuple[Damage, ...]


def verify(run_dir: str | Path) -> Verdict:
    """Read every byte of a run and hold it against the ledger. Changes nothing.

    Raises
    ------
    RunNotFoundError
        If there is none.
    LedgerDamagedError
        If the ledger itself is damaged.
    StorageError
        If the disk fails.
    """
    with opened_ledger(run_dir) as (place, ledger):
        return _verdict(place, ledger)


def repair(run_dir: str | Path) -> Verdict:
    """Put damaged shards aside and set exactly their stimuli back to missing; collecting again fetches these.

    A damaged file is moved to ``shards/damaged``, never deleted.

    Returns
    -------
    Verdict
        What was found before.

    Raises
    ------
    RunLockedError
        At once, if another process writes to the run.
    RunNotFoundError, LedgerDamagedError, StorageError
        As `verify` does.
    """
    if is_url(run_dir):
        raise ConfigurationError(
            "a run in an object store is not repaired in place: put the objects that `stratoscope verify` names back "
            "from a copy, or copy the run into a folder, with its last ledger as ledger.sqlite, and repair it there"
        )
    folder = Path(run_dir)
    Ledger(folder, writable=False).close()
    lock = RunLock(folder)
    try:
        ledger = Ledger(folder, writable=True)
        try:
            verdict = _verdict(folder, ledger)
            if verdict.damages:
                _give_up(folder, ledger, verdict.damages)
        finally:
            ledger.close()
    finally:
        lock.release()
    return verdict


def _verdict(run_dir: RunPath, ledger: Ledger) -> Verdict:
    ledger.check()
    with ledger.snapshot():
        measurement, records, shards = ledger.measurement(), ledger.stimuli(), ledger.shards()
    if measurement is None:
        raise RunNotFoundError(f"the run {run_dir} was never begun; collect into it first")
    damages = find_damage(run_dir, records, shards, fingerprint=measurement.card.fingerprint)
    n_committed = sum(record.state == "done" for record in records)
    return Verdict(len(records), n_committed, len(shards), tuple(damages))


def _give_up(run_dir: Path, ledger: Ledger, damages: tuple[Damage, ...]) -> None:
    # Files first: if this ends half-way, a shard is missing, which is found again; a damaged one is never taken back.
    for damage in damages:
        path = run_dir / FOLDER / damage.shard
        if os.path.lexists(path):
            put_aside(path, run_dir / FOLDER / DAMAGED)
    ledger.give_up_shards({damage.shard: damage.fault for damage in damages})
    write_manifest(run_dir, ledger)
