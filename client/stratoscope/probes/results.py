"""Results on disk: two Parquet files per target and probe under ``RUN/results``, each carrying its provenance."""

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


def save(result: SweepResult, run_dir: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``scores-TARGET-PROBE.parquet`` and ``predictions-TARGET-PROBE.parquet`` under ``run_dir/results``.

    Each is written under a temporary name, fsynced, then renamed, so a file that exists is whole. Both carry
    the same provenance and the hash of the scores, so a pair torn by a crash between the two is refused by `load`.
    Characters of the target that a file name may not hold are percent-encoded.

    Returns
    -------
    (Path, Path)
        Of the scores and the predictions.
    """
    folder = Path(run_dir) / "results"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(result.scores.write_csv().encode()).hexdigest()
    provenance = json.dumps({**result.provenance, "scores_sha256": digest}, sort_keys=True)
    name = f"{quote(result.provenance['target'], safe=' ')}-{result.provenance['probe']}.parquet"
    scores, predictions = folder / f"scores-{name}", folder / f"predictions-{name}"
    _write(result.scores, scores, provenance)
    _write(result.predictions, predictions, provenance)
    return scores, predictions


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
    results = [_load_pair(path) for path in paths]
    return {(result.provenance["target"], result.provenance["probe"]): result for result in results}


def _load_pair(scores_path: Path) -> SweepResult:
    predictions_path = scores_path.with_name(scores_path.name.replace("scores-", "predictions-", 1))
    if not predictions_path.exists():
        raise ResultsError(f"{predictions_path} is missing beside {scores_path.name}. Run the probes again.")
    (scores, provenance), (predictions, twin) = _read(scores_path), _read(predictions_path)
    if provenance != twin:
        raise ResultsError(f"{scores_path} and {predictions_path.name} are of different sweeps. Run the probes again.")
    return SweepResult(scores, predictions, {k: v for k, v in provenance.items() if k != "scores_sha256"})


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
