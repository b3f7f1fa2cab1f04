"""The ledgers of a run in an object store: snapshots that are never overwritten, of which the last one counts."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from stratoscope.errors import LedgerDamagedError, RunNotFoundError
from stratoscope.store.ledger import FILE_NAME, Ledger
from stratoscope.store.objects import ObjectPath, ObjectStore, RunPath, is_url
from stratoscope.store.shard import FOLDER, NAME_DIGITS

LEDGERS: Final = "ledgers"
NAME: Final = re.compile(r"(\d{6})\.(\d{8})\.([0-9a-f]{24})\.sqlite")


def ledger_name(epoch: int, number: int, content: bytes) -> str:
    """Return a snapshot's name: whose turn it was, how many it had published, and the beginning of the SHA-256."""
    return f"{epoch:06}.{number:08}.{hashlib.sha256(content).hexdigest()[:NAME_DIGITS]}.sqlite"


def ledger_names(store: ObjectStore) -> list[str]:
    """Return the names of the snapshots that are there, the one that counts last."""
    return sorted(name for name in store.list(LEDGERS) if NAME.fullmatch(name))


def epoch_of(name: str) -> int:
    """Return whose turn it was when a snapshot was published."""
    return int(name.partition(".")[0])


def read_ledger(store: ObjectStore, name: str) -> bytes:
    """Read a snapshot.

    Raises
    ------
    LedgerDamagedError
        If its bytes are not those that its name stands for.
    StorageError
        If the store fails.
    """
    path = store.path(LEDGERS, name)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:NAME_DIGITS] != name.split(".")[2]:
        raise LedgerDamagedError(f"{path} was altered: its name is not the hash of its bytes. Restore it from a copy")
    return content


@contextmanager
def opened_ledger(path: str | Path) -> Iterator[tuple[RunPath, Ledger]]:
    """Open the ledger of a run for reading; give it and where the run lies.

    Raises
    ------
    RunNotFoundError
        If there is none.
    StorageError
        If the object store fails.
    """
    with TemporaryDirectory(prefix="stratoscope-") as folder:
        place = _fetch_ledger(str(path), Path(folder)) if is_url(path) else Path(path)
        ledger = Ledger(Path(folder) if isinstance(place, ObjectPath) else place, writable=False)
        try:
            yield place, ledger
        finally:
            ledger.close()


def _fetch_ledger(url: str, folder: Path) -> ObjectPath:
    store = ObjectStore.at(url)
    names = ledger_names(store)
    if not names:
        raise RunNotFoundError(f"{store.url} holds no run: there is no ledger in {LEDGERS}/")
    (folder / FILE_NAME).write_bytes(read_ledger(store, names[-1]))
    # Listed after the ledger was read: whatever it names was there before it.
    store.sizes.update({f"{FOLDER}/{name}": size for name, size in store.list(FOLDER).items()})
    return store.path()
