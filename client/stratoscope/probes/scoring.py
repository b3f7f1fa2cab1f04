"""Scores of held-out decisions, one formula each, with weights so that a point and its bootstrap share it.

Every score takes

y : float64 array of shape (n_test, n_targets)
    Labels: 0.0 or 1.0 for classes, any value for values.
decision : float64 array of shape (n_test, n_targets)
    Signed distance to the boundary (class 1.0 where >= 0), or the predicted value.
weights : float64 array of shape (n_resamples, n_test)
    How often each row counts; ones for the plain score.

and returns a float64 array of shape (n_resamples, n_targets), NaN where the score is not defined: a class or all
rows missing, labels or predictions that do not vary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Score = Callable[[Floats, Floats, Floats], Floats]


def balanced_accuracy(y: Floats, decision: Floats, weights: Floats) -> Floats:
    """Mean of the two recalls; chance is 0.5 whatever the class sizes."""
    right = (decision >= 0) == (y == 1)
    recalls = [_ratio(weights @ (right & of_class), weights @ of_class) for of_class in (y == 0, y == 1)]
    return np.asarray((recalls[0] + recalls[1]) / 2)


def roc_auc(y: Floats, decision: Floats, weights: Floats) -> Floats:
    """Probability that a stimulus of class 1 gets a higher decision than one of class 0, ties counting half."""
    columns = []
    for labels, values in zip(y.T, decision.T, strict=True):
        positive, negative = labels == 1, labels == 0
        wins = _wins(values[positive], values[negative])  # n_positive, n_negative
        won = ((weights[:, positive] @ wins) * weights[:, negative]).sum(axis=1)
        columns.append(_ratio(won, weights[:, positive].sum(axis=1) * weights[:, negative].sum(axis=1)))
    return np.column_stack(columns)


def accuracy(y: Floats, decision: Floats, weights: Floats) -> Floats:
    """Share of stimuli put in their class; chance is the share of the larger class."""
    right = (decision >= 0) == (y == 1)
    return _ratio(weights @ right, weights.sum(axis=1, keepdims=True))


def r2(y: Floats, decision: Floats, weights: Floats) -> Floats:
    """1 - squared error / squared deviation from the mean of the test labels (scikit-learn's ``r2_score``)."""
    centred = y - y.mean(axis=0)
    mean = _ratio(weights @ centred, weights.sum(axis=1, keepdims=True))
    spread = weights @ centred**2 - weights.sum(axis=1, keepdims=True) * mean**2
    return np.asarray(1 - _ratio(weights @ (y - decision) ** 2, _clean(spread, weights @ centred**2)))


def pearson(y: Floats, decision: Floats, weights: Floats) -> Floats:
    """Linear correlation of labels and predictions; NaN where either is constant."""
    return np.column_stack([_correlation(a, b, weights) for a, b in zip(y.T, decision.T, strict=True)])


def spearman(y: Floats, decision: Floats, weights: Floats) -> Floats:
    """Correlation of the ranks of labels and predictions within each resample, ties sharing their mean rank."""
    columns = []
    for labels, values in zip(y.T, decision.T, strict=True):
        ranks = [weights @ _wins(column, column).T for column in (labels, values)]  # n_resamples, n_test
        columns.append(_correlation(ranks[0], ranks[1], weights))
    return np.column_stack(columns)


CLASS_SCORES: dict[str, Score] = {"balanced_accuracy": balanced_accuracy, "roc_auc": roc_auc, "accuracy": accuracy}
VALUE_SCORES: dict[str, Score] = {"r2": r2, "pearson": pearson, "spearman": spearman}


def chance(metric: str, y: Floats) -> float:
    """Score of a guess that knows only how the labels `y` (n_stimuli,) are distributed."""
    if metric == "accuracy":
        return float(max(np.mean(y == 1), np.mean(y == 0)))
    return 0.5 if metric in CLASS_SCORES else 0.0


def _correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Weighted correlation of a and b, each (n_test,) or (n_resamples, n_test), as (n_resamples,)."""
    total = weights.sum(axis=1)
    raw = [np.atleast_2d(x) for x in (a, b)]
    centred = [x - _ratio((weights * x).sum(axis=1), total)[:, None] for x in raw]
    spreads = [
        _clean((weights * c**2).sum(axis=1), 1e-12 * (weights * x**2).sum(axis=1))
        for c, x in zip(centred, raw, strict=True)
    ]
    return _ratio((weights * centred[0] * centred[1]).sum(axis=1), np.sqrt(spreads[0] * spreads[1]))


def _wins(a: Floats, b: Floats) -> Floats:
    """Whether a[i] beats b[j], half for a tie, as (len(a), len(b))."""
    difference = a[:, None] - b[None, :]
    return np.asarray((difference > 0) + 0.5 * (difference == 0))


def _clean(spread: Floats, size: Floats) -> Floats:
    """Set to exactly zero what is left of `spread` after cancellation against `size`."""
    return np.where(spread <= 1e-12 * size, 0.0, spread)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where the denominator is zero."""
    return np.asarray(numerator / np.where(denominator == 0, np.nan, denominator), dtype=np.float64)
