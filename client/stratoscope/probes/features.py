"""The features of one fold, and the two forms in which every linear probe can use them: inner products and axes.

Everything that a linear probe with an L2 penalty needs of the rows is in their inner products (the Gram matrix K). It
is formed once per column and fold; estimators, penalties, targets, permutations and control labels share it. Where
stimuli outnumber features the primal form takes its place. All arithmetic is in float64: see ``docs/statistics.md`` for
what a float32 product would cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stratoscope.probes.folds import Rows
from stratoscope.probes.margin import inverse_gram

Floats = NDArray[np.float64]

CHUNK = 1024
"""Features standardised at a time: the copy in float64 stays in the cache, whatever d_model is."""

GRAM_LIMIT = 4096
"""Training rows up to which support vector machines use a Gram matrix even where rows outnumber features."""


class Gram(NamedTuple):
    """Inner products of one fold.

    train : float64 array of shape (n_train, n_train)
    test : float64 array of shape (n_test, n_train)
    """

    train: Floats
    test: Floats


class Axes(NamedTuple):
    """Rows of one fold in the coordinates of the principal axes of the training rows.

    A rotation of the features (and for test rows a projection onto the span of the training rows), so every
    L2-penalised linear model is the same in these coordinates as in the features (Hastie, Tibshirani & Friedman,
    *Elements of Statistical Learning*, 18.3.5).

    values : float64 array of shape (n_axes,); squared norms of the columns of `train`, ascending
    train : float64 array of shape (n_train, n_axes); each column has mean zero
    test : float64 array of shape (n_test, n_axes)
    """

    values: Floats
    train: Floats
    test: Floats


class FoldFeatures:
    """Features of one column in one fold, centred (and scaled) with the statistics of the training rows alone.

    Parameters
    ----------
    X : float array of shape (n_stimuli, d_model)
    train, test : int arrays of shape (n_train,), (n_test,)
    scale : bool
        Divide by the standard deviation over the training rows, as scikit-learn's ``StandardScaler`` does: a feature
        constant over these rows keeps its scale. Since its training column is then zero, it gets no weight.
    """

    def __init__(self, X: NDArray[Any], train: Rows, test: Rows, *, scale: bool) -> None:
        self.train_rows, self.test_rows = train, test
        self.n_features = X.shape[1]
        self._X, self._scale = X, scale

    @cached_property
    def statistics(self) -> tuple[Floats, Floats]:
        """Mean and divisor of every feature, each of shape (d_model,)."""
        found = [_centre(self._train(part), scale=self._scale) for part in self._parts()]
        return np.concatenate([one.mean for one in found]), np.concatenate([one.divisor for one in found])

    @cached_property
    def arrays(self) -> tuple[Floats, Floats]:
        """Standardised rows as they are, (n_train, d_model) and (n_test, d_model): what a plain pipeline sees."""
        chunks = list(self._chunks())
        return np.concatenate([train for train, _ in chunks], axis=1), np.concatenate([t for _, t in chunks], axis=1)

    @cached_property
    def is_wide(self) -> bool:
        """Whether features are no fewer than training rows, so that the Gram matrix is the smaller form."""
        return len(self.train_rows) <= int(self.n_features)

    @cached_property
    def gram(self) -> Gram:
        """Inner products of training rows with each other, and of test rows with training rows."""
        if "arrays" in self.__dict__ or not self.is_wide:
            train, test = self.arrays
            return Gram(train @ train.T, test @ train.T)
        n_train = len(self.train_rows)
        K, K_test = np.zeros((n_train, n_train)), np.zeros((len(self.test_rows), n_train))
        for train, test in self._chunks():
            K += train @ train.T
            K_test += test @ train.T
        return Gram(K, K_test)

    @cached_property
    def inverse(self) -> Floats | None:
        """`inverse_gram` of the inner products of training rows, shared by all label vectors; None if not `is_wide`."""
        return inverse_gram(self.gram.train) if self.is_wide else None

    @cached_property
    def axes(self) -> Axes:
        """Coordinates on the principal axes, from the smaller of the two eigenproblems."""
        if self.is_wide:
            K, K_test = self.gram
            values, vectors = np.linalg.eigh(K)
            kept = _is_more_than_rounding(values)
            values, vectors = values[kept], vectors[:, kept]
            roots = np.sqrt(values)
            return Axes(values, vectors * roots, (K_test @ vectors) / roots)
        train, test = self.arrays
        values, vectors = np.linalg.eigh(train.T @ train)
        kept = _is_more_than_rounding(values)
        return Axes(values[kept], train @ vectors[:, kept], test @ vectors[:, kept])

    def weights(self, decision: Floats) -> tuple[Floats, Floats]:
        """Weights on the features as they come, and intercepts, of affine functions known at the training rows.

        Parameters
        ----------
        decision : float64 array of shape (n_train, n_outputs)

        Returns
        -------
        float64 array of shape (d_model, n_outputs), float64 array of shape (n_outputs,)
        """
        mean, divisor = self.statistics
        intercept = decision.mean(axis=0)  # rows are centred
        on_axes = self.axes.train.T @ (decision - intercept) / self.axes.values[:, None]
        dual = self.axes.train @ (on_axes / self.axes.values[:, None])
        weights = np.concatenate([train.T @ dual for train, _ in self._chunks()]) / divisor[:, None]
        return weights, intercept - mean @ weights

    def _train(self, part: slice) -> Floats:
        return np.take(self._X[:, part], self.train_rows, axis=0).astype(np.float64, copy=False)

    def _parts(self) -> Iterator[slice]:
        return (slice(start, start + CHUNK) for start in range(0, self.n_features, CHUNK))

    def _chunks(self) -> Iterator[tuple[Floats, Floats]]:
        """Standardised training and test rows, `CHUNK` features at a time; constant features are zero."""
        for part in self._parts():
            train = self._train(part)
            found = _centre(train, scale=self._scale)
            test = np.take(self._X[:, part], self.test_rows, axis=0) - found.mean
            factor = found.varies / found.divisor
            train *= factor
            test *= factor
            yield train, test


class _Centred(NamedTuple):
    """Mean, divisor, and whether it varies, of each feature of a chunk."""

    mean: Floats
    divisor: Floats
    varies: NDArray[np.bool_]


def _centre(rows: Floats, *, scale: bool) -> _Centred:
    """Centre rows in place, and return what ``StandardScaler`` takes, near-constant features included."""
    n_rows, eps = len(rows), np.finfo(np.float64).eps
    first, mean = rows[0].copy(), rows.mean(axis=0)
    rows -= mean
    variance = np.einsum("ij,ij->j", rows, rows) / n_rows - rows.mean(axis=0) ** 2
    # scikit-learn's rule for a feature whose variance is rounding alone.
    suspect = variance <= n_rows * eps * variance + (n_rows * mean * eps) ** 2
    varies = np.ones(len(mean), dtype=bool)
    # Of these, one that is the same in every row leaves no trace, not even of rounding.
    varies[suspect] = (rows[:, suspect] != (first - mean)[suspect]).any(axis=0)
    divisor = np.sqrt(np.where(suspect, 1.0, variance)) if scale else np.ones(len(mean))
    return _Centred(mean, divisor, varies)


def _is_more_than_rounding(values: Floats) -> NDArray[np.bool_]:
    """Which eigenvalues of a Gram matrix, ascending, are not rounding of a zero."""
    if not len(values):
        return np.zeros(0, dtype=bool)
    return np.asarray(values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0))
