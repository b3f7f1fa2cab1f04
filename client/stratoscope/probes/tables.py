"""Tidy tables from fitted columns: one row per score, one row per held-out prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from stratoscope.probes.column import ColumnFit, Key
from stratoscope.probes.task import Task

INNER_METRIC = "mse"
"""The inner folds' criterion, in squared units of the label."""

SCORES_SCHEMA = pl.Schema(
    {
        "site": pl.String,
        "layer": pl.Int32,
        "target": pl.String,
        "probe": pl.String,
        "metric": pl.String,
        "level": pl.String,  # "outer": held-out stimuli; "inner": what chose alpha, never to be reported
        "control": pl.String,  # "none", "shuffled", "text"
        "repeat": pl.Int32,  # number of the shuffle; 0 for the others
        "fold": pl.Int32,
        "score": pl.Float64,  # NaN where not defined
        "n_train": pl.Int32,
        "n_test": pl.Int32,
        "C": pl.Float64,
        "alpha": pl.Float64,
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
        "label": pl.Float64,  # 0 or 1 for classes
        "prediction": pl.Float64,
        "decision": pl.Float64,  # signed distance to the boundary for classes; the prediction for values
    }
)


def scores_table(key: Key, fit: ColumnFit, task: Task, *, control: str = "none") -> pl.DataFrame:
    """Scores of one column, outer and, where alpha was chosen, inner.

    `control` names what the first label vector is; those behind it are always ``"shuffled"``.
    """
    outer = [_scores_block(key, fit, task, control, "outer", name, fit.scores[..., i]) for i, name in _metrics(task)]
    chose = np.isfinite(fit.inner).all()
    inner = [_scores_block(key, fit, task, control, "inner", INNER_METRIC, fit.inner)] if chose else []
    return pl.concat(outer + inner)


def predictions_table(key: Key, fit: ColumnFit, task: Task, *, control: str = "none") -> pl.DataFrame:
    """Out-of-fold predictions of one column, for the labels as given."""
    classes = task.probe.kind == "classes"
    columns: dict[str, Any] = {
        "stimulus_id": task.ids,
        "group": task.groups.tolist(),
        **_names(key, task),
        "control": control,
        "fold": task.fold_of,
        "label": task.Y[:, 0],
        "prediction": (fit.decision >= 0).astype(np.float64) if classes else fit.decision,
        "decision": fit.decision,
    }
    return _frame(columns, PREDICTIONS_SCHEMA)


def _scores_block(
    key: Key, fit: ColumnFit, task: Task, control: str, level: str, metric: str, values: np.ndarray[Any, Any]
) -> pl.DataFrame:
    """Rows of one metric; `values` has shape (n_folds, n_targets)."""
    n_folds, n_targets = values.shape
    fold, vector = (index.ravel() for index in np.indices(values.shape))
    chosen: dict[str, Any] = {"C": None, "alpha": None, task.probe.hyper: fit.chosen.ravel()}
    columns: dict[str, Any] = {
        **_names(key, task),
        "metric": metric,
        "level": level,
        "control": [control, *["shuffled"] * (n_targets - 1)] * n_folds,
        "repeat": np.maximum(vector - 1, 0),
        "fold": fold,
        "score": values.ravel(),
        "n_train": np.array([len(split.train) for split in task.splits])[fold],
        "n_test": np.array([len(split.test) for split in task.splits])[fold],
        **chosen,
    }
    return _frame(columns, SCORES_SCHEMA)


def _names(key: Key, task: Task) -> dict[str, Any]:
    site, layer = key
    return {"site": site, "layer": layer, "target": task.target, "probe": task.probe_name}


def _metrics(task: Task) -> list[tuple[int, str]]:
    return list(enumerate(task.probe.scores))


def _frame(columns: dict[str, Any], schema: pl.Schema) -> pl.DataFrame:
    """Make a table of the schema; plain values are repeated down their column."""
    arrays = {name: value for name, value in columns.items() if isinstance(value, (list, tuple, np.ndarray))}
    constants = [pl.lit(columns[name], schema[name]).alias(name) for name in columns if name not in arrays]
    return pl.DataFrame(arrays).with_columns(constants).select(schema.names()).cast(schema)
