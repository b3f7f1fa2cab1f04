"""One column of activations put to the task: pure, so that a pool or a cluster may map it."""

# ruff: noqa: N803  X, Y and C are the names of the mathematics and of scikit-learn

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stratoscope.probes.errors import ActivationsError
from stratoscope.probes.task import Task

Key = tuple[str, int | None]
"""(site, layer); layer is None for the sites of the whole model, ``embed`` and ``final_norm``."""


class ColumnFit(NamedTuple):
    """Everything the probes of one column yield.

    decision : float64 array of shape (n_stimuli,); out-of-fold, for the labels as given
    scores : float64 array of shape (n_folds, n_targets, n_metrics)
    chosen, inner : float64 arrays of shape (n_folds, n_targets); see `FoldFit`
    """

    decision: NDArray[np.float64]
    scores: NDArray[np.float64]
    chosen: NDArray[np.float64]
    inner: NDArray[np.float64]


def probe_column(X: NDArray[np.float64], task: Task) -> ColumnFit:
    """Fit and score every fold and label vector on one column.

    Parameters
    ----------
    X : float64 array of shape (n_stimuli, d_model)
    task : Task
    """
    fits = [task.probe.fit(X, task.Y, split, task.settings) for split in task.splits]
    decision = np.empty(len(X))
    for split, fit in zip(task.splits, fits, strict=True):
        decision[split.test] = fit.decision[:, 0]
    scores = [_scores(task, split.test, fit.decision) for split, fit in zip(task.splits, fits, strict=True)]
    chosen, inner = np.stack([fit.chosen for fit in fits]), np.stack([fit.inner for fit in fits])
    return ColumnFit(decision, np.stack(scores), chosen, inner)


def check_column(key: object, column: object, ids: tuple[str, ...]) -> tuple[Key, NDArray[np.float64]]:
    """Return the key and the column as float64 if it holds one finite row per stimulus.

    Raises
    ------
    ActivationsError
        Naming the column, and the first stimulus with a value that is not finite.
    """
    checked = _checked_key(key)
    name = checked[0] if checked[1] is None else f"{checked[0]}.{checked[1]}"
    if not isinstance(column, np.ndarray):
        raise ActivationsError(f"column {name} is a {type(column).__name__}, not one array: probe one row per stimulus")
    array: NDArray[Any] = column
    if array.dtype.kind != "f":
        raise ActivationsError(f"column {name} has dtype {array.dtype}; widen raw bfloat16 bits to float32 first")
    if array.ndim != 2 or len(array) != len(ids) or not array.shape[1]:
        raise ActivationsError(f"column {name} has shape {array.shape}; expected ({len(ids)}, d_model)")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ActivationsError(
            f"column {name} holds NaN or infinity for stimulus {ids[int(finite.argmin())]!r} "
            f"({int((~finite).sum())} of {len(ids)} stimuli). Collect it again, or leave the column out."
        )
    return checked, array.astype(np.float64)


def _checked_key(key: object) -> Key:
    match key:
        case (str(site), int() | None as layer):
            return site, layer
        case _:
            raise ActivationsError(f"activations key {key!r}; expected (site, layer). Choose one selector of the run.")


def _scores(task: Task, test: NDArray[np.intp], decision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of one fold, (n_targets, n_metrics)."""
    once = np.ones((1, len(test)))
    return np.column_stack([score(task.Y[test], decision, once)[0] for score in task.probe.scores.values()])
