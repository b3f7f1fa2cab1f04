"""Scores of held-out decisions, one formula each, with weights so that a point and its bootstrap share it.

Every score takes held-out rows (`Held`) and weights, a float64 array of shape (n_resamples, n_test) that says how often
each row counts (or None for once each), and returns a float64 array of shape (n_resamples, n_vectors), NaN where the
score is not defined: fewer than two classes or no rows left, labels or predictions that do not vary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from stratoscope.probes.labels import Kind

Floats = NDArray[np.float64]


class Held(NamedTuple):
    """Held-out rows of one fold.

    y : float64 array of shape (n_test, n_vectors); class numbers or values
    predicted : float64 array of shape (n_test, n_vectors); class numbers or values
    decision : float64 array of shape (n_test, n_vectors, n_outputs); one output for two classes and for values
    """

    y: Floats
    predicted: Floats
    decision: Floats

    @property
    def n_classes(self) -> int:
        """Number of classes, where labels are classes."""
        return max(2, int(self.decision.shape[2]))


Score = Callable[[Held, Floats | None], Floats]


def balanced_accuracy(held: Held, weights: Floats | None = None) -> Floats:
    """Mean over classes of the share of their stimuli that is put there; chance is 1 / n_classes whatever the sizes."""
    w = _weights(held, weights)
    right = held.predicted == held.y
    of_class = [held.y == label for label in range(held.n_classes)]
    recalls = np.stack([_ratio(w @ (right & members), w @ members) for members in of_class])
    return _mean_of_classes(recalls)


def roc_auc(held: Held, weights: Floats | None = None) -> Floats:
    """Probability that a stimulus of a class gets a higher decision than one of the rest, ties counting half.

    Of class 1 for two classes; for more, the mean over classes, each against the rest.
    """
    n_outputs = held.decision.shape[2]
    labels = (1,) if n_outputs == 1 else range(n_outputs)
    areas = np.stack(
        [_area(held.y == label, held.decision[:, :, output], weights) for output, label in enumerate(labels)]
    )
    return areas[0] if n_outputs == 1 else _mean_of_classes(areas)


def accuracy(held: Held, weights: Floats | None = None) -> Floats:
    """Share of stimuli put in their class; chance is the share of the largest class."""
    w = _weights(held, weights)
    return _ratio(w @ (held.predicted == held.y), w.sum(axis=1, keepdims=True))


def r2(held: Held, weights: Floats | None = None) -> Floats:
    """1 - squared error / squared deviation from the mean of the test labels (scikit-learn's ``r2_score``)."""
    w = _weights(held, weights)
    centred = held.y - held.y.mean(axis=0)
    mean = _ratio(w @ centred, w.sum(axis=1, keepdims=True))
    spread = w @ centred**2 - w.sum(axis=1, keepdims=True) * mean**2
    return np.asarray(1 - _ratio(w @ (held.y - held.predicted) ** 2, _clean(spread, w @ centred**2)))


def pearson(held: Held, weights: Floats | None = None) -> Floats:
    """Linear correlation of labels and predictions; NaN where either is constant."""
    return _by_vector(_correlation, held.y, held.predicted, _weights(held, weights))


def spearman(held: Held, weights: Floats | None = None) -> Floats:
    """Correlation of the ranks of labels and predictions within each resample, ties sharing their mean rank."""
    if weights is None:
        return _by_vector(
            _correlation, rankdata(held.y, axis=0), rankdata(held.predicted, axis=0), _weights(held, None)
        )
    return _by_vector(_rank_correlation, held.y, held.predicted, weights)


SCORES: dict[Kind, dict[str, Score]] = {
    "classes": {"balanced_accuracy": balanced_accuracy, "roc_auc": roc_auc, "accuracy": accuracy},
    "values": {"r2": r2, "pearson": pearson, "spearman": spearman},
}
"""Scores for each kind of label, the main one first."""


def chance(metric: str, y: Floats) -> float:
    """Score of a guess that knows only how the labels `y` (n_stimuli,) are distributed."""
    shares = np.unique(y, return_counts=True)[1] / len(y)
    return {"accuracy": float(shares.max()), "balanced_accuracy": 1 / len(shares), "roc_auc": 0.5}.get(metric, 0.0)


def _weights(held: Held, weights: Floats | None) -> Floats:
    return np.ones((1, len(held.y))) if weights is None else weights


def _mean_of_classes(values: Floats) -> Floats:
    """Mean over the first axis of what is defined; NaN where fewer than two classes are, as (n_resamples, ...)."""
    defined = np.isfinite(values)
    n_defined = defined.sum(axis=0)
    return np.asarray(np.where(defined, values, 0.0).sum(axis=0) / np.where(n_defined < 2, np.nan, n_defined))


def _area(positive: NDArray[np.bool_], decision: Floats, weights: Floats | None) -> Floats:
    """Area under the curve of each vector, (n_resamples, n_vectors)."""
    if weights is None:
        n_positive, n_negative = positive.sum(axis=0), (~positive).sum(axis=0)
        ranks = (rankdata(decision, axis=0) * positive).sum(axis=0)
        return _ratio(ranks - n_positive * (n_positive + 1) / 2, n_positive * n_negative)[None]
    areas = []
    for labels, values in zip(positive.T, decision.T, strict=True):
        wins = _wins(values[labels], values[~labels])  # n_positive, n_negative
        won = ((weights[:, labels] @ wins) * weights[:, ~labels]).sum(axis=1)
        areas.append(_ratio(won, weights[:, labels].sum(axis=1) * weights[:, ~labels].sum(axis=1)))
    return np.column_stack(areas)


def _by_vector(
    correlate: Callable[[Floats, Floats, Floats], Floats], y: Floats, predicted: Floats, w: Floats
) -> Floats:
    if len(w) == 1:
        return correlate(y.T, predicted.T, w)[None]
    return np.column_stack([correlate(a, b, w) for a, b in zip(y.T, predicted.T, strict=True)])


def _rank_correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    if a.ndim == 2:
        return np.concatenate([_rank_correlation(x, y, weights) for x, y in zip(a, b, strict=True)])
    ranks = [weights @ _wins(column, column).T for column in (a, b)]  # n_resamples, n_test
    return _correlation(ranks[0], ranks[1], weights)


def _correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    """Weighted correlation along the last axis of a and b, (n_test,) or (n, n_test), with weights (n or 1, n_test)."""
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
