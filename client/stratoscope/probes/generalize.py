"""Layer by layer transfer: the probe of every column tested on every other, to see whether they read the same code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from stratoscope.probes.column import Key, check_column, column_name
from stratoscope.probes.errors import ActivationsError, DesignError
from stratoscope.probes.estimators import ALPHAS, SHRINKAGES, Settings, as_grid, predicted_classes
from stratoscope.probes.features import FoldFeatures
from stratoscope.probes.folds import Split
from stratoscope.probes.scoring import SCORES, Held
from stratoscope.probes.sources import read_source
from stratoscope.probes.task import Analysis, Task, make_task

Floats = NDArray[np.float64]

TRANSFER_SCHEMA = pl.Schema(
    {
        "train_site": pl.String,
        "train_layer": pl.Int32,
        "test_site": pl.String,
        "test_layer": pl.Int32,
        "target": pl.String,
        "probe": pl.String,
        "metric": pl.String,
        "fold": pl.Int32,
        "score": pl.Float64,  # held-out stimuli; NaN where not defined
    }
)


def generalize(
    run_or_arrays: Any,
    y: Any,
    *,
    groups: ArrayLike | str,
    probe: Any = "svm",
    cv: Any = 5,
    scale: bool = True,
    C: float | Sequence[float] = 1.0,
    alpha: float | Sequence[float] = ALPHAS,
    shrinkage: float | Sequence[float] = SHRINKAGES,
    inner_folds: int = 5,
    ids: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    target: str | Sequence[str] = "label",
    selector: str | None = None,
    sites: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Train on each column, test on all, on the folds of `sweep`: held-out stimuli in every cell (King & Dehaene 2014).

    A probe is taken to other columns as it is, its centring and scaling included, as ``mne.decoding.
    GeneralizingEstimator`` does with a pipeline. Every column is read twice and dropped; what is held is one weight
    vector per column, fold and output. The cell of a column with itself is its score in `sweep`.

    Parameters
    ----------
    run_or_arrays, y, groups, probe, cv, scale, C, alpha, shrinkage, inner_folds, ids, texts, target
        As in `sweep`, and so are `selector`, `sites` and `seed`. The probe must be affine: of those registered,
        ``"svm"`` is so for two classes only. Columns have one width.
    progress : callable of (columns done, columns in all), each column counting twice

    Returns
    -------
    polars.DataFrame
        ``train_site, train_layer, test_site, test_layer, target, probe, metric, fold, score``.

    Raises
    ------
    DesignError
        If the design cannot carry the probe, or its decisions are not affine in the features.
    ActivationsError
        If a column cannot be probed, or columns differ in width.
    """
    source = read_source(run_or_arrays, y, groups, ids=ids, texts=texts, selector=selector, sites=sites)
    settings = Settings(scale, as_grid(C), as_grid(alpha), as_grid(shrinkage), inner_folds)
    task = make_task(
        source.y, source.groups, probe=probe, cv=cv, settings=settings, ids=source.ids,
        texts=source.texts, target=target, seed=seed,
    )  # fmt: skip
    for one in task.analyses:
        _check_affine(one)
    n_columns, keys = len(source.columns), list(source.columns)
    with threadpool_limits(limits=1):
        weights: list[list[list[tuple[Floats, Floats]]]] = []  # by column, fold and analysis
        for done, key in enumerate(keys):
            weights.append(_train(_read(source.columns, key, task, weights), task))
            if progress is not None:
                progress(done + 1, 2 * n_columns)
        frames = []
        for done, key in enumerate(keys):
            frames.append(_test(key, _read(source.columns, key, task, weights), keys, weights, task))
            if progress is not None:
                progress(n_columns + done + 1, 2 * n_columns)
    order = ["target", "probe", "metric", "train_site", "train_layer", "test_site", "test_layer", "fold"]
    return pl.concat(frames).sort(order, maintain_order=True)


def _check_affine(one: Analysis) -> None:
    if one.probe.affine == "no" or (one.probe.affine == "binary" and one.labels.n_outputs > 1):
        raise DesignError(
            f"probe {one.probe.name!r} has no weights to take to other layers for target {one.labels.name!r} with "
            f'{len(one.labels.classes)} classes. Use probe="ridge_classifier", "lda" or "logistic".'
        )


def _read(
    columns: Mapping[Any, Any], key: Key, task: Task, weights: list[list[list[tuple[Floats, Floats]]]]
) -> NDArray[Any]:
    checked, X = check_column(key, columns[key], task.ids)
    width = len(weights[0][0][0][0]) if weights else X.shape[1]
    if X.shape[1] != width:
        raise ActivationsError(f"column {column_name(checked)} is {X.shape[1]} wide and others {width}; choose sites=")
    return X


def _train(X: NDArray[Any], task: Task) -> list[list[tuple[Floats, Floats]]]:
    """Weights and intercepts, by fold and analysis."""
    found = []
    for split in task.splits:
        fold = FoldFeatures(X, split.train, split.train, scale=task.settings.scale)
        on_itself = Split(split.train, split.train, split.inner)
        fits = [one.probe.fit(fold, one.labels, on_itself, task.settings) for one in task.analyses]
        found.append([fold.weights(fit.decision[:, 0]) for fit in fits])
    return found


def _test(
    key: Key, X: NDArray[Any], keys: list[Key], weights: list[list[list[tuple[Floats, Floats]]]], task: Task
) -> pl.DataFrame:
    """Scores of all columns' probes on one column."""
    frames = []
    for number, split in enumerate(task.splits):
        rows = X[split.test].astype(np.float64)
        for i, one in enumerate(task.analyses):
            W = np.concatenate([column[number][i][0] for column in weights], axis=1)
            b = np.concatenate([column[number][i][1] for column in weights])
            decision = (rows @ W + b).reshape(len(rows), len(keys), one.labels.n_outputs)
            predicted = predicted_classes(decision) if one.labels.kind == "classes" else decision[:, :, 0]
            truth = np.broadcast_to(one.labels.given[split.test][:, None], predicted.shape)
            held = Held(truth, predicted, decision)
            for metric, score in SCORES[one.labels.kind].items():
                frames.append(_cells(key, keys, one, metric, number, score(held, None)[0]))
    return pl.concat(frames)


def _cells(key: Key, keys: list[Key], one: Analysis, metric: str, fold: int, scores: Floats) -> pl.DataFrame:
    columns = {
        "train_site": [site for site, _ in keys],
        "train_layer": [layer for _, layer in keys],
        "score": scores,
    }
    same = {
        "test_site": key[0], "test_layer": key[1], "target": one.labels.name, "probe": one.probe.name,
        "metric": metric, "fold": fold,
    }  # fmt: skip
    frame = pl.DataFrame(columns, schema_overrides={"train_layer": pl.Int32})
    constants = [pl.lit(value, TRANSFER_SCHEMA[name]).alias(name) for name, value in same.items()]
    return frame.with_columns(constants).select(TRANSFER_SCHEMA.names())
