"""The sweep: probes fitted on every column of activations with the same folds and the same drawn labels."""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import joblib
import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from stratoscope.probes.baselines import bag_of_words
from stratoscope.probes.checkpoints import Checkpoints
from stratoscope.probes.column import ColumnFit, Key, check_column, column_name, fit_column, probe_column
from stratoscope.probes.cost import estimate_cost, is_long
from stratoscope.probes.errors import ConstantFeatureWarning, DesignError, GridEdgeWarning, PermutationWarning
from stratoscope.probes.estimators import ALPHAS, SHRINKAGES, Settings, as_grid
from stratoscope.probes.labels import as_names
from stratoscope.probes.provenance import provenance
from stratoscope.probes.sources import Source, read_source
from stratoscope.probes.tables import NULL_SCHEMA, join, tables
from stratoscope.probes.task import Analysis, Task, make_task

TEXT_COLUMN: Key = ("text", None)
"""Site and layer under which the text-only baseline is recorded."""

CONTROLS = ("shuffled", "type", "text")
DEFAULT_CONTROLS = ("shuffled", "text")
LONG_S = 60.0
"""Forecast of seconds from which it is told."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    scores : one row per column, target, probe, metric, control, repeat and fold; see ``tables.SCORES_SCHEMA``
    predictions : one row per column, target, probe and stimulus, out of fold; see ``tables.PREDICTIONS_SCHEMA``
    provenance : settings, folds hash, label level, seed and versions, as JSON can hold them
    null : one row per column, target, probe, metric and permutation; see ``tables.NULL_SCHEMA``
    """

    scores: pl.DataFrame
    predictions: pl.DataFrame
    provenance: dict[str, Any]
    null: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=NULL_SCHEMA))

    def split(self) -> list[SweepResult]:
        """Return one result per target and probe."""
        if "analyses" not in self.provenance:
            return [self]
        common = {name: value for name, value in self.provenance.items() if name != "analyses"}
        return [self._of(common | analysis) for analysis in self.provenance["analyses"]]

    def _of(self, facts: dict[str, Any]) -> SweepResult:
        chosen = (pl.col("target") == facts["target"]) & (pl.col("probe") == facts["probe"])
        return SweepResult(self.scores.filter(chosen), self.predictions.filter(chosen), facts, self.null.filter(chosen))


def sweep(
    run_or_arrays: Any,
    y: Any,
    *,
    groups: ArrayLike | str,
    probe: Any = "svm",
    cv: Any = 5,
    scale: bool = True,
    controls: Sequence[str] = DEFAULT_CONTROLS,
    n_shuffles: int = 5,
    permutations: int = 0,
    types: ArrayLike | str | None = None,
    C: float | Sequence[float] = 1.0,
    alpha: float | Sequence[float] = ALPHAS,
    shrinkage: float | Sequence[float] = SHRINKAGES,
    inner_folds: int = 5,
    ids: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    target: str | Sequence[str] = "label",
    selector: str | None = None,
    sites: Sequence[str] | None = None,
    n_jobs: int | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> SweepResult:
    """Fit linear probes on every column, held-out group by held-out group.

    One Gram matrix per column and fold serves all probes, penalties, targets, permutations and control labels.

    Parameters
    ----------
    run_or_arrays : Run, mapping, or float array of shape (n_layers, n_stimuli, d_model)
        A mapping goes from (site, layer) to a float array of shape (n_stimuli, d_model); layer is None for ``embed``
        and ``final_norm``. Columns are read one at a time, when their turn comes.
    y : array-like of shape (n_stimuli,) or (n_stimuli, n_targets), data frame, or mapping of names to labels
        Classes of any type (two or more; class numbers follow their sorted order) or numbers, as the probe takes them.
        Several columns are several targets on the same folds. With a run, the name or names of columns of its stimuli;
        stimuli without one of these labels are left out.
    groups : array-like of shape (n_stimuli,), or with a run the name of a column
        What must not be both trained on and tested on: item, pair, block of pairs. Pass the ids for no grouping.
    probe : str, Probe, scikit-learn estimator, or a list of these
        Classes: ``"svm"``, ``"ridge_classifier"``, ``"lda"``, ``"logistic"``, ``"linear_svc"``. Values: ``"ridge"``.
        An estimator is fitted as it is, one fit per label vector: the slow path.
    cv : int, int array of shape (n_stimuli,), or scikit-learn splitter
        Number of grouped folds to make (see `assign_folds`), fold numbers to replay, or a splitter that tests every
        stimulus once. A group that crosses folds is refused.
    scale : bool
        Divide features by their standard deviation over the training rows; they are centred in any case.
    controls : subset of ("shuffled", "type", "text")
        ``"shuffled"``: `n_shuffles` label vectors moved at the level where the label lives (`permute_labels`), the same
        for all columns. ``"type"``: as many label vectors that give every one of `types` one random label
        (`type_labels`). ``"text"``: the same probes on word counts (`bag_of_words`), recorded under site "text".
    permutations : int
        Label vectors of the permutation null, drawn like the shuffled ones; hyper-parameters are chosen anew for each.
        See `significance`.
    types : array-like of shape (n_stimuli,), or with a run the name of a column
    C : float or ascending sequence of floats
        Penalty of ``"svm"`` and ``"logistic"``. Of this and the next two, several values are chosen from by
        `inner_folds` grouped folds of the training rows, anew for every label vector.
    alpha : float or ascending sequence of floats
        Penalty of ``"ridge"`` and ``"ridge_classifier"``.
    shrinkage : float or ascending sequence of floats
        Of the covariance of ``"lda"``, above 0 and at most 1.
    ids, texts : sequences of n_stimuli strings
        Ids default to row numbers. Texts are needed by the ``"text"`` control. A run knows both.
    target : str or sequence of str
        Name of what is predicted, where `y` has none.
    selector, sites
        Of a run: label of the selector whose rows are used, and sites to probe (all by default).
    n_jobs : int, optional
        Columns at work at the same time; -1 for one per core. The numbers do not depend on it. Within
        ``joblib.parallel_config(backend=...)`` columns go to that backend: Dask, Ray, processes.
    seed : int
        Of folds, shuffles, types and permutations.
    checkpoint : path, optional
        Folder that keeps the fit of every finished column; the same sweep finds them again.
    progress : callable of (columns done, columns in all)
    say : callable of str, optional
        Told the cost of a sweep forecast to take a minute or more, before it begins; stderr by default.

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
        If a hyper-parameter was chosen at an edge of its grid for the labels as given.
    ConstantFeatureWarning
        If a column holds features that are the same for all stimuli.
    ControlWarning
        If no type of the control task is in two folds.
    PermutationWarning
        If permutations are too few for p < 0.05, or only approximately exchangeable.
    """
    source = read_source(run_or_arrays, y, groups, types=types, ids=ids, texts=texts, selector=selector, sites=sites)
    settings = Settings(scale, as_grid(C), as_grid(alpha), as_grid(shrinkage), inner_folds)
    chosen = _checked_controls(controls, source, n_shuffles, permutations)
    task = make_task(
        source.y, source.groups, probe=probe, cv=cv, settings=settings, ids=source.ids, texts=source.texts,
        target=target, seed=seed,
    )  # fmt: skip
    task = task.with_draws(
        n_shuffles=n_shuffles if "shuffled" in chosen else 0,
        n_permutations=permutations,
        types=as_names(source.types, len(task.ids), "types") if "type" in chosen else None,
        seed=seed,
    )
    bag = bag_of_words(source.texts) if "text" in chosen and source.texts is not None else None
    fits: list[tuple[Key, ColumnFit]] = []
    # BLAS is limited here for threads and in `_fit` for processes: one thread per column at work.
    with threadpool_limits(limits=1):
        _tell_cost(source.columns, task, _n_workers(n_jobs), say)
        for fitted in _fit_columns(source.columns, task, n_jobs, checkpoint):
            fits.append(fitted)
            if progress is not None:
                progress(len(fits), len(source.columns))
        parts = [tables(fits, task)]
        if bag is not None:
            parts.append(tables([(TEXT_COLUMN, probe_column(bag, task.alone()))], task.alone(), text=True))
    _warn(fits, task)
    scores, predictions, null = join(parts)
    return SweepResult(scores, predictions, provenance(task, chosen, seed, source.facts), null)


def _fit_columns(
    columns: Mapping[Any, Any], task: Task, n_jobs: int | None, checkpoint: str | os.PathLike[str] | None
) -> Iterator[tuple[Key, ColumnFit]]:
    """Read columns here, fit them where joblib puts them, hold few of them, keep their order and their fits."""
    kept = None if checkpoint is None else Checkpoints(checkpoint, task)
    sent: deque[tuple[Key, Any, ColumnFit | None]] = deque()
    here = os.getpid()

    def jobs() -> Iterator[Any]:
        for key in columns:
            checked, X = check_column(key, columns[key], task.ids)
            path = None if kept is None else kept.path(checked, X)
            done = None if kept is None or path is None else kept.load(path)
            sent.append((checked, path, done))
            yield joblib.delayed(_fit)(X, task, here) if done is None else joblib.delayed(_fit)(None, None, here)

    pool = joblib.Parallel(
        n_jobs=n_jobs, prefer="threads", return_as="generator", pre_dispatch="n_jobs + 1", batch_size=1
    )
    for fit in pool(jobs()):
        key, path, done = sent.popleft()
        if kept is not None and done is None:
            kept.save(path, fit)
        yield key, fit if done is None else done


def _fit(X: NDArray[Any] | None, task: Task | None, limited: int) -> ColumnFit | None:
    """Fit a column, with BLAS limited by the process `limited`."""
    if X is None or task is None:
        return None
    return fit_column(X, task) if os.getpid() == limited else probe_column(X, task)


def _n_workers(n_jobs: int | None) -> int:
    if n_jobs == 0:
        raise DesignError("n_jobs=0: give a number of columns at work, or -1 for one per core")
    return max(1, int(joblib.effective_n_jobs(n_jobs)))


def _checked_controls(controls: Sequence[str], source: Source, n_shuffles: int, permutations: int) -> tuple[str, ...]:
    for control in controls:
        if control not in CONTROLS:
            raise DesignError(f"control {control!r} is unknown; choose from {', '.join(CONTROLS)}")
    if "shuffled" in controls and n_shuffles < 1:
        raise DesignError(f'control "shuffled": n_shuffles={n_shuffles}; give at least 1, or leave it out of controls')
    if "text" in controls and source.texts is None:
        raise DesignError('control "text" needs texts=. Pass them, or controls=("shuffled",).')
    if "type" in controls and source.types is None:
        raise DesignError('control "type" needs types=: what a memorising probe would recognise, such as the noun.')
    if permutations < 0:
        raise DesignError(f"permutations={permutations}; give a number of permutations, or 0 for none")
    if 0 < permutations < 100:
        warnings.warn(
            f"permutations={permutations}: p-values are multiples of 1/{permutations + 1}. Give at least 100, and 1000 "
            "for a threshold that is stable.",
            PermutationWarning,
            stacklevel=3,
        )
    return tuple(controls)


def _tell_cost(columns: Mapping[Any, Any], task: Task, n_workers: int, say: Callable[[str], None] | None) -> None:
    key = next(iter(columns))
    if len(columns) < 2 or not is_long(task, len(columns), 64):
        return
    _, X = check_column(key, columns[key], task.ids)
    if not is_long(task, len(columns), X.shape[1]):
        return
    cost = estimate_cost(X, task, len(columns), n_workers)
    if cost.seconds >= LONG_S:
        (say or _to_stderr)(f"sweep of {', '.join(labels.name for labels in task.targets)}: {cost}")


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


def _warn(fits: list[tuple[Key, ColumnFit]], task: Task) -> None:
    constant = [(key, fit.n_constant) for key, fit in fits if fit.n_constant]
    if constant:
        (key, n_features), *_ = constant
        warnings.warn(
            f"{len(constant)} of {len(fits)} columns hold features that are the same for all stimuli, first "
            f"{column_name(key)} with {n_features}. They carry nothing; see whether the capture is what you meant.",
            ConstantFeatureWarning,
            stacklevel=3,
        )
    for i, one in enumerate(task.analyses):
        _warn_at_grid_edge(np.concatenate([fit.fits[i].chosen[:, 0] for _, fit in fits]), one, task)


def _warn_at_grid_edge(chosen: NDArray[np.float64], one: Analysis, task: Task) -> None:
    grid, hyper = task.settings.grid(one.probe.hyper), one.probe.hyper
    if len(grid) < 2:
        return
    for edge, value in (("lower", grid[0]), ("upper", grid[-1])):
        at_edge = int((chosen == value).sum())
        if at_edge:
            warnings.warn(
                f"target {one.labels.name!r}: {hyper} sits at the {edge} edge of its grid ({value:g}) in {at_edge} of "
                f"{len(chosen)} fits. Widen {hyper}=; at an edge the column may also hold no signal.",
                GridEdgeWarning,
                stacklevel=4,
            )
