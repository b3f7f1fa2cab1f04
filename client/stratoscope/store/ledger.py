"""The ledger: which stimulus is committed in which shard. It is the truth; everything else is derived or checked."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from stratoscope.errors import LedgerDamagedError, RunError, RunNotFoundError
from stratoscope.store.database import Database
from stratoscope.store.durable import temporary_path
from stratoscope.store.measurement import Measurement
from stratoscope_wire import Stimulus

FILE_NAME: Final = "ledger.sqlite"
LEDGER_VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    fingerprint TEXT NOT NULL,
    card TEXT NOT NULL,
    capture TEXT NOT NULL,
    columns TEXT NOT NULL,
    created TEXT NOT NULL,
    versions TEXT NOT NULL
) STRICT;
CREATE TABLE shard (
    name TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    stimuli INTEGER NOT NULL,
    created TEXT NOT NULL
) STRICT;
CREATE TABLE stimulus (
    id TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    content_hash TEXT NOT NULL,
    payload TEXT NOT NULL,
    fields TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'todo' CHECK (state IN ('todo', 'done', 'failed')),
    shard TEXT REFERENCES shard (name),
    row0 INTEGER,
    rows INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    CHECK ((state = 'done') = (shard IS NOT NULL AND row0 IS NOT NULL AND rows IS NOT NULL))
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class StimulusRecord:
    """A stimulus in the ledger."""

    id: str
    position: int
    content_hash: str
    payload: str
    fields: str
    state: str
    shard: str | None
    row0: int | None
    rows: int | None
    attempts: int
    error: str | None

    @property
    def stimulus(self) -> Stimulus:
        """What is sent for it."""
        return Stimulus.model_validate_json(self.payload)


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A shard in the ledger."""

    name: str
    sha256: str
    bytes: int
    rows: int
    stimuli: int
    created: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the rows of a stimulus lie in a shard."""

    id: str
    row0: int
    rows: int


class Ledger:
    """A connection to a run's ledger. Use it from one thread.

    Parameters
    ----------
    run_dir
        Folder of the run.
    writable
        Whether to create the ledger if there is none, and to allow changes.

    Raises
    ------
    RunNotFoundError
        If there is no ledger to read.
    RunError
        If it is not one of this version, is damaged, or the disk fails.
    """

    def __init__(self, run_dir: Path, *, writable: bool) -> None:
        path = run_dir / FILE_NAME
        if not writable and not path.is_file():
            raise RunNotFoundError(f"{run_dir} holds no run: there is no {FILE_NAME} in it")
        self._path = path
        self._db = Database(path, SCHEMA, LEDGER_VERSION, writable=writable)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Make what happens inside durable together, or not at all."""
        return self._db.transaction()

    def snapshot(self) -> AbstractContextManager[None]:
        """Read several things as they were at one moment."""
        return self._db.snapshot()

    def copy(self, folder: Path) -> bytes:
        """Return the ledger as it is now, as a file of its own; written to a folder on the way."""
        path = temporary_path(folder)
        try:
            self._db.execute("VACUUM INTO ?", [str(path)])
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)

    def check(self) -> None:
        """Read the whole ledger.

        Raises
        ------
        LedgerDamagedError
            If it is not sound.
        """
        faults = self._db.faults()
        if faults:
            raise LedgerDamagedError(
                f"the ledger {self._path} is damaged: {'; '.join(faults)}. Restore it from a copy, or collect into "
                "another folder"
            )

    def measurement(self) -> Measurement | None:
        """Return what the run measures, or ``None`` if it was not begun."""
        rows = self._db.rows("SELECT card, capture, columns FROM run")
        return Measurement.from_json(*rows[0]) if rows else None

    def provenance(self) -> dict[str, Any]:
        """Return when and with which versions the run was begun."""
        [(created, versions)] = self._db.rows("SELECT created, versions FROM run")
        return {"created": created, "versions": json.loads(versions)}

    def begin(self, measurement: Measurement, versions: dict[str, str]) -> None:
        """Enter what the run measures."""
        self._db.execute(
            "INSERT INTO run VALUES (1, ?, ?, ?, ?, ?, ?)",
            (
                measurement.card.fingerprint,
                measurement.card.model_dump_json(),
                measurement.capture_json(),
                measurement.columns_json(),
                now(),
                json.dumps(versions),
            ),
        )

    def stimuli(self) -> list[StimulusRecord]:
        """Return every stimulus, in order."""
        rows = self._db.rows(
            "SELECT id, position, content_hash, payload, fields, state, shard, row0, rows, attempts, error "
            "FROM stimulus ORDER BY position"
        )
        return [StimulusRecord(*row) for row in rows]

    def state_counts(self) -> dict[str, int]:
        """Return the number of stimuli in each state that occurs."""
        return dict(self._db.rows("SELECT state, count(*) FROM stimulus GROUP BY state"))

    def content_hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the hash of what is sent for stimuli, by id; without those that the ledger does not know."""
        query = "SELECT id, content_hash FROM stimulus WHERE id IN (SELECT value FROM json_each(?))"
        return dict(self._db.rows(query, [json.dumps(ids)]))

    def shards(self) -> list[ShardRecord]:
        """Return every shard, in the order of commits."""
        rows = self._db.rows("SELECT name, sha256, bytes, rows, stimuli, created FROM shard ORDER BY rowid")
        return [ShardRecord(*row) for row in rows]

    def enter(self, entries: Iterable[tuple[str, int, str, str, str]]) -> None:
        """Enter stimuli, each as ``(id, position, content_hash, payload, fields)``, or bring them up to date."""
        self._db.execute_all(
            "INSERT INTO stimulus (id, position, content_hash, payload, fields) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET position = excluded.position, content_hash = excluded.content_hash, "
            "payload = excluded.payload, fields = excluded.fields",
            entries,
        )

    def forget(self, ids: Iterable[str]) -> None:
        """Take out stimuli that were never committed."""
        self._db.execute_all("DELETE FROM stimulus WHERE id = ? AND state <> 'done'", [(name,) for name in ids])

    def commit_shard(self, shard: ShardRecord, placements: Sequence[Placement]) -> None:
        """Enter a shard and its stimuli: the moment from which they count.

        Raises
        ------
        RunError
            If a stimulus is unknown or already committed; nothing is then changed.
        """
        with self.transaction():
            self._db.execute(
                "INSERT INTO shard VALUES (?, ?, ?, ?, ?, ?)",
                (shard.name, shard.sha256, shard.bytes, shard.rows, shard.stimuli, shard.created),
            )
            changed = self._db.execute_all(
                "UPDATE stimulus SET state = 'done', shard = ?, row0 = ?, rows = ?, error = NULL "
                "WHERE id = ? AND state <> 'done'",
                [(shard.name, place.row0, place.rows, place.id) for place in placements],
            )
            if not changed == len(placements) == shard.stimuli:
                raise RunError(
                    f"shard {shard.name} holds {shard.stimuli} stimuli, of which {changed} were still missing in the "
                    "run; it was not committed"
                )

    def give_up_shards(self, reasons: Mapping[str, str]) -> None:
        """Forget shards, each with the reason, and set exactly their stimuli back to missing; all of it or nothing."""
        with self.transaction():
            self._db.execute_all(
                "UPDATE stimulus SET state = 'todo', shard = NULL, row0 = NULL, rows = NULL, error = ? WHERE shard = ?",
                [(reason, name) for name, reason in reasons.items()],
            )
            self._db.execute_all("DELETE FROM shard WHERE name = ?", [(name,) for name in reasons])

    def note_failures(self, ids: Sequence[str], error: str, *, final: bool) -> None:
        """Count a failed attempt at stimuli, and give them up if it is final."""
        with self.transaction():
            self._db.execute_all(
                "UPDATE stimulus SET attempts = attempts + 1, error = ?, state = ? WHERE id = ? AND state <> 'done'",
                [(error, "failed" if final else "todo", stimulus_id) for stimulus_id in ids],
            )


def now() -> str:
    """Return the time as it is written into ledgers."""
    return datetime.now(UTC).isoformat(timespec="seconds")
