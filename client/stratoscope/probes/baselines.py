"""Baselines and nulls: what the words alone give, what labels moved by the design give, what memorising types gives."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import gcd, lgamma, log
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer

from stratoscope.probes.errors import ControlWarning, DesignError, PermutationWarning

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]
Level = Literal["group", "within", "mixed"]
"""Where a label lives; see `label_level`."""

WORD = r"(?u)\b\w+\b"
"""What counts as a word: one letter is enough, unlike scikit-learn's default."""

MAX_DRAWS = 1000
"""Draws of a control task for one that leaves two different labels in every fold, before the design is refused."""

FEWEST = 20
"""Distinct permutations below which no p-value can reach 0.05."""

ENOUGH = 1000
"""Distinct permutations that make it needless to move labels between groups of different size."""


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


def label_level(y: Floats, group_of: Numbers) -> Level:
    """Say where the label lives.

    ``"group"``: every group has one label (an item and its property). ``"within"``: every group holds the same mix of
    labels (blocks of related and re-paired texts). ``"mixed"``: anything between (graded pairs in blocks).
    """
    mixes = [_mix(y[group_of == group]) for group in range(int(group_of.max()) + 1)]
    if all(len(mix) == 1 for mix in mixes):
        return "group"
    return "within" if len(set(mixes)) == 1 else "mixed"


def permute_labels(y: Floats, group_of: Numbers, fold_of: Numbers, *, n_draws: int, seed: int) -> Floats:
    """Draw label vectors that keep the design and break the tie between label and text.

    What moves is what the label is attached to (Winkler et al. 2015, *NeuroImage* 123): at level ``"group"`` whole
    groups exchange their label, at level ``"within"`` stimuli of one group exchange labels, at level ``"mixed"`` groups
    exchange their labels as a block. Groups exchange with groups of their own fold and size alone, so every draw has
    the same number of each label in every training and test set as the labels as given: if groups are alike under the
    null, so are draws, and p-values are exact (Hemerik & Goeman 2018, *TEST* 27). Where that leaves fewer than a
    thousand arrangements, groups of one fold exchange whatever their size, with a warning, since the null is then
    approximate. scikit-learn's ``permutation_test_score(groups=...)`` only moves labels within groups: nothing at
    ``"group"``.

    Parameters
    ----------
    y : float64 array of shape (n_stimuli,)
    group_of, fold_of : int arrays of shape (n_stimuli,)
    n_draws : int
    seed : int

    Returns
    -------
    float64 array of shape (n_stimuli, n_draws)

    Raises
    ------
    DesignError
        If the design allows fewer than twenty arrangements of its labels.

    Warns
    -----
    PermutationWarning
        If labels move between groups of different size.
    """
    rng, level = np.random.default_rng(seed), label_level(y, group_of)
    if level == "within":
        _refuse_if_few(_log_arrangements(y, group_of))
        return np.asarray(y[_exchange(group_of, n_draws, rng)].T)
    order = np.argsort(group_of, kind="stable")
    _, start, size = np.unique(group_of[order], return_index=True, return_counts=True)
    patterns = np.unique(
        [repr(y[order[a : a + n]].tolist()) for a, n in zip(start, size, strict=True)], return_inverse=True
    )[1]
    fold = fold_of[order[start]]
    alike = np.unique(np.column_stack([fold, size]), axis=0, return_inverse=True)[1].reshape(-1)
    if _log_arrangements(patterns, alike) >= log(ENOUGH) or len(np.unique(size)) == 1:
        _refuse_if_few(_log_arrangements(patterns, alike))
        drawn = start[_exchange(alike, n_draws, rng)]  # where the block of each group comes from
        place = np.empty(len(y), dtype=np.intp)
        place[order] = np.arange(len(y)) - np.repeat(start, size)
        return np.asarray(y[order[drawn[:, group_of] + place]].T)
    _refuse_if_few(_log_arrangements(patterns, fold))
    warnings.warn(
        "groups differ in size and those of one size allow too few permutations: labels move between groups of "
        "different size, which makes the null approximate. Give groups one size, or use fewer folds.",
        PermutationWarning,
        stacklevel=2,
    )
    exchanged = _exchange(fold, n_draws, rng)
    if level == "group":
        return np.asarray(y[order[start]][exchanged[:, group_of]].T)
    return np.column_stack([_deal(y, order, start, size, fold, groups) for groups in exchanged])


def type_labels(y: Floats, type_of: Numbers, fold_of: Numbers, *, n_draws: int, seed: int) -> Floats:
    """Draw the labels of a control task: every type gets one label, drawn at random from the labels as given.

    A probe can only solve it by remembering types it was trained on (Hewitt & Liang 2019, arXiv 1909.03368);
    selectivity is its score on the real task less that on this one. Types that never come back in another fold cannot
    be remembered.

    Parameters
    ----------
    y : float64 array of shape (n_stimuli,)
    type_of, fold_of : int arrays of shape (n_stimuli,)
        What a memorising probe would recognise, such as the noun.
    n_draws, seed : int

    Returns
    -------
    float64 array of shape (n_stimuli, n_draws)

    Raises
    ------
    DesignError
        If no draw in a thousand leaves two different labels in every fold.

    Warns
    -----
    ControlWarning
        If no type is in two folds.
    """
    if not any(len(np.unique(fold_of[type_of == kind])) > 1 for kind in np.unique(type_of)):
        warnings.warn(
            'control "type": no type is in two folds, so no probe can solve the control task and selectivity says '
            "nothing beyond the score. Give types that come back across groups.",
            ControlWarning,
            stacklevel=2,
        )
    rng = np.random.default_rng([seed, 1])
    return np.column_stack([_draw_types(y, type_of, fold_of, rng) for _ in range(n_draws)])


def _draw_types(y: Floats, type_of: Numbers, fold_of: Numbers, rng: np.random.Generator) -> Floats:
    folds = [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
    n_labels = min(len(np.unique(y)), len(np.unique(type_of)))
    for _ in range(MAX_DRAWS):
        drawn = rng.choice(y, int(type_of.max()) + 1)[type_of]
        enough = n_labels if n_labels <= len(np.unique(y[folds[0]])) else 2
        if all(len(np.unique(drawn[test])) > 1 and len(np.unique(drawn[~test])) >= enough for test in folds):
            return np.asarray(drawn)
    raise DesignError(
        f'control "type": {MAX_DRAWS} draws all left a fold with a single label. '
        'Lower the number of folds, give more types, or leave "type" out of controls.'
    )


def _exchange(stratum_of: Numbers, n_draws: int, rng: np.random.Generator) -> Numbers:
    """Permute units within their strata, int array of shape (n_draws, n_units)."""
    keys = rng.random((n_draws, len(stratum_of))) + stratum_of
    exchanged = np.empty(keys.shape, dtype=np.intp)
    exchanged[:, np.argsort(stratum_of, kind="stable")] = np.argsort(keys, axis=1)
    return exchanged


def _deal(y: Floats, order: Numbers, start: Numbers, size: Numbers, fold: Numbers, groups: Numbers) -> Floats:
    """Lay the labels of groups, exchanged within their folds, end to end and deal them to the groups as they stand."""
    dealt = np.empty_like(y)
    for number in np.unique(fold):
        members = np.flatnonzero(fold == number)
        rows = np.concatenate([order[start[group] : start[group] + size[group]] for group in members])
        dealt[rows] = y[np.concatenate([order[start[group] : start[group] + size[group]] for group in groups[members]])]
    return dealt


def _log_arrangements(labels: NDArray[np.generic], stratum_of: Numbers) -> float:
    """Natural logarithm of the number of distinct arrangements of labels within strata."""
    total = 0.0
    for stratum in np.unique(stratum_of):
        counts = np.unique(labels[stratum_of == stratum], return_counts=True)[1]
        total += lgamma(counts.sum() + 1) - sum(lgamma(count + 1) for count in counts)
    return total


def _refuse_if_few(log_arrangements: float) -> None:
    if log_arrangements < log(FEWEST):
        raise DesignError(
            f"the design allows fewer than {FEWEST} different permutations of its labels: no p-value can reach 0.05. "
            'Lower the number of folds, add groups, or leave "shuffled" out of controls and permutations at 0.'
        )


def _mix(labels: Floats) -> tuple[tuple[float, int], ...]:
    """Labels of one group with their counts in lowest terms."""
    values, counts = np.unique(labels, return_counts=True)
    divisor = gcd(*counts.tolist())
    return tuple((float(value), int(count) // divisor) for value, count in zip(values, counts, strict=True))
