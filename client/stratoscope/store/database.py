"""The SQLite file under a ledger: how it is opened, read and changed, and what its failures mean."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stratoscope.errors import LedgerDamagedError, RunError
from stratoscope.store.disk import RESERVE_BYTES, storage_error
from stratoscope.store.filesystem import is_on_network

BUSY_TIMEOUT_S: Final = 30.0

DISK_FAULTS: Final = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}
"""What SQLite says when the disk is to blame, as the system's numbers."""

DAMAGES: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Database:
    """A connection to an SQLite file. Use it from one thread.

    Parameters
    ----------
    path
        The file.
    schema
        Statements that make an empty one, for version `version`.
    writable
        Whether to create the file if there is none, and to allow changes.

    Raises
    ------
    LedgerDamagedError
        If it is no SQLite file.
    RunError
        If it is of another version, or cannot be opened.
    StorageError
        If the disk fails.
    """

    def __init__(self, path: Path, schema: str, version: int, *, writable: bool) -> None:
        self._path = path
        with self._faults():
            self._db = sqlite3.connect(
                _uri(path, writable=writable), uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
            )
        try:
            self._prepare(schema, version, writable=writable)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, schema: str, version: int, *, writable: bool) -> None:
        self.execute("PRAGMA foreign_keys = ON")
        if writable:
            self.execute(f"PRAGMA journal_mode = {'DELETE' if is_on_network(self._path.parent) else 'WAL'}")
            self.execute("PRAGMA synchronous = FULL")
        else:
            self.execute("PRAGMA query_only = ON")
        found = self.rows("PRAGMA user_version")[0][0]
        if found == 0 and writable:
            with self.transaction():
                for statement in schema.split(";\n"):
                    self.execute(statement)
                self.execute(f"PRAGMA user_version = {version}")
        elif found != version:
            raise RunError(f"the ledger has version {found}; this client understands version {version}")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what happens inside durable together, or not at all."""
        with self._faults():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # After a full disk SQLite has rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read several things as they were at one moment."""
        self.execute("BEGIN DEFERRED")
        try:
            yield
        finally:
            self.execute("ROLLBACK")

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self._faults():
            return self._db.execute(query, values).fetchall()

    def execute(self, statement: str, values: Sequence[object] = ()) -> None:
        """Execute a statement."""
        with self._faults():
            self._db.execute(statement, values)

    def execute_all(self, statement: str, values: Iterable[Sequence[object]]) -> int:
        """Execute a statement once per tuple of values; return how many rows it changed in all."""
        with self._faults():
            return self._db.executemany(statement, values).rowcount

    def faults(self) -> list[str]:
        """Read the whole file; return what is wrong with its structure or its references."""
        found = [row[0] for row in self.rows("PRAGMA integrity_check(10)")]
        broken = [f"a row of table {row[0]} refers to nothing" for row in self.rows("PRAGMA foreign_key_check")]
        return ([] if found == ["ok"] else found) + broken

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(error, self._path) from error


def _translated(error: sqlite3.Error, path: Path) -> RunError:
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if primary in DISK_FAULTS:
        number = DISK_FAULTS[primary]
        # SQLite calls some of what a full disk does to its index of the log an I/O error.
        if number == errno.EIO and shutil.disk_usage(path.parent).free < RESERVE_BYTES:
            number = errno.ENOSPC
        return storage_error(path, number, f"{error} ({os.strerror(number)})")
    if primary in DAMAGES:
        return LedgerDamagedError(
            f"{path} cannot be used as a ledger: {error}. Restore the file from a copy, or collect into another folder"
        )
    return RunError(f"{path} cannot be used as a ledger: {error}")


def _uri(path: Path, *, writable: bool) -> str:
    if writable:
        options = "mode=rwc"
    elif os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        # Not "ro": such a reader leaves SQLite's side files behind.
        options = "mode=rw"
    else:
        # In a folder that cannot be written SQLite refuses a ledger unless told that nobody else writes to it either.
        options = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    return f"{path.absolute().as_uri()}?{options}"
