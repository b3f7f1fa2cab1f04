"""Tidy tables from fitted columns: scores, held-out predictions, and the permutation null."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

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


def tables(fits: Sequence[tuple[Key, ColumnFit]], task: Task, *, text: bool = False) -> Tables:
    """Make the tables of all columns; `text` says that it is the word counts of the text-only baseline.

    Rows are in the order of columns, within one of analyses.
    """
    parts = [part for i, one in enumerate(task.analyses) for part in _parts(fits, i, one, task, text=text)]
    return Tables(*(_in_order([getattr(part, name) for part in parts]) for name in Tables._fields))


def join(parts: Sequence[Tables]) -> Tables:
    """Put the rows of several tables below each other."""
    return Tables(*(pl.concat(frames) for frames in zip(*parts, strict=True)))


_COLUMN = "column"


def _in_order(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames).sort(_COLUMN, maintain_order=True).drop(_COLUMN)


def _parts(
    fits: Sequence[tuple[Key, ColumnFit]], index: int, one: Analysis, task: Task, *, text: bool
) -> Iterator[Tables]:
    """Yield the tables of one analysis, and what chose its hyper-parameters."""
    keys, metrics = [key for key, _ in fits], list(SCORES[one.labels.kind])
    of = [fit.fits[index] for _, fit in fits]
    scores = np.stack([fit.scores.transpose(2, 0, 1) for fit in of])  # n_columns, n_metrics, n_folds, n_vectors
    outer = _scores(keys, of, one, task, "outer", metrics, scores, text)
    predictions, null = _predictions(keys, of, one, task, text), _null(keys, scores, one, metrics)
    yield Tables(outer, predictions, null)
    chosen = np.flatnonzero([np.isfinite(fit.inner[:, 0]).all() for fit in of])
    if len(chosen):
        inner = np.stack([of[i].inner[None] for i in chosen])
        found = _scores(keys, [of[i] for i in chosen], one, task, "inner", [one.probe.criterion], inner, text, chosen)
        yield Tables(found, predictions.clear(), null.clear())


def _scores(
    keys: Sequence[Key],
    fits: Sequence[AnalysisFit],
    one: Analysis,
    task: Task,
    level: str,
    metrics: Sequence[str],
    values: NDArray[np.float64],
    text: bool,  # noqa: FBT001
    of: NDArray[np.intp] | None = None,
) -> pl.DataFrame:
    """Rows of some metrics of the columns numbered `of`; `values` is (n_columns, n_metrics, n_folds, n_vectors)."""
    kept = [i for i, (control, _) in enumerate(one.labels.vectors) if control != "permuted"]
    _, n_metrics, n_folds, _ = values.shape
    sizes = np.array([(len(split.train), len(split.test)) for split in task.splits])
    fold = np.repeat(np.arange(n_folds), len(kept))
    vectors = [one.labels.vectors[i] for i in kept] * n_folds
    template: dict[str, Any] = {
        "target": one.labels.name,
        "probe": one.probe.name,
        "metric": np.repeat(np.array(metrics, dtype=object), len(fold)),
        "level": level,
        "control": "text" if text else [control for control, _ in vectors] * n_metrics,
        "repeat": [repeat for _, repeat in vectors] * n_metrics,
        "fold": np.tile(fold, n_metrics),
        "n_train": np.tile(sizes[fold, 0], n_metrics),
        "n_test": np.tile(sizes[fold, 1], n_metrics),
        **dict.fromkeys(("C", "alpha", "shrinkage")),
    }
    each: dict[str, Any] = {"score": values[..., kept]}
    if one.probe.hyper is not None:
        each[one.probe.hyper] = np.stack([np.tile(fit.chosen[:, kept].ravel(), n_metrics) for fit in fits])
    return _frame(keys, template, each, SCORES_SCHEMA, of)


def _predictions(
    keys: Sequence[Key],
    fits: Sequence[AnalysisFit],
    one: Analysis,
    task: Task,
    text: bool,  # noqa: FBT001
) -> pl.DataFrame:
    """Out-of-fold predictions for the labels as given, one row per column, stimulus and output."""
    n_outputs = fits[0].decision.shape[1]
    repeated = {
        "stimulus_id": np.array(task.ids, dtype=object),
        "group": task.groups.astype(object),
        "fold": task.fold_of,
        "label": one.labels.given,
    }
    template: dict[str, Any] = {
        **{name: values.repeat(n_outputs) for name, values in repeated.items()},
        "target": one.labels.name,
        "probe": one.probe.name,
        "control": "text" if text else "none",
        "class": list(one.labels.classes) * len(task.ids) if n_outputs > 1 else None,
    }
    each = {
        "prediction": np.stack([fit.predicted.repeat(n_outputs) for fit in fits]),
        "decision": np.stack([fit.decision for fit in fits]),
    }
    return _frame(keys, template, each, PREDICTIONS_SCHEMA)


def _null(keys: Sequence[Key], scores: NDArray[np.float64], one: Analysis, metrics: list[str]) -> pl.DataFrame:
    permuted = [i for i, (control, _) in enumerate(one.labels.vectors) if control == "permuted"]
    template: dict[str, Any] = {
        "target": one.labels.name,
        "probe": one.probe.name,
        "metric": np.repeat(np.array(metrics, dtype=object), len(permuted)),
        "permutation": np.tile(np.arange(len(permuted)), len(metrics)),
    }
    return _frame(keys, template, {"score": scores[..., permuted].mean(axis=2)}, NULL_SCHEMA)


def _frame(
    keys: Sequence[Key],
    template: dict[str, Any],
    each: dict[str, NDArray[np.float64]],
    schema: pl.Schema,
    of: NDArray[np.intp] | None = None,
) -> pl.DataFrame:
    """Make a table, with a further column that numbers the columns of activations.

    Parameters
    ----------
    template
        What is the same for every column: one value per row, or one for all rows.
    each : arrays of shape (n_columns, ...)
        What is not.
    of : int array of shape (n_columns,), optional
        Which of `keys` these are; all, if not given.
    """
    numbers = np.arange(len(keys)) if of is None else of
    arrays = {name: value for name, value in template.items() if isinstance(value, (list, tuple, np.ndarray))}
    one = pl.DataFrame([pl.Series(name, value, dtype=schema[name], strict=False) for name, value in arrays.items()])
    which = pl.DataFrame(
        {_COLUMN: numbers, "site": [keys[i][0] for i in numbers], "layer": [keys[i][1] for i in numbers]},
        schema={_COLUMN: pl.Int64, "site": schema["site"], "layer": schema["layer"]},
    )
    n_rows = one.height
    tiled = one[np.tile(np.arange(n_rows), len(numbers))].hstack(which[np.repeat(np.arange(len(numbers)), n_rows)])
    plain = [name for name in template if name not in arrays and name not in each]
    constants = [pl.lit(template[name], schema[name]).alias(name) for name in plain]
    values = [pl.Series(name, value.ravel(), dtype=schema[name]) for name, value in each.items()]
    return tiled.with_columns(*constants, *values).select(*schema.names(), _COLUMN)
