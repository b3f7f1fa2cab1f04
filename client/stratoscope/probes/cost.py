"""What a sweep will cost, told before it begins: fits, seconds and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratoscope.probes.column import probe_column
from stratoscope.probes.features import CHUNK
from stratoscope.probes.labels import Labels
from stratoscope.probes.task import Task

SAMPLE = 6
"""Label vectors that are timed, of those that a sweep fits."""


@dataclass(frozen=True)
class Cost:
    """A forecast.

    n_columns : columns to fit
    n_fits : fits that plain scikit-learn would make for the same scores, inner folds and grid included
    seconds : wall time on this machine, measured on one fold of one column and scaled
    n_bytes : memory at the peak, above that of the program
    """

    n_columns: int
    n_fits: int
    seconds: float
    n_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.n_columns} columns, {self.n_fits:,} fits, about {duration(self.seconds)}, "
            f"about {self.n_bytes / 2**20:,.0f} MiB of memory"
        )


def count_fits(task: Task, n_columns: int) -> int:
    """Count the fits that plain scikit-learn would make."""
    n_fits = 0
    for one in task.analyses:
        n_values = len(task.settings.grid(one.probe.hyper))
        per_vector = 1 + n_values * task.settings.inner_folds if n_values > 1 else 1
        n_fits += n_columns * len(task.splits) * one.labels.Y.shape[1] * per_vector
    return n_fits


def estimate_cost(X: NDArray[Any], task: Task, n_columns: int, n_jobs: int) -> Cost:
    """Time one fold of one column with few label vectors, and scale.

    Parameters
    ----------
    X : float array of shape (n_stimuli, d_model)
        A column like the others.
    task : Task
    n_columns, n_jobs : int
    """
    fold = replace(task, splits=task.splits[:1])
    first = _timed(X, _few(fold, 1))
    n_vectors = max(one.labels.Y.shape[1] for one in task.analyses)
    more = _timed(X, _few(fold, SAMPLE)) if n_vectors > 1 else first
    per_vector = max(more - first, 0.0) / (min(SAMPLE, n_vectors) - 1) if n_vectors > 1 else 0.0
    per_column = len(task.splits) * (first + per_vector * (n_vectors - 1))
    return Cost(
        n_columns,
        count_fits(task, n_columns),
        per_column * n_columns / min(n_jobs, n_columns),
        memory(X, task, n_vectors, n_jobs),
    )


def memory(X: NDArray[Any], task: Task, n_vectors: int, n_jobs: int) -> int:
    """Forecast bytes: per column at work the column, a chunk of it in float64, four square matrices, decisions."""
    n_rows, n_features = X.shape
    is_wide = len(task.splits[0].train) <= n_features
    square = 4 * 8 * n_rows**2
    features = 2 * 8 * n_rows * (CHUNK if is_wide else n_features)
    outputs = max(one.labels.n_outputs for one in task.analyses)
    return int((n_jobs + 1) * X.nbytes + n_jobs * (square + features + 4 * 8 * n_rows * n_vectors * outputs))


def _few(task: Task, n_vectors: int) -> Task:
    def cut(labels: Labels) -> Labels:
        return replace(labels, Y=labels.Y[:, :n_vectors], vectors=labels.vectors[:n_vectors])

    return replace(task, analyses=tuple(replace(one, labels=cut(one.labels)) for one in task.analyses))


def _timed(X: NDArray[Any], task: Task) -> float:
    began = time.perf_counter()
    probe_column(X, task)
    return time.perf_counter() - began


def duration(seconds: float) -> str:
    """Write a time for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def is_long(task: Task, n_columns: int, n_features: int) -> bool:
    """Whether a sweep may take long enough for a forecast to be worth two extra fits."""
    n_rows = len(task.ids)
    n_one_by_one = sum(one.labels.Y.shape[1] for one in task.analyses)
    products = n_columns * len(task.splits) * n_rows * (n_rows * n_features + n_one_by_one * n_rows * np.sqrt(n_rows))
    return bool(products > 2e11)
