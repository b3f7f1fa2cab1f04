"""Results come back as they were saved, in any Parquet reader, and a torn pair is refused."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from stratoscope.probes import ResultsError, SweepResult, load, save, summarise, sweep


def _result(target: str = "edible", seed: int = 0) -> SweepResult:
    rng = np.random.default_rng(seed)
    y, groups = np.arange(40) % 2, np.arange(40)
    columns: dict[tuple[str, int | None], np.ndarray] = {("embed", None): rng.normal(size=(40, 6))}
    columns |= {("resid_post", layer): rng.normal(size=(40, 6)) for layer in range(3)}
    return sweep(columns, y, groups=groups, controls=("shuffled",), target=target, permutations=100)


def test_a_saved_result_comes_back_whole(tmp_path: Path) -> None:
    result = _result()
    save(result, tmp_path)
    loaded = load(tmp_path)[("edible", "svm")]
    assert loaded.scores.equals(result.scores)
    assert loaded.scores.schema == result.scores.schema
    assert loaded.predictions.equals(result.predictions)
    assert loaded.predictions.schema == result.predictions.schema
    assert loaded.null.equals(result.null)
    assert loaded.null.schema == result.null.schema
    assert loaded.provenance == result.provenance
    assert summarise(loaded, n_layers=3).curves.equals(summarise(result, n_layers=3).curves)


def test_polars_pandas_and_duckdb_read_the_same_rows_without_code_of_ours(tmp_path: Path) -> None:
    result = _result()
    for path, frame in zip(save(result, tmp_path), (result.scores, result.predictions, result.null), strict=True):
        assert frame.height > 0
        assert pl.read_parquet(path).equals(frame)
        pd.testing.assert_frame_equal(pd.read_parquet(path), frame.to_pandas(), check_dtype=False)
        assert duckdb.read_parquet(str(path)).fetchall() == frame.rows()


def test_each_file_carries_its_provenance(tmp_path: Path) -> None:
    result = _result()
    for path in save(result, tmp_path):
        embedded = json.loads(pq.read_schema(path).metadata[b"stratoscope"])
        assert embedded.pop("scores_sha256")
        assert embedded == result.provenance


def test_several_targets_live_side_by_side_and_names_are_made_safe(tmp_path: Path) -> None:
    for target in ("edible", "../sneaky/<b>"):
        save(_result(target), tmp_path)
    assert set(load(tmp_path)) == {("edible", "svm"), ("../sneaky/<b>", "svm")}
    assert all(path.parent == tmp_path / "results" for path in tmp_path.rglob("*.parquet"))


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    save(_result(seed=0), tmp_path)
    save(_result(seed=1), tmp_path)
    assert len(list((tmp_path / "results").iterdir())) == 3
    assert load(tmp_path)[("edible", "svm")].scores.equals(_result(seed=1).scores)


def test_a_torn_pair_is_refused(tmp_path: Path) -> None:
    save(_result(seed=0), tmp_path)
    kept = (tmp_path / "results" / "predictions-edible-svm.parquet").read_bytes()
    save(_result(seed=1), tmp_path)
    (tmp_path / "results" / "predictions-edible-svm.parquet").write_bytes(kept)
    with pytest.raises(ResultsError, match="of different sweeps"):
        load(tmp_path)


def test_missing_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no scores"):
        load(tmp_path)
    scores, predictions, _ = save(_result(), tmp_path)
    predictions.unlink()
    with pytest.raises(ResultsError, match=r"predictions-edible-svm\.parquet is missing"):
        load(tmp_path)
    save(_result(), tmp_path)
    pl.read_parquet(scores).write_parquet(scores)
    with pytest.raises(ResultsError, match="carries no provenance"):
        load(tmp_path)
