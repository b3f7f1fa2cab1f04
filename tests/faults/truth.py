"""What every value must be: the synthetic engine's definition, computed here a second time from the text.

Nothing of the engine, the client or the store is used: runs are read with sqlite and pyarrow alone.
"""

import re
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

SITE_NUMBERS: Final = {
    name: number
    for number, name in enumerate(("embed", "resid_mid", "resid_post", "attn_out", "mlp_out", "heads", "final_norm"))
}
WORD: Final = re.compile(r"\w+|[^\w\s]")
N_KEYS: Final = 4

Words = npt.NDArray[np.uint64]
Row = tuple[str, str, int, int]
"""Stimulus, selector, position and token id."""


class Truth(Protocol):
    """Says whether a row is true."""

    def n_rows(self, text: str, selectors: Sequence[str]) -> int: ...

    def is_true(self, text: str, row: Row, values: Mapping[str, npt.NDArray[Any]]) -> bool: ...


class SyntheticTruth:
    """The truth about the synthetic engine, for the selectors ``last`` and ``all``."""

    def n_rows(self, text: str, selectors: Sequence[str]) -> int:
        return sum(1 if selector == "last" else len(token_ids(text)) for selector in selectors)

    def is_true(self, text: str, row: Row, values: Mapping[str, npt.NDArray[Any]]) -> bool:
        _, selector, position, token = row
        ids = token_ids(text)
        if not 0 <= position < len(ids) or token != ids[position]:
            return False
        if selector == "last" and position != len(ids) - 1:
            return False
        return all(_agrees(found, state(ids[: position + 1], name, len(found))) for name, found in values.items())


@dataclass(frozen=True, slots=True)
class Census:
    """What was found: ids that are there, and how many are lost, doubled and wrong."""

    there: frozenset[str]
    lost: int = 0
    doubled: int = 0
    wrong: int = 0

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


def check_tables(
    tables: Iterable[pa.Table | pa.RecordBatch], texts: Mapping[str, str], selectors: Sequence[str], truth: Truth
) -> Census:
    """Hold every row of an answer or a run against the truth; a stimulus with too few or too many rows is no good."""
    counts: Counter[str] = Counter()
    wrong: set[str] = set()
    for table in tables:
        for row, values in rows_of(table):
            counts[row[0]] += 1
            if row[0] not in texts or not truth.is_true(texts[row[0]], row, values):
                wrong.add(row[0])
    due = {name: truth.n_rows(texts[name], selectors) if name in texts else 0 for name in counts}
    doubled = sum(counts[name] > due[name] for name in counts)
    torn = {name for name in counts if counts[name] < due[name]}
    return Census(frozenset(counts), doubled=doubled, wrong=len(wrong | torn))


def check_run(
    run_dir: Path, texts: Mapping[str, str], truth: Truth, *, selectors: Sequence[str] = ("last",), whole: bool = True
) -> Census:
    """Hold a run against the truth: what its ledger says, and what lies in the shards that its ledger names.

    Parameters
    ----------
    whole
        Whether every text must be there, or only what the ledger calls done.
    """
    done, shards = _ledger(run_dir)
    present = [name for name in shards if (run_dir / "shards" / name).exists()]
    tables = [pq.read_table(run_dir / "shards" / name) for name in present]
    found = check_tables(tables, texts, selectors, truth)
    places = {name: shard for shard, table in zip(present, tables, strict=True) for name in set(_ids(table))}
    lost = set(texts) - set(done) if whole else set()
    lost |= {name for name, shard in done.items() if places.get(name) != shard}
    unknown = found.there - set(done)
    return Census(found.there, len(lost), found.doubled, found.wrong + len(unknown))


def _ledger(run_dir: Path) -> tuple[dict[str, str], list[str]]:
    """Return what is done, by shard, and the shards; nothing if the run was killed before it had a ledger."""
    database = sqlite3.connect(
        (run_dir / "ledger.sqlite").absolute().as_uri() + "?mode=rw", uri=True, timeout=30, isolation_level=None
    )
    try:
        # A collection may go on meanwhile: both questions are to be answered at one moment.
        database.execute("BEGIN")
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return {}, []
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        done = dict(database.execute("SELECT id, shard FROM stimulus WHERE state = 'done'").fetchall())
        return done, [name for (name,) in database.execute("SELECT name FROM shard")]
    finally:
        database.close()


@lru_cache(maxsize=65536)
def token_ids(text: str) -> tuple[int, ...]:
    return (0, *(1 + zlib.crc32(word.encode()) % 49_999 for word in WORD.findall(text)))


@lru_cache(maxsize=65536)
def state(ids: tuple[int, ...], column: str, width: int) -> npt.NDArray[np.float64]:
    """What the synthetic model holds after these tokens, in double precision, of shape (width,)."""
    site, _, layer = column.partition(".")
    number = np.uint64(SITE_NUMBERS[site] * 1000 + int(layer or 0))
    prefix = 0
    for token in _mix(np.array(ids, np.uint64) + np.uint64(1)):
        prefix = int(_mix(np.uint64(prefix) ^ token))
    dimensions = np.arange(width, dtype=np.uint64)
    noise = _signed_unit(_mix(np.uint64(prefix) ^ _mix(dimensions + _mix(number))))
    directions = _signed_unit(_mix(np.arange(2 * width, dtype=np.uint64) + np.uint64(17)))
    bits = _mix(np.array(ids, np.uint64)) & np.uint64(1)
    item, context = float(bits[-1]) * 2 - 1, float(np.bitwise_xor.reduce(bits)) * 2 - 1
    gains = (_gain(layer, 3), _gain(layer, 8))
    return noise + (item * gains[0] * directions[:width] + context * gains[1] * directions[width:])


def _agrees(found: npt.NDArray[Any], due: npt.NDArray[np.float64]) -> bool:
    """Whether float32 values are the due ones, bit for bit; where the double lies on an edge, either neighbour is."""
    slack = 8 * np.spacing(np.abs(due) + 1)
    return bool(np.all((found == np.float32(due - slack)) | (found == np.float32(due + slack))))


def _gain(layer: str, peak: int) -> float:
    return float(np.exp(-(((int(layer) - peak) / 2.0) ** 2))) if layer else 0.02


def _mix(words: Words | np.uint64) -> Any:
    """SplitMix64's finaliser; arithmetic modulo 2**64."""
    with np.errstate(over="ignore"):
        x = words + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _signed_unit(words: Words) -> npt.NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def _ids(table: pa.Table) -> list[str]:
    ids: list[str] = table.column("stimulus_id").to_pylist()
    return ids


def rows_of(table: pa.Table | pa.RecordBatch) -> Iterable[tuple[Row, dict[str, npt.NDArray[Any]]]]:
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    names = table.schema.names[N_KEYS:]
    values = [_matrix(table.column(name)) for name in names]
    keys = zip(*(table.column(index).to_pylist() for index in range(N_KEYS)), strict=True)
    for number, key in enumerate(keys):
        yield key, {name: matrix[number] for name, matrix in zip(names, values, strict=True)}


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    width = column.type.list_size
    chunks = [chunk.flatten().to_numpy().reshape(-1, width) for chunk in column.chunks]
    return np.concatenate(chunks) if chunks else np.empty((0, width), np.float32)
