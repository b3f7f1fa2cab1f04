"""Folds: which stimuli are held out together. Made once from the stimuli, shared by every layer, site and model."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from stratoscope.probes.errors import DesignError
from stratoscope.probes.labels import Kind, Labels

Rows = NDArray[np.intp]


class Split(NamedTuple):
    """One outer fold: row numbers to train on and to test on.

    ``inner`` holds (train, test) positions *among the training rows* for the grouped inner folds; empty where no
    hyper-parameter is chosen.
    """

    train: Rows
    test: Rows
    inner: tuple[tuple[Rows, Rows], ...] = ()


def assign_folds(
    y: NDArray[np.float64], groups: ArrayLike, *, n_folds: int = 5, kind: Kind = "classes", seed: int = 0
) -> NDArray[np.intp]:
    """Give every stimulus the number of the fold that holds it out.

    Groups are never divided. Classes are balanced over folds by scikit-learn's ``StratifiedGroupKFold``, values are
    spread by ``GroupKFold``. The groups are sorted by name and then shuffled by `seed`, so that the folds depend on
    the set of stimuli and not on their order. Replay them elsewhere with scikit-learn's ``PredefinedSplit(fold_of)``.

    Parameters
    ----------
    y : float64 array of shape (n_stimuli,)
        Labels; class numbers where `kind` is ``"classes"``.
    groups : array-like of shape (n_stimuli,)
        What must stay together: the item, pair, or block of pairs each stimulus is made of.
    n_folds : int
        Number of folds, at least 2.
    kind : {"classes", "values"}
        Decides the splitter and the checks.
    seed : int
        Seed of the shuffle of the groups.

    Returns
    -------
    fold_of : int array of shape (n_stimuli,)

    Raises
    ------
    DesignError
        If the labels and groups cannot fill that many folds; see `check_folds`.
    """
    names, group_of = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    _check_enough(y, group_of, n_folds=n_folds, kind=kind)
    shuffled = np.random.default_rng(seed).permutation(len(names))[group_of]
    fold_of = np.empty(len(y), dtype=np.intp)
    for fold, (_, test) in enumerate(_grouped(n_folds, y, shuffled, kind)):
        fold_of[test] = fold
    check_folds(fold_of, y, groups, kind=kind)
    return fold_of


def folds_of_targets(
    targets: Sequence[Labels],
    groups: NDArray[Any],
    cv: Any,
    *,
    seed: int,
) -> NDArray[np.intp]:
    """Divide the stimuli once for all targets; parameters as in `sweep`.

    Several targets of classes are balanced together, by the combination of their labels.

    Raises
    ------
    DesignError
        If `cv` crosses a group, does not test every stimulus once, or leaves a target without a class.
    """
    kind = targets[0].kind
    together = joint_codes(targets)
    if isinstance(cv, (int, np.integer)) and not isinstance(cv, bool):
        for labels in targets:
            _check_enough(labels.given, np.unique(groups, return_inverse=True)[1], n_folds=int(cv), kind=kind)
        if len(targets) == 1:
            return assign_folds(together, groups, n_folds=int(cv), kind=kind, seed=seed)
        cv = _joint_folds(together, groups, int(cv), kind, seed)
    elif hasattr(cv, "split"):
        cv = _folds_of_splitter(cv, together, groups)
    for labels in targets:
        fold_of = check_folds(cv, labels.given, groups, kind=kind)
    return fold_of


def joint_codes(targets: Sequence[Labels]) -> NDArray[np.float64]:
    """Return a number for each combination of labels of all targets; for values, the first target's values."""
    if len(targets) == 1 or targets[0].kind == "values":
        return targets[0].given
    codes = np.unique(np.column_stack([labels.given for labels in targets]), axis=0, return_inverse=True)[1]
    return np.asarray(codes.reshape(-1), dtype=np.float64)


def _joint_folds(y: NDArray[np.float64], groups: NDArray[Any], n_folds: int, kind: Kind, seed: int) -> Rows:
    names, group_of = np.unique(groups, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(names))[group_of]
    fold_of = np.empty(len(y), dtype=np.intp)
    for fold, (_, test) in enumerate(_grouped(n_folds, y, shuffled, kind)):
        fold_of[test] = fold
    return fold_of


def _folds_of_splitter(splitter: Any, y: NDArray[np.float64], groups: NDArray[Any]) -> Rows:
    fold_of = np.full(len(y), -1)
    with warnings.catch_warnings():
        # A splitter that ignores groups is found out by the groups that it lets cross folds.
        warnings.filterwarnings("ignore", message="The groups parameter is ignored")
        splits = list(splitter.split(np.zeros((len(y), 1)), y, groups))
    for fold, (_, test) in enumerate(splits):
        if (fold_of[test] >= 0).any():
            raise DesignError(
                f"cv: {type(splitter).__name__} tests a stimulus more than once; out-of-fold predictions need each once"
            )
        fold_of[test] = fold
    if (fold_of < 0).any():
        raise DesignError(f"cv: {type(splitter).__name__} never tests {int((fold_of < 0).sum())} of {len(y)} stimuli")
    return fold_of


def _grouped(n_folds: int, y: NDArray[np.float64], groups: NDArray[Any], kind: Kind) -> Iterator[tuple[Rows, Rows]]:
    """Split into grouped folds, classes balanced over them."""
    if kind == "values":
        yield from GroupKFold(n_folds).split(np.zeros(len(y)), groups=groups)
        return
    with warnings.catch_warnings():
        # Of classes with fewer members than folds; what cannot be probed is refused by name elsewhere.
        warnings.filterwarnings("ignore", message="The least populated class")
        yield from StratifiedGroupKFold(n_folds).split(np.zeros(len(y)), y, groups)


def check_folds(fold_of: ArrayLike, y: NDArray[np.float64], groups: ArrayLike, *, kind: Kind) -> NDArray[np.intp]:
    """Return `fold_of` as an int array if it is an honest division of the stimuli.

    Raises
    ------
    DesignError
        If a group crosses folds, a fold number is skipped, a class is missing from a training or a test fold, or a
        test fold holds fewer than two different values.
    """
    checked = np.asarray(fold_of)
    if checked.shape != y.shape or not np.issubdtype(checked.dtype, np.integer):
        raise DesignError(f"folds: expected {len(y)} integers, one per stimulus, got {checked.dtype}{checked.shape}")
    n_folds = int(checked.max()) + 1
    if n_folds < 2 or set(np.unique(checked)) != set(range(n_folds)):
        raise DesignError("folds: number the folds 0, 1, ... without gaps, and use at least two")
    _check_groups_whole(checked, np.asarray(groups).astype(str))
    for fold in range(n_folds):
        _check_fold(y[checked != fold], y[checked == fold], fold, kind)
    return checked.astype(np.intp)


def check_texts(texts: list[str], groups: ArrayLike) -> None:
    """Refuse a text that stands in two groups: it could be trained on and tested on.

    Raises
    ------
    DesignError
        Naming the text and both groups.
    """
    group_of_text: dict[str, str] = {}
    for text, group in zip(texts, np.asarray(groups).astype(str), strict=True):
        first = group_of_text.setdefault(text, str(group))
        if first != group:
            raise DesignError(
                f"text {text!r} is in groups {first!r} and {str(group)!r}: the same text could be trained on and "
                "tested on. Put both stimuli in one group, or drop one."
            )


def make_splits(fold_of: NDArray[np.intp], groups: ArrayLike, *, inner_folds: int = 0) -> tuple[Split, ...]:
    """Turn fold numbers into row numbers, with grouped inner folds of the training rows if `inner_folds` > 0.

    Inner folds are those of scikit-learn's ``GroupKFold(inner_folds)`` on the training rows, groups named by strings.
    They do not look at labels, so the labels as given have nothing ahead of permuted ones.

    Raises
    ------
    DesignError
        If a training set has fewer groups than inner folds.
    """
    names = np.asarray(groups).astype(str)
    return tuple(_split(fold_of, names, fold, inner_folds) for fold in range(int(fold_of.max()) + 1))


def folds_hash(ids: tuple[str, ...], fold_of: NDArray[np.intp]) -> str:
    """SHA-256 of the sorted ``id<TAB>fold`` lines: equal hashes mean that two analyses held out the same stimuli."""
    lines = sorted(f"{stimulus}\t{fold}" for stimulus, fold in zip(ids, fold_of, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _split(fold_of: NDArray[np.intp], names: NDArray[Any], fold: int, inner_folds: int) -> Split:
    train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
    if not inner_folds:
        return Split(train, test)
    n_groups = len(np.unique(names[train]))
    if n_groups < inner_folds:
        raise DesignError(
            f"fold {fold}: {n_groups} groups to train on cannot be divided into {inner_folds} inner folds. "
            "Lower inner_folds, add groups, or fix the hyper-parameter."
        )
    return Split(train, test, tuple(GroupKFold(inner_folds).split(train, groups=names[train])))


def _check_enough(y: NDArray[np.float64], group_of: Rows, *, n_folds: int, kind: Kind) -> None:
    if n_folds < 2:
        raise DesignError(f"folds={n_folds}: at least 2 are needed to hold anything out")
    n_groups = int(group_of.max()) + 1
    if n_groups < n_folds:
        raise DesignError(f"{n_groups} groups cannot fill {n_folds} folds. Lower folds, or add groups.")
    if kind == "values":
        return
    for label in np.unique(y):
        members = y == label
        counts = {"stimuli": int(members.sum()), "groups": len(np.unique(group_of[members]))}
        for noun, count in counts.items():
            if count < n_folds:
                raise DesignError(
                    f"class {label:.0f} has {count} {noun}, too few for {n_folds} folds. Lower folds, or add {noun}."
                )


def _check_groups_whole(fold_of: NDArray[Any], names: NDArray[Any]) -> None:
    fold_of_group: dict[str, int] = {}
    for name, fold in zip(names, fold_of, strict=True):
        first = fold_of_group.setdefault(name, fold)
        if first != fold:
            raise DesignError(f"group {str(name)!r} is in folds {first} and {fold}: a group must stay in one fold")


def _check_fold(train: NDArray[np.float64], test: NDArray[np.float64], fold: int, kind: Kind) -> None:
    every = np.union1d(train, test)
    for part, labels in (("training", train), ("test", test)):
        lacks_class = kind == "classes" and part == "training" and len(np.unique(labels)) < len(every)
        if len(np.unique(labels)) < 2 or lacks_class:
            lack = "one class is missing from" if kind == "classes" else "fewer than two different labels are in"
            raise DesignError(
                f"fold {fold}: {lack} the {part} rows. Lower folds, or group the stimuli so that it can be spread."
            )
