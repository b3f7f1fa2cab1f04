"""The sweep: one probe, fitted on every column of activations with the same folds and the same shuffled labels."""

# ruff: noqa: N803  X, Y and C are the names of the mathematics and of scikit-learn

from __future__ import annotations

import os
import platform
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from stratoscope.probes.baselines import bag_of_words, label_level
from stratoscope.probes.column import ColumnFit, Key, check_column, probe_column
from stratoscope.probes.errors import ActivationsError, DesignError, GridEdgeWarning
from stratoscope.probes.estimators import ALPHAS, Settings
from stratoscope.probes.folds import folds_hash
from stratoscope.probes.tables import predictions_table, scores_table
from stratoscope.probes.task import Task, make_task

TEXT_COLUMN: Key = ("text", None)
"""Site and layer under which the text-only baseline is recorded."""

CONTROLS = ("shuffled", "text")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    scores : one row per column, metric, control, repeat and fold; see ``tables.SCORES_SCHEMA``
    predictions : one row per column and stimulus, out of fold; see ``tables.PREDICTIONS_SCHEMA``
    provenance : settings, folds hash, label level, seed and versions, as JSON can hold them
    """

    scores: pl.DataFrame
    predictions: pl.DataFrame
    provenance: dict[str, Any]


def sweep(
    activations: Mapping[Any, Any],
    y: ArrayLike,
    *,
    groups: ArrayLike,
    probe: str = "svm",
    folds: int | ArrayLike = 5,
    scale: bool = True,
    ids: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    target: str = "label",
    controls: Sequence[str] = CONTROLS,
    n_shuffles: int = 5,
    C: float = 1.0,
    alpha: float | Sequence[float] = ALPHAS,
    inner_folds: int = 5,
    n_jobs: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Fit one linear probe per column, held-out group by held-out group.

    Parameters
    ----------
    activations : mapping of (site, layer) to a float array of shape (n_stimuli, d_model)
        Read one column at a time, in the calling thread. Layer is None for ``embed`` and ``final_norm``.
    y : array-like of shape (n_stimuli,)
        Labels: two classes of any type for ``"svm"`` (the second in sorted order is class 1), numbers for ``"ridge"``.
    groups : array-like of shape (n_stimuli,)
        What must not be both trained on and tested on: item, pair, block of pairs. Pass the ids for no grouping.
    probe : {"svm", "ridge"}
    folds : int, or int array of shape (n_stimuli,)
        Number of grouped folds to make (see `assign_folds`), or fold numbers to replay.
    scale : bool
        Divide features by their standard deviation over the training rows; they are centred in any case.
    ids, texts : sequences of n_stimuli strings
        Ids default to row numbers. Texts are needed by the ``"text"`` control.
    target : str
        Name of what is predicted.
    controls : subset of ("shuffled", "text")
        ``"shuffled"``: `n_shuffles` label vectors shuffled at the level where the label lives (`shuffle_labels`), the
        same for all columns. ``"text"``: the same probe on word counts (`bag_of_words`), recorded under site "text".
    C : float
        Penalty of the SVM.
    alpha : float or ascending sequence of floats
        Ridge penalty; several are chosen from by `inner_folds` grouped inner folds, anew for every label vector.
    n_jobs : int
        Threads, one column each; -1 for all cores. The numbers do not depend on it.
    seed : int
        Seed of folds and shuffles.
    progress : callable of (columns done, columns in all)

    Returns
    -------
    SweepResult

    Raises
    ------
    DesignError
        If labels, groups, folds, ids, texts or settings cannot carry the probe.
    ActivationsError
        If a column has another length, is not floating point, or is not finite.

    Warns
    -----
    GridEdgeWarning
        If alpha was chosen at an edge of its grid for the labels as given.
    """
    alphas = (float(alpha),) if isinstance(alpha, (int, float)) else tuple(float(a) for a in alpha)
    settings = Settings(scale=scale, C=C, alphas=alphas, inner_folds=inner_folds)
    _check_controls(controls, texts, n_shuffles)
    if not activations:
        raise ActivationsError("activations holds no columns")
    task = make_task(
        y, groups, probe=probe, folds=folds, settings=settings, ids=ids, texts=texts, target=target, seed=seed
    )
    if "shuffled" in controls:
        task = task.with_shuffles(n_shuffles, seed)

    bag = bag_of_words(texts) if "text" in controls and texts is not None else None
    # One BLAS thread per column at work: no oversubscription, and the same rounding whatever n_jobs is.
    with threadpool_limits(limits=1):
        fits = []
        for fitted in _fit_columns(activations, task, _n_threads(n_jobs)):
            fits.append(fitted)
            if progress is not None:
                progress(len(fits), len(activations))
        text_fit = None if bag is None else probe_column(bag, task.unshuffled())
    _warn_at_grid_edge(fits, settings, task)
    return _result(fits, text_fit, task, _provenance(task, controls, seed))


def _fit_columns(activations: Mapping[Any, Any], task: Task, n_jobs: int) -> Iterator[tuple[Key, ColumnFit]]:
    """Read columns here, fit them in `n_jobs` threads, hold no more than n_jobs + 1 of them, keep their order."""
    waiting: deque[tuple[Key, Future[ColumnFit]]] = deque()
    with ThreadPoolExecutor(n_jobs) as pool:
        for key in activations:
            checked, column = check_column(key, activations[key], task.ids)
            waiting.append((checked, pool.submit(probe_column, column, task)))
            if len(waiting) > n_jobs:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def _result(
    fits: list[tuple[Key, ColumnFit]], text_fit: ColumnFit | None, task: Task, provenance: dict[str, Any]
) -> SweepResult:
    scores = [scores_table(key, fit, task) for key, fit in fits]
    predictions = [predictions_table(key, fit, task) for key, fit in fits]
    if text_fit is not None:
        scores.append(scores_table(TEXT_COLUMN, text_fit, task.unshuffled(), control="text"))
        predictions.append(predictions_table(TEXT_COLUMN, text_fit, task, control="text"))
    return SweepResult(pl.concat(scores), pl.concat(predictions), provenance)


def _n_threads(n_jobs: int) -> int:
    if n_jobs == 0 or n_jobs < -1:
        raise DesignError(f"n_jobs={n_jobs}: give a number of threads, or -1 for one per core")
    return n_jobs if n_jobs > 0 else os.cpu_count() or 1


def _check_controls(controls: Sequence[str], texts: Sequence[str] | None, n_shuffles: int) -> None:
    for control in controls:
        if control not in CONTROLS:
            raise DesignError(f"control {control!r} is unknown; choose from {', '.join(CONTROLS)}")
    if "shuffled" in controls and n_shuffles < 1:
        raise DesignError(f'control "shuffled": n_shuffles={n_shuffles}; give at least 1, or leave it out of controls')
    if "text" in controls and texts is None:
        raise DesignError('control "text" needs texts=. Pass them, or controls=("shuffled",).')


def _warn_at_grid_edge(fits: list[tuple[Key, ColumnFit]], settings: Settings, task: Task) -> None:
    if task.probe.hyper != "alpha" or len(settings.alphas) < 2:
        return
    chosen = np.concatenate([fit.chosen[:, 0] for _, fit in fits])
    for edge, alpha in (("lower", settings.alphas[0]), ("upper", settings.alphas[-1])):
        at_edge = int((chosen == alpha).sum())
        if at_edge:
            warnings.warn(
                f"target {task.target!r}: alpha sits at the {edge} edge of its grid ({alpha:g}) in {at_edge} of "
                f"{len(chosen)} fits. Widen alpha=; at the upper edge the column may also hold no signal.",
                GridEdgeWarning,
                stacklevel=3,
            )


def _provenance(task: Task, controls: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        "target": task.target,
        "probe": task.probe_name,
        "settings": {**asdict(task.settings), "alphas": list(task.settings.alphas)},
        "classes": list(task.classes),
        "label_level": label_level(task.Y[:, 0], task.group_of),
        "controls": list(controls),
        "n_shuffles": task.Y.shape[1] - 1,
        "seed": seed,
        "n_stimuli": len(task.ids),
        "n_groups": len(np.unique(task.groups)),
        "n_folds": len(task.splits),
        "folds_sha256": folds_hash(task.ids, task.fold_of),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }


_PACKAGES = ("stratoscope", "scikit-learn", "numpy", "scipy", "polars")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"
