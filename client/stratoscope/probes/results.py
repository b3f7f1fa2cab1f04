"""Results on disk: Parquet files per target and probe under ``RUN/results``, each carrying its provenance."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stratoscope.probes.errors import ResultsError
from stratoscope.probes.sweep import SweepResult
from stratoscope.store.durable import replace_file

PROVENANCE_KEY = b"stratoscope"
"""Key of the provenance JSON in the Parquet schema metadata."""


TABLES = ("scores", "predictions", "null")
"""Tables of a result, by attribute and by the first word of their files. Without permutations there is no null."""


def save(result: SweepResult, run_dir: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write ``scores-TARGET-PROBE.parquet``, ``predictions-...`` and ``null-...`` under ``run_dir/results``.

    Each is written under a temporary name, fsynced, then renamed, so a file that exists is whole. All carry the same
    provenance and the hash of the scores, so files of two sweeps mixed by a crash are refused by `load`. Characters of
    the target that a file name may not hold are percent-encoded. Several targets and probes make files of their own.

    Returns
    -------
    tuple of Path
        In the order of `TABLES`, target by target.
    """
    folder = Path(run_dir) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(path for one in result.split() for path in _save_one(one, folder))


def _save_one(result: SweepResult, folder: Path) -> list[Path]:
    digest = hashlib.sha256(result.scores.write_csv().encode()).hexdigest()
    provenance = json.dumps({**result.provenance, "scores_sha256": digest}, sort_keys=True)
    name = f"{quote(result.provenance['target'], safe=' ')}-{result.provenance['probe']}.parquet"
    written = []
    for table in TABLES:
        frame, path = getattr(result, table), folder / f"{table}-{name}"
        if table == "null" and frame.is_empty():
            path.unlink(missing_ok=True)
            continue
        _write(frame, path, provenance)
        written.append(path)
    return written


def load(run_dir: str | os.PathLike[str]) -> dict[tuple[str, str], SweepResult]:
    """Read every result of a run, by (target, probe).

    Raises
    ------
    ResultsError
        If there are none, if a file was not written by `save`, or if scores and predictions are not of one sweep.
    """
    paths = sorted((Path(run_dir) / "results").glob("scores-*.parquet"))
    if not paths:
        raise ResultsError(f"{Path(run_dir) / 'results'} holds no scores-*.parquet. Run the probes first.")
    results = [_load_one(path) for path in paths]
    return {(result.provenance["target"], result.provenance["probe"]): result for result in results}


def _load_one(scores_path: Path) -> SweepResult:
    scores, provenance = _read(scores_path)
    frames = {"scores": scores}
    for table in TABLES[1:]:
        if table == "null" and not provenance["n_permutations"]:
            continue
        path = scores_path.with_name(scores_path.name.replace("scores-", f"{table}-", 1))
        if not path.exists():
            raise ResultsError(f"{path} is missing beside {scores_path.name}. Run the probes again.")
        frames[table], twin = _read(path)
        if provenance != twin:
            raise ResultsError(f"{scores_path} and {path.name} are of different sweeps. Run the probes again.")
    facts = {name: value for name, value in provenance.items() if name != "scores_sha256"}
    return SweepResult(provenance=facts, **frames)


def _read(path: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    if PROVENANCE_KEY not in metadata:
        raise ResultsError(f"{path} carries no provenance: it was not written by stratoscope. Move it elsewhere.")
    provenance: dict[str, Any] = json.loads(metadata[PROVENANCE_KEY])
    frame = pl.from_arrow(table.replace_schema_metadata(None))
    assert isinstance(frame, pl.DataFrame)
    return frame, provenance


def _write(frame: pl.DataFrame, path: Path, provenance: str) -> None:
    table: pa.Table = frame.to_arrow().replace_schema_metadata({PROVENANCE_KEY: provenance.encode()})
    replace_file(path, lambda file: pq.write_table(table, file, compression="zstd"))
