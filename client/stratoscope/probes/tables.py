"""Tidy tables from fitted columns: scores, held-out predictions, and the permutation null."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stratoscope.probes.column import AnalysisFit, ColumnFit, Key
from stratoscope.probes.scoring import SCORES
from stratoscope.probes.task import Analysis, Task

SCORES_SCHEMA = pl.Schema(
    {
        "site": pl.String,
        "layer": pl.Int32,
        "target": pl.String,
        "probe": pl.String,
        "metric": pl.String,
        "level": pl.String,  # "outer": held-out stimuli; "inner": what chose the hyper-parameter, never to be reported
        "control": pl.String,  # "none", "shuffled", "type", "text"
        "repeat": pl.Int32,  # number of the draw of a control; 0 for the others
        "fold": pl.Int32,
        "score": pl.Float64,  # NaN where not defined
        "n_train": pl.Int32,
        "n_test": pl.Int32,
        "C": pl.Float64,
        "alpha": pl.Float64,
        "shrinkage": pl.Float64,
    }
)

PREDICTIONS_SCHEMA = pl.Schema(
    {
        "stimulus_id": pl.String,
        "group": pl.String,
        "site": pl.String,
        "layer": pl.Int32,
        "target": pl.String,
        "probe": pl.String,
        "control": pl.String,  # "none", "text"
        "fold": pl.Int32,
        "class": pl.String,  # of the decision, where there are three classes or more; else null
        "label": pl.Float64,  # class number, or value
        "prediction": pl.Float64,  # class number, or value
        "decision": pl.Float64,  # signed distance to the boundary or class score; the prediction for values
    }
)

NULL_SCHEMA = pl.Schema(
    {
        "site": pl.String,
        "layer": pl.Int32,
        "target": pl.String,
        "probe": pl.String,
        "metric": pl.String,
        "permutation": pl.Int32,
        "score": pl.Float64,  # mean over outer folds; NaN where not defined
    }
)


class Tables(NamedTuple):
    """What a fitted column becomes; see the schemas."""

    scores: pl.DataFrame
    predictions: pl.DataFrame
    null: pl.DataFrame


def tables(key: Key, fit: ColumnFit, task: Task, *, text: bool = False) -> Tables:
    """Make the tables of one column; `text` says that it is the word counts of the text-only baseline."""
    parts = [_tables(key, of, one, task, text=text) for of, one in zip(fit.fits, task.analyses, strict=True)]
    return join([*parts])


def join(parts: list[Tables]) -> Tables:
    """Put the rows of several tables below each other."""
    return Tables(*(pl.concat(frames) for frames in zip(*parts, strict=True)))


def _tables(key: Key, fit: AnalysisFit, one: Analysis, task: Task, *, text: bool) -> Tables:
    metrics = list(SCORES[one.labels.kind])
    blocks = [_scores(key, fit, one, task, "outer", name, fit.scores[..., i], text) for i, name in enumerate(metrics)]
    if np.isfinite(fit.inner[:, 0]).all():
        blocks.append(_scores(key, fit, one, task, "inner", one.probe.criterion, fit.inner, text))
    return Tables(pl.concat(blocks), _predictions(key, fit, one, task, text), _null(key, fit, one, metrics))


def _scores(
    key: Key,
    fit: AnalysisFit,
    one: Analysis,
    task: Task,
    level: str,
    metric: str,
    values: np.ndarray[Any, Any],
    text: bool,  # noqa: FBT001
) -> pl.DataFrame:
    """Rows of one metric; `values` has shape (n_folds, n_vectors)."""
    kept = [i for i, (control, _) in enumerate(one.labels.vectors) if control != "permuted"]
    controls = ["text" if text else one.labels.vectors[i][0] for i in kept]
    n_folds, n_vectors = len(values), len(kept)
    fold = np.repeat(np.arange(n_folds), n_vectors)
    columns: dict[str, Any] = {
        **_names(key, one),
        "metric": metric,
        "level": level,
        "control": controls * n_folds,
        "repeat": [one.labels.vectors[i][1] for i in kept] * n_folds,
        "fold": fold,
        "score": values[:, kept].ravel(),
        "n_train": np.array([len(split.train) for split in task.splits])[fold],
        "n_test": np.array([len(split.test) for split in task.splits])[fold],
        **dict.fromkeys(("C", "alpha", "shrinkage")),
    }
    if one.probe.hyper is not None:
        columns[one.probe.hyper] = fit.chosen[:, kept].ravel()
    return _frame(columns, SCORES_SCHEMA)


def _predictions(key: Key, fit: AnalysisFit, one: Analysis, task: Task, text: bool) -> pl.DataFrame:  # noqa: FBT001
    """Out-of-fold predictions for the labels as given, one row per stimulus and output."""
    n_outputs = fit.decision.shape[1]
    repeated = {
        "stimulus_id": np.array(task.ids, dtype=object),
        "group": task.groups.astype(object),
        "fold": task.fold_of,
        "label": one.labels.given,
        "prediction": fit.predicted,
    }
    columns: dict[str, Any] = {
        **{name: values.repeat(n_outputs) for name, values in repeated.items()},
        **_names(key, one),
        "control": "text" if text else "none",
        "class": list(one.labels.classes) * len(task.ids) if n_outputs > 1 else None,
        "decision": fit.decision.ravel(),
    }
    return _frame(columns, PREDICTIONS_SCHEMA)


def _null(key: Key, fit: AnalysisFit, one: Analysis, metrics: list[str]) -> pl.DataFrame:
    permuted = [i for i, (control, _) in enumerate(one.labels.vectors) if control == "permuted"]
    if not permuted:
        return pl.DataFrame(schema=NULL_SCHEMA)
    columns: dict[str, Any] = {
        **_names(key, one),
        "metric": np.repeat(np.array(metrics, dtype=object), len(permuted)),
        "permutation": np.tile(np.arange(len(permuted)), len(metrics)),
        "score": fit.scores[:, permuted].mean(axis=0).T.ravel(),
    }
    return _frame(columns, NULL_SCHEMA)


def _names(key: Key, one: Analysis) -> dict[str, Any]:
    site, layer = key
    return {"site": site, "layer": layer, "target": one.labels.name, "probe": one.probe.name}


def _frame(columns: dict[str, Any], schema: pl.Schema) -> pl.DataFrame:
    """Make a table of the schema; plain values are repeated down their column."""
    arrays = {name: value for name, value in columns.items() if isinstance(value, (list, tuple, np.ndarray))}
    series = [pl.Series(name, value, dtype=schema[name], strict=False) for name, value in arrays.items()]
    constants = [pl.lit(columns[name], schema[name]).alias(name) for name in columns if name not in arrays]
    return pl.DataFrame(series).with_columns(constants).select(schema.names())
