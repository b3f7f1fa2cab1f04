"""The task every column is put to: who, which labels, which folds. Checked once, then the same for all columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratoscope.probes.baselines import shuffle_labels
from stratoscope.probes.errors import DesignError
from stratoscope.probes.estimators import PROBES, Probe, Settings
from stratoscope.probes.folds import Split, assign_folds, check_folds, check_texts, make_splits


@dataclass(frozen=True)
class Task:
    """What all columns share.

    ids : n_stimuli stimulus ids, each once
    groups : str array of shape (n_stimuli,)
    Y : float64 array of shape (n_stimuli, n_targets); column 0 the labels, the others shuffled
    classes : the labels that 0.0 and 1.0 stand for; empty for values
    fold_of : int array of shape (n_stimuli,)
    splits : one per outer fold
    """

    target: str
    probe_name: str
    ids: tuple[str, ...]
    groups: NDArray[Any]
    Y: NDArray[np.float64]
    classes: tuple[str, ...]
    fold_of: NDArray[np.intp]
    splits: tuple[Split, ...]
    settings: Settings

    @property
    def probe(self) -> Probe:
        """The registered probe."""
        return PROBES[self.probe_name]

    @property
    def group_of(self) -> NDArray[np.intp]:
        """Group numbers, int array of shape (n_stimuli,)."""
        return np.unique(self.groups, return_inverse=True)[1]

    def with_shuffles(self, n_shuffles: int, seed: int) -> Task:
        """Add shuffled label vectors behind the labels."""
        shuffled = shuffle_labels(self.Y[:, 0], self.group_of, self.fold_of, n_shuffles=n_shuffles, seed=seed)
        return replace(self, Y=np.column_stack([self.Y, shuffled]))

    def unshuffled(self) -> Task:
        """Keep the labels alone."""
        return replace(self, Y=self.Y[:, :1])


def make_task(
    y: ArrayLike,
    groups: ArrayLike,
    *,
    probe: str,
    folds: int | ArrayLike,
    settings: Settings,
    ids: Sequence[str] | None,
    texts: Sequence[str] | None,
    target: str,
    seed: int,
) -> Task:
    """Check labels, groups, ids and texts, and divide them into folds. Parameters as in `sweep`."""
    if probe not in PROBES:
        raise DesignError(f"probe {probe!r} is unknown; choose one of {', '.join(PROBES)}")
    kind, labels = PROBES[probe].kind, np.asarray(y)
    names = _checked_groups(groups, labels)
    values, classes = _encode_classes(labels) if kind == "classes" else (_checked_values(labels), ())
    if texts is not None:
        _check_length("texts", texts, len(values))
        check_texts(list(texts), names)
    if isinstance(folds, int):
        fold_of = assign_folds(values, names, n_folds=folds, kind=kind, seed=seed)
    else:
        fold_of = check_folds(folds, values, names, kind=kind)
    inner_folds = settings.inner_folds if probe == "ridge" and len(settings.alphas) > 1 else 0
    splits = make_splits(fold_of, names, inner_folds=inner_folds)
    checked_ids = _checked_ids(ids, len(values))
    return Task(target, probe, checked_ids, names, values[:, None], classes, fold_of, splits, settings)


def _encode_classes(labels: NDArray[Any]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Labels as 0.0 and 1.0, in sorted order of the two classes."""
    _check_no_gaps("y", labels)
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) != 2:
        shown = ", ".join(repr(name) for name in classes[:5].tolist())
        raise DesignError(f'y has {len(classes)} classes ({shown}); probe "svm" takes two. For values use "ridge".')
    return codes.astype(np.float64), tuple(str(name) for name in classes)


def _checked_values(labels: NDArray[Any]) -> NDArray[np.float64]:
    _check_no_gaps("y", labels)
    if labels.dtype.kind not in "fiu":
        raise DesignError(f'y has dtype {labels.dtype}; probe "ridge" takes numbers. For two classes use "svm".')
    values = labels.astype(np.float64)
    if not np.isfinite(values).all():
        raise DesignError(f"y[{int(np.flatnonzero(~np.isfinite(values))[0])}] is infinite")
    return values


def _checked_groups(groups: ArrayLike, labels: NDArray[Any]) -> NDArray[Any]:
    if labels.ndim != 1 or not len(labels):
        raise DesignError(f"y has shape {labels.shape}; expected one label per stimulus")
    names = np.asarray(groups)
    if names.shape != labels.shape:
        raise DesignError(f"groups has shape {names.shape} and y {labels.shape}; give one group per stimulus")
    _check_no_gaps("groups", names)
    return names.astype(str)


def _check_no_gaps(name: str, values: NDArray[Any]) -> None:
    """Refuse None and NaN, the only values that differ from themselves or are None."""
    for row, value in enumerate(values.tolist()):
        if value is None or value != value:
            raise DesignError(f"{name}[{row}] is {value}; every stimulus needs one. Drop the stimulus or label it.")


def _checked_ids(ids: Sequence[str] | None, n_stimuli: int) -> tuple[str, ...]:
    if ids is None:
        return tuple(str(row) for row in range(n_stimuli))
    _check_length("ids", ids, n_stimuli)
    names = [str(name) for name in ids]
    unique, counts = np.unique(names, return_counts=True)
    if len(unique) < n_stimuli:
        twice = str(unique[counts > 1][0])
        raise DesignError(f"ids: {twice!r} is given more than once; each stimulus needs its own")
    return tuple(names)


def _check_length(name: str, values: Sequence[str], n_stimuli: int) -> None:
    if len(values) != n_stimuli:
        raise DesignError(f"{name} has {len(values)} entries and y {n_stimuli}; give one per stimulus")
