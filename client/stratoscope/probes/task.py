"""The task every column is put to: who, which labels, which folds. Checked once, then the same for all columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratoscope.probes.baselines import permute_labels, type_labels
from stratoscope.probes.errors import DesignError
from stratoscope.probes.estimators import Probe, Settings, find_probe
from stratoscope.probes.folds import Split, check_texts, folds_of_targets, make_splits
from stratoscope.probes.labels import Labels, as_names, encode


@dataclass(frozen=True)
class Analysis:
    """One target under one probe."""

    labels: Labels
    probe: Probe


@dataclass(frozen=True)
class Task:
    """What all columns share.

    ids : n_stimuli stimulus ids, each once
    groups : str array of shape (n_stimuli,)
    analyses : every target under every probe
    fold_of : int array of shape (n_stimuli,)
    splits : one per outer fold
    """

    ids: tuple[str, ...]
    groups: NDArray[Any]
    analyses: tuple[Analysis, ...]
    fold_of: NDArray[np.intp]
    splits: tuple[Split, ...]
    settings: Settings

    @property
    def group_of(self) -> NDArray[np.intp]:
        """Group numbers, int array of shape (n_stimuli,)."""
        return np.unique(self.groups, return_inverse=True)[1]

    @property
    def targets(self) -> tuple[Labels, ...]:
        """Every target once."""
        return tuple({analysis.labels.name: analysis.labels for analysis in self.analyses}.values())

    def with_draws(self, *, n_shuffles: int, n_permutations: int, types: NDArray[Any] | None, seed: int) -> Task:
        """Add shuffled, type-consistent and permuted label vectors behind the labels of every target."""
        drawn = {labels.name: self._drawn(labels, n_shuffles, n_permutations, types, seed) for labels in self.targets}
        return replace(self, analyses=tuple(replace(one, labels=drawn[one.labels.name]) for one in self.analyses))

    def alone(self) -> Task:
        """Keep the labels as given alone."""
        return replace(self, analyses=tuple(replace(one, labels=one.labels.alone()) for one in self.analyses))

    def _drawn(
        self, labels: Labels, n_shuffles: int, n_permutations: int, types: NDArray[Any] | None, seed: int
    ) -> Labels:
        y, group_of = labels.given, self.group_of
        n_draws = n_shuffles + n_permutations
        if n_draws:
            moved = permute_labels(y, group_of, self.fold_of, n_draws=n_draws, seed=seed)
            labels = labels.with_vectors("shuffled", moved[:, :n_shuffles])
        if types is not None:
            type_of = np.unique(types, return_inverse=True)[1]
            drawn = type_labels(y, type_of, self.fold_of, n_draws=max(n_shuffles, 1), seed=seed)
            labels = labels.with_vectors("type", drawn)
        return labels.with_vectors("permuted", moved[:, n_shuffles:]) if n_permutations else labels


def make_task(
    y: Any,
    groups: ArrayLike,
    *,
    probe: Any,
    cv: Any,
    settings: Settings,
    ids: Sequence[str] | None,
    texts: Sequence[str] | None,
    target: str | Sequence[str],
    seed: int,
) -> Task:
    """Check labels, groups, ids and texts, and divide them into folds. Parameters as in `sweep`."""
    probes = [find_probe(one) for one in (probe if isinstance(probe, (list, tuple)) else [probe])]
    _check_probes(probes)
    targets = encode(y, kind=probes[0].kind, target=target)
    n_stimuli = len(targets[0].given)
    names = as_names(groups, n_stimuli)
    if texts is not None:
        _check_length("texts", texts, n_stimuli)
        check_texts(list(texts), names)
    fold_of = folds_of_targets(targets, names, cv, seed=seed)
    chooses = any(len(settings.grid(probe.hyper)) > 1 for probe in probes)
    splits = make_splits(fold_of, names, inner_folds=settings.inner_folds if chooses else 0)
    analyses = tuple(Analysis(labels, probe) for labels in targets for probe in probes)
    return Task(_checked_ids(ids, n_stimuli), names, analyses, fold_of, splits, settings)


def _check_probes(probes: list[Probe]) -> None:
    names = [probe.name for probe in probes]
    if not names or len(set(names)) < len(names):
        raise DesignError(f"probe={names}: give at least one probe, each once")
    if len({probe.kind for probe in probes}) > 1:
        kinds = ", ".join(f"{probe.name} takes {probe.kind}" for probe in probes)
        raise DesignError(f"probes of one sweep take one kind of label, but {kinds}. Make one sweep for each kind.")


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
