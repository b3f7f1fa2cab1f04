"""Sweeps stream their columns, go on where they stopped, run on other backends, and say first what they will cost."""

import re
import sys
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import polars as pl
import pytest
from distributed import Client, LocalCluster
from sklearn.svm import LinearSVC

from stratoscope.probes import ResultsError, SweepResult, sweep
from stratoscope.probes.cost import count_fits, estimate_cost
from stratoscope.probes.estimators import PROBES, Probe, Settings
from stratoscope.probes.task import make_task

N = 60
GROUPS = np.arange(N) // 2
Y = (GROUPS % 2).astype(float)
Key = tuple[str, int | None]


class Columns(Mapping[Key, np.ndarray]):
    """Columns that are made when asked for; says which were, and may stop."""

    def __init__(self, n_layers: int = 6, d_model: int = 40, stop_at: int | None = None) -> None:
        self.n_layers, self.d_model, self.stop_at = n_layers, d_model, stop_at
        self.read: list[int] = []

    def __getitem__(self, key: Key) -> np.ndarray:
        layer = key[1] or 0
        if layer == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(layer)
        rng = np.random.default_rng(layer)
        X = rng.normal(size=(N, self.d_model)) + (layer == 3) * Y[:, None]
        return np.asarray(X, dtype=np.float32)

    def __iter__(self) -> Iterator[Key]:
        return (("resid_post", layer) for layer in range(self.n_layers))

    def __len__(self) -> int:
        return self.n_layers


def _sweep(columns: Any, **settings: Any) -> SweepResult:
    return sweep(
        columns, Y, groups=GROUPS, **{"controls": ("shuffled",), "probe": "ridge_classifier", "alpha": 10.0, **settings}
    )


def _counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the folds that are really fitted."""
    fitted: list[int] = []
    real = PROBES["ridge_classifier"]

    def fit(*args: Any) -> Any:
        fitted.append(1)
        return real.fit(*args)

    monkeypatch.setitem(PROBES, "ridge_classifier", Probe(real.name, real.kind, fit, real.hyper, real.criterion))
    return fitted


def _same(one: SweepResult, other: SweepResult) -> bool:
    return (
        one.scores.equals(other.scores)
        and one.predictions.equals(other.predictions)
        and one.null.equals(other.null)
        and one.provenance == other.provenance
    )


def test_an_interrupted_sweep_goes_on_where_it_stopped_and_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _sweep(Columns(), permutations=100)
    fitted = _counting(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _sweep(Columns(stop_at=4), permutations=100, checkpoint=tmp_path)
    assert len(fitted) == 4 * 5
    kept = list(tmp_path.rglob("*.npz"))
    assert 3 <= len(kept) <= 4
    fitted.clear()
    again = _sweep(Columns(), permutations=100, checkpoint=tmp_path)
    assert len(fitted) == (6 - len(kept)) * 5
    assert _same(whole, again)
    fitted.clear()
    assert _same(whole, _sweep(Columns(), permutations=100, checkpoint=tmp_path))
    assert not fitted


@pytest.mark.parametrize("change", [{"seed": 1}, {"alpha": 20.0}, {"scale": False}, {"permutations": 101}])
def test_a_checkpoint_of_another_task_is_never_taken(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sweep(Columns(), permutations=100, checkpoint=tmp_path)
    fitted = _counting(monkeypatch)
    _sweep(Columns(), checkpoint=tmp_path, **{"permutations": 100, **change})
    assert len(fitted) == 30


def test_a_checkpoint_of_other_activations_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = dict(Columns())
    _sweep(columns, checkpoint=tmp_path)
    fitted = _counting(monkeypatch)
    columns["resid_post", 2] = np.nextafter(columns["resid_post", 2], np.float32(np.inf))
    _sweep(columns, checkpoint=tmp_path)
    assert len(fitted) == 5


def test_a_torn_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    _sweep(Columns(), checkpoint=tmp_path)
    victim = next(iter(tmp_path.rglob("resid_post.2-*.npz")))
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(ResultsError, match=rf"{re.escape(victim.name)} is damaged .* Delete it"):
        _sweep(Columns(), checkpoint=tmp_path)


def test_columns_are_read_as_their_turn_comes_and_few_are_held() -> None:
    alive: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
    held = []

    class Watched(Columns):
        def __getitem__(self, key: Key) -> np.ndarray:
            held.append(len(alive))
            X = super().__getitem__(key)
            alive[key[1] or 0] = X
            return X

    columns = Watched(n_layers=30)
    _sweep(columns, n_jobs=2)
    assert columns.read == list(range(30))
    assert max(held) <= 3, "two at work and one that waits"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_same_call_runs_on_a_dask_cluster_and_gives_the_same_numbers() -> None:
    here = _sweep(Columns(), permutations=100)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,  # type: ignore[no-untyped-call]
        Client(cluster) as client,  # type: ignore[no-untyped-call]
        joblib.parallel_config(backend="dask"),
    ):
        there = _sweep(Columns(), permutations=100)
        used = client.run(_has_fitted)
    assert _same(here, there)
    assert sum(used.values()) == 2, "both workers should have fitted columns"


def _has_fitted() -> bool:
    return "stratoscope.probes.column" in sys.modules


def test_the_same_call_runs_on_processes_and_gives_the_same_numbers() -> None:
    here = _sweep(Columns(), probe="svm")
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert _same(here, _sweep(Columns(), probe="svm"))


def test_a_long_sweep_tells_its_cost_before_it_begins(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    module = sys.modules["stratoscope.probes.sweep"]
    monkeypatch.setattr(module, "LONG_S", 0.0)
    monkeypatch.setattr(module, "is_long", lambda *_: True)
    columns, told = Columns(), list[str]()
    seen: list[int] = []
    _sweep(columns, say=told.append, progress=lambda *_: seen.append(len(told)))
    assert seen == [1] * 6, "told once, before the first column was done"
    assert re.fullmatch(r"sweep of label: 6 columns, 180 fits, about \d+ s, about \d+ MiB of memory", told[0])
    _sweep(Columns())
    assert told[0].split(",")[:2] == capsys.readouterr().err.split(",")[:2]


def test_a_short_sweep_tells_nothing(capsys: Any) -> None:
    _sweep(Columns())
    assert capsys.readouterr().err == ""


def test_fits_are_counted_as_plain_scikit_learn_would_make_them() -> None:
    settings = Settings(alpha=(1.0, 10.0, 100.0), inner_folds=4)
    task = make_task(
        Y,
        GROUPS,
        probe=["ridge_classifier", "svm"],
        cv=5,
        settings=settings,
        ids=None,
        texts=None,
        target="label",
        seed=0,
    )
    task = task.with_draws(n_shuffles=2, n_permutations=7, types=None, seed=0)
    assert count_fits(task, n_columns=3) == 3 * 5 * 10 * ((3 * 4 + 1) + 1)


def test_the_forecast_is_near_the_time_that_a_sweep_takes() -> None:
    columns = Columns(n_layers=12, d_model=600)
    settings = Settings()
    task = make_task(Y, GROUPS, probe="svm", cv=5, settings=settings, ids=None, texts=None, target="label", seed=0)
    task = task.with_draws(n_shuffles=40, n_permutations=0, types=None, seed=0)
    _sweep(Columns(n_layers=1), probe="svm")
    forecast = estimate_cost(columns["resid_post", 0], task, 12, 1).seconds
    began = time.perf_counter()
    _sweep(columns, probe="svm", n_shuffles=40)
    took = time.perf_counter() - began
    assert 0.1 < forecast / took < 10


def test_plain_estimators_are_told_apart_in_checkpoints(tmp_path: Path) -> None:
    one = _sweep(Columns(), probe=LinearSVC(C=1e-4, random_state=0), checkpoint=tmp_path)
    other = _sweep(Columns(), probe=LinearSVC(C=1.0, random_state=0), checkpoint=tmp_path)
    assert not one.predictions.equals(other.predictions)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_gram_sharing_makes_many_targets_and_probes_one_sweep() -> None:
    rng = np.random.default_rng(0)
    y = {"a": rng.integers(0, 2, N), "b": rng.integers(0, 3, N)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        together = sweep(
            dict(Columns()), y, groups=np.arange(N), probe=["svm", "lda"], controls=("shuffled",), permutations=0
        )
    parts = together.split()
    assert [(p.provenance["target"], p.provenance["probe"]) for p in parts] == [
        ("a", "svm"),
        ("a", "lda"),
        ("b", "svm"),
        ("b", "lda"),
    ]
    folds = together.predictions.select("stimulus_id", "fold").unique()
    assert folds.height == N, "one set of folds for all"
    fold_of = parts[0].predictions.filter(layer=0)["fold"].to_numpy()
    alone = sweep(
        dict(Columns()), y["a"], groups=np.arange(N), probe="svm", cv=fold_of, controls=("shuffled",), target="a"
    )
    assert alone.scores.equals(parts[0].scores)
    assert alone.predictions.equals(parts[0].predictions)
    three = parts[2].predictions.filter(pl.col("layer") == 0)
    assert three.height == 3 * N
    assert three["class"].unique().sort().to_list() == ["0", "1", "2"]
