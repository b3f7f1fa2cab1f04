"""One column of activations put to the task: pure, so that a pool or a cluster may map it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stratoscope.probes.errors import ActivationsError
from stratoscope.probes.estimators import FoldFit
from stratoscope.probes.features import FoldFeatures
from stratoscope.probes.folds import Split
from stratoscope.probes.scoring import SCORES, Held
from stratoscope.probes.task import Analysis, Task

Key = tuple[str, int | None]
"""(site, layer); layer is None for the sites of the whole model, ``embed`` and ``final_norm``."""


class AnalysisFit(NamedTuple):
    """What one analysis yields of one column.

    predicted : float64 array of shape (n_stimuli,); out of fold, for the labels as given
    decision : float64 array of shape (n_stimuli, n_outputs); likewise
    scores : float64 array of shape (n_folds, n_vectors, n_metrics)
    chosen, inner : float64 arrays of shape (n_folds, n_vectors); see `FoldFit`
    """

    predicted: NDArray[np.float64]
    decision: NDArray[np.float64]
    scores: NDArray[np.float64]
    chosen: NDArray[np.float64]
    inner: NDArray[np.float64]


class ColumnFit(NamedTuple):
    """Everything the probes of one column yield.

    n_constant : features that are the same for all stimuli
    fits : one per analysis of the task
    """

    n_constant: int
    fits: tuple[AnalysisFit, ...]


def probe_column(X: NDArray[Any], task: Task) -> ColumnFit:
    """Fit and score every fold, analysis and label vector on one column.

    Parameters
    ----------
    X : float array of shape (n_stimuli, d_model)
    task : Task
    """
    # One BLAS thread per column at work: no oversubscription, and the same rounding however many are at work.
    with threadpool_limits(limits=1):
        return fit_column(X, task)


def fit_column(X: NDArray[Any], task: Task) -> ColumnFit:
    """`probe_column` where BLAS is limited to one thread already: finding its libraries takes longer than some fits."""
    by_fold = [_fit_fold(X, task, split) for split in task.splits]
    fits = [
        _gather(task, one, fold_fits) for one, fold_fits in zip(task.analyses, zip(*by_fold, strict=True), strict=True)
    ]
    return ColumnFit(int((X.min(axis=0) == X.max(axis=0)).sum()), tuple(fits))


def check_column(key: object, column: object, ids: tuple[str, ...]) -> tuple[Key, NDArray[Any]]:
    """Return the key and the column if it holds one finite row of floating point numbers per stimulus.

    Raises
    ------
    ActivationsError
        Naming the column, and the first stimulus with a value that is not finite.
    """
    checked = _checked_key(key)
    name = column_name(checked)
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
    return checked, array


def column_name(key: Key) -> str:
    """Write a key as a name such as ``resid_post.12``."""
    return key[0] if key[1] is None else f"{key[0]}.{key[1]}"


def _checked_key(key: object) -> Key:
    match key:
        case (str(site), int() | None as layer):
            return site, layer
        case _:
            raise ActivationsError(f"activations key {key!r}; expected (site, layer). Choose one selector of the run.")


def _fit_fold(X: NDArray[Any], task: Task, split: Split) -> list[FoldFit]:
    fold = FoldFeatures(X, split.train, split.test, scale=task.settings.scale)
    return [one.probe.fit(fold, one.labels, split, task.settings) for one in task.analyses]


def _gather(task: Task, one: Analysis, fits: tuple[FoldFit, ...]) -> AnalysisFit:
    labels = one.labels
    predicted, decision = np.empty(len(task.ids)), np.empty((len(task.ids), labels.n_outputs))
    scores = []
    for split, fit in zip(task.splits, fits, strict=True):
        predicted[split.test], decision[split.test] = fit.predicted[:, 0], fit.decision[:, 0]
        held = Held(labels.Y[split.test], fit.predicted, fit.decision)
        scores.append(np.column_stack([score(held, None)[0] for score in SCORES[labels.kind].values()]))
    chosen, inner = np.stack([fit.chosen for fit in fits]), np.stack([fit.inner for fit in fits])
    return AnalysisFit(predicted, decision, np.stack(scores), chosen, inner)
