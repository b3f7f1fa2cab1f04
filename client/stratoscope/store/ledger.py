"""The ledger: which stimulus is committed in which shard. It is the truth; everything else is derived or checked."""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from stratoscope.errors import RunError, RunNotFoundError
from stratoscope.store.filesystem import is_on_network
from stratoscope.store.measurement import Measurement
from stratoscope_wire import Stimulus

FILE_NAME: Final = "ledger.sqlite"
LEDGER_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 30.0

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
        If it is not one of this version.
    """

    def __init__(self, run_dir: Path, *, writable: bool) -> None:
        path = run_dir / FILE_NAME
        if not writable and not path.is_file():
            raise RunNotFoundError(f"{run_dir} holds no run: there is no {FILE_NAME} in it")
        try:
            self._db = sqlite3.connect(
                _uri(path, writable=writable), uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
            )
            self._prepare(run_dir, writable=writable)
        except sqlite3.DatabaseError as error:
            raise RunError(f"{path} cannot be used as a ledger: {error}") from error

    def _prepare(self, run_dir: Path, *, writable: bool) -> None:
        self._db.execute("PRAGMA foreign_keys = ON")
        if writable:
            self._db.execute(f"PRAGMA journal_mode = {'DELETE' if is_on_network(run_dir) else 'WAL'}")
            self._db.execute("PRAGMA synchronous = FULL")
        else:
            self._db.execute("PRAGMA query_only = ON")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and writable:
            with self.transaction():
                for statement in SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {LEDGER_VERSION}")
        elif version != LEDGER_VERSION:
            raise RunError(f"the ledger has version {version}; this client understands version {LEDGER_VERSION}")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what happens inside durable together, or not at all.

        Raises
        ------
        RunError
            If the ledger cannot be written, for example because the disk is full.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise RunError(f"the ledger could not be written: {error}") from error
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read several things as they were at one moment."""
        self._db.execute("BEGIN DEFERRED")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def measurement(self) -> Measurement | None:
        """Return what the run measures, or ``None`` if it was not begun."""
        row = self._db.execute("SELECT card, capture, columns FROM run").fetchone()
        return None if row is None else Measurement.from_json(*row)

    def provenance(self) -> dict[str, Any]:
        """Return when and with which versions the run was begun."""
        created, versions = self._db.execute("SELECT created, versions FROM run").fetchone()
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
        rows = self._db.execute(
            "SELECT id, position, content_hash, payload, fields, state, shard, row0, rows, attempts, error "
            "FROM stimulus ORDER BY position"
        )
        return [StimulusRecord(*row) for row in rows]

    def shards(self) -> list[ShardRecord]:
        """Return every shard, in the order of commits."""
        rows = self._db.execute("SELECT name, sha256, bytes, rows, stimuli, created FROM shard ORDER BY rowid")
        return [ShardRecord(*row) for row in rows]

    def enter(self, entries: Iterable[tuple[str, int, str, str, str]]) -> None:
        """Enter stimuli, each as ``(id, position, content_hash, payload, fields)``, or bring them up to date."""
        self._db.executemany(
            "INSERT INTO stimulus (id, position, content_hash, payload, fields) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET position = excluded.position, content_hash = excluded.content_hash, "
            "payload = excluded.payload, fields = excluded.fields",
            entries,
        )

    def forget(self, ids: Iterable[str]) -> None:
        """Take out stimuli that were never committed."""
        self._db.executemany("DELETE FROM stimulus WHERE id = ? AND state <> 'done'", [(name,) for name in ids])

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
            changed = self._db.executemany(
                "UPDATE stimulus SET state = 'done', shard = ?, row0 = ?, rows = ?, error = NULL "
                "WHERE id = ? AND state <> 'done'",
                [(shard.name, place.row0, place.rows, place.id) for place in placements],
            ).rowcount
            if not changed == len(placements) == shard.stimuli:
                raise RunError(
                    f"shard {shard.name} holds {shard.stimuli} stimuli, of which {changed} were still missing in the "
                    "run; it was not committed"
                )

    def note_failures(self, ids: Sequence[str], error: str, *, final: bool) -> None:
        """Count a failed attempt at stimuli, and give them up if it is final."""
        with self.transaction():
            self._db.executemany(
                "UPDATE stimulus SET attempts = attempts + 1, error = ?, state = ? WHERE id = ? AND state <> 'done'",
                [(error, "failed" if final else "todo", stimulus_id) for stimulus_id in ids],
            )


def now() -> str:
    """Return the time as it is written into ledgers."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _uri(path: Path, *, writable: bool) -> str:
    if writable:
        options = "mode=rwc"
    elif os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        # Not "ro": such a reader leaves SQLite's side files behind.
        options = "mode=rw"
    else:
        # In a folder that cannot be written SQLite refuses a ledger unless told that nobody else writes to it either.
        options = "mode=ro" if path.with_name(f"{FILE_NAME}-wal").exists() else "mode=ro&immutable=1"
    return f"{path.absolute().as_uri()}?{options}"
