"""Baselines a curve must beat: what the words alone give, and what labels shuffled by the design give."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer

from stratoscope.probes.errors import DesignError

Floats = NDArray[np.float64]
Level = Literal["group", "within", "mixed"]
"""Where a label lives; see `label_level`."""

WORD = r"(?u)\b\w+\b"
"""What counts as a word: one letter is enough, unlike scikit-learn's default."""

MAX_DRAWS = 1000
"""Shuffles drawn for one that leaves two different labels in every fold, before the design is called too small."""


def bag_of_words(texts: Sequence[str]) -> Floats:
    """Count every word of every text, lower-cased, single letters included.

    Words are collected over all texts. That leaks nothing into a linear probe: a word absent from the training rows is
    a constant feature there and gets no weight.

    Parameters
    ----------
    texts : sequence of n_stimuli strings

    Returns
    -------
    float64 array of shape (n_stimuli, n_words)

    Raises
    ------
    DesignError
        If no text holds a word.
    """
    vectorizer = CountVectorizer(token_pattern=WORD)
    words = vectorizer.build_analyzer()
    if not any(words(text) for text in texts):
        raise DesignError('control "text": the texts hold no words to count. Leave "text" out of controls.')
    return np.asarray(vectorizer.fit_transform(texts).toarray(), dtype=np.float64)


def label_level(y: Floats, group_of: NDArray[np.intp]) -> Level:
    """Say where the label lives.

    ``"group"``: every group has one label (an item and its property). ``"within"``: every group holds the same mix of
    labels (blocks of related and re-paired texts). ``"mixed"``: anything between (graded pairs in blocks).
    """
    mixes = [_mix(y[group_of == group]) for group in range(int(group_of.max()) + 1)]
    if all(len(mix) == 1 for mix in mixes):
        return "group"
    return "within" if len(set(mixes)) == 1 else "mixed"


def shuffle_labels(
    y: Floats, group_of: NDArray[np.intp], fold_of: NDArray[np.intp], *, n_shuffles: int, seed: int
) -> Floats:
    """Draw shuffled label vectors that keep the design and break the tie between label and text.

    The unit that moves is the one the label is attached to (Winkler et al. 2015, *NeuroImage* 123): whole groups swap
    their label at level ``"group"``, stimuli of one group swap labels at level ``"within"``. At level ``"mixed"``
    groups are put in random order, their labels (shuffled within each) are laid end to end, and dealt out to the
    groups as they stand. Draws that leave a fold with a single label are drawn again. Folds stay as they are.
    scikit-learn's ``permutation_test_score(groups=...)`` only moves labels within groups: nothing at ``"group"``.

    Parameters
    ----------
    y : float64 array of shape (n_stimuli,)
    group_of, fold_of : int arrays of shape (n_stimuli,)
    n_shuffles : int
    seed : int

    Returns
    -------
    float64 array of shape (n_stimuli, n_shuffles)

    Raises
    ------
    DesignError
        If no draw in a thousand leaves two different labels in every fold.
    """
    rng, level = np.random.default_rng(seed), label_level(y, group_of)
    columns = [_draw(y, group_of, fold_of, level, rng) for _ in range(n_shuffles)]
    return np.column_stack(columns) if columns else np.empty((len(y), 0))


def _draw(
    y: Floats, group_of: NDArray[np.intp], fold_of: NDArray[np.intp], level: Level, rng: np.random.Generator
) -> Floats:
    shuffle = {"group": _swap_groups, "within": _swap_within, "mixed": _deal_blocks}[level]
    for _ in range(MAX_DRAWS):
        drawn = shuffle(y, group_of, rng)
        if all(len(np.unique(drawn[fold_of == fold])) > 1 for fold in range(int(fold_of.max()) + 1)):
            return drawn
    raise DesignError(
        f'control "shuffled": {MAX_DRAWS} shuffles of the labels all left a fold with a single label. '
        'Lower folds, add groups, or leave "shuffled" out of controls.'
    )


def _swap_groups(y: Floats, group_of: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    _, first = np.unique(group_of, return_index=True)
    return np.asarray(rng.permutation(y[first])[group_of])


def _swap_within(y: Floats, group_of: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    shuffled = np.empty_like(y)
    # Sorted by group, and at random within it: the rows of each group meet its own labels in another order.
    shuffled[np.argsort(group_of, kind="stable")] = y[np.lexsort((rng.random(len(y)), group_of))]
    return shuffled


def _deal_blocks(y: Floats, group_of: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    order = rng.permutation(int(group_of.max()) + 1)
    shuffled = np.empty_like(y)
    shuffled[np.argsort(group_of, kind="stable")] = y[np.lexsort((rng.random(len(y)), order[group_of]))]
    return shuffled


def _mix(labels: Floats) -> tuple[tuple[float, int], ...]:
    """Labels of one group with their counts in lowest terms."""
    values, counts = np.unique(labels, return_counts=True)
    divisor = gcd(*counts.tolist())
    return tuple((float(value), int(count) // divisor) for value, count in zip(values, counts, strict=True))
