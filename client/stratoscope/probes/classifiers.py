"""Classifiers that take one label vector at a time: support vectors, discriminant analysis, logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from stratoscope.probes.features import GRAM_LIMIT, FoldFeatures

Floats = NDArray[np.float64]
Positions = NDArray[np.intp]

SVM_TOLERANCE = 1e-6
"""Of LIBSVM's stopping rule. Its default of 1e-3 leaves decisions uncertain in the third digit."""


@dataclass(frozen=True)
class Decisions:
    """What one fit says of held-out rows.

    values : float64 array of shape (n_test, n_outputs)
    predicted : class numbers, int array of shape (n_test,)
    """

    values: Floats
    predicted: NDArray[np.intp]


def fit_svms(
    fold: FoldFeatures, codes: Floats, train: Positions, test: Positions | None, penalties: Sequence[float]
) -> list[Decisions]:
    """Linear support vector machines (hinge loss, unpenalised intercept, one against one) at several penalties.

    Equal to ``SVC(kernel="linear", C=C, tol=SVM_TOLERANCE)`` on the standardised rows. Penalties are fitted in
    ascending order: once no dual coefficient reaches C the margin is hard, and every greater C has the same solution.

    Parameters
    ----------
    codes : float64 array of shape (n_train,)
        Class numbers of the fold's training rows.
    train : positions among the training rows to fit
    test : positions among the training rows to decide on, or None for the fold's test rows
        The former choose C and are fitted at LIBSVM's own tolerance.
    penalties : values of C, in ascending order
    """
    kernel = "precomputed" if fold.is_wide or len(fold.train_rows) <= GRAM_LIMIT else "linear"
    fitted, decided = _svm_rows(fold, train, test, kernel)
    tolerance = SVM_TOLERANCE if test is None else 1e-3
    found: list[Decisions] = []
    is_hard = False
    for C in penalties:
        if not is_hard:
            svm = SVC(kernel=kernel, C=C, tol=tolerance, cache_size=500).fit(fitted, codes[train])
            is_hard = bool(np.abs(svm.dual_coef_).max(initial=0.0) < C)
            here = _decisions(svm, decided)
        found.append(here)
    return found


def fit_lda(
    fold: FoldFeatures, codes: Floats, train: Positions, test: Positions | None, shrinkages: Sequence[float]
) -> list[Decisions]:
    """Linear discriminant analysis with shrinkage s of the covariance S towards its mean, (1 - s) S + s tr(S)/d I.

    Equal to ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)`` on the standardised rows: outside the span of
    the training rows the shrunk covariance is a multiple of the identity and class means are zero. Parameters as in
    `fit_svms`.
    """
    Q, rows = _axes_rows(fold, train, test)
    labels = codes[train].astype(np.intp)
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    means = np.stack([Q[labels == label].mean(axis=0) for label in present])
    within = Q - means[np.searchsorted(present, labels)]
    S = within.T @ within / len(Q)
    priors = np.log(counts[present] / len(Q))
    found = []
    for shrinkage in shrinkages:
        shrunk = (1 - shrinkage) * S
        shrunk[np.diag_indices_from(shrunk)] += shrinkage * (np.trace(S) / fold.n_features or 1.0)
        weights = np.linalg.solve(shrunk, means.T)
        values = rows @ weights + priors - 0.5 * np.einsum("kd,dk->k", means, weights)
        predicted = present[values.argmax(axis=1)]
        found.append(Decisions(values[:, 1:] - values[:, :1] if len(present) == 2 else values, predicted))
    return found


def fit_logistic(
    fold: FoldFeatures, codes: Floats, train: Positions, test: Positions | None, penalties: Sequence[float]
) -> list[Decisions]:
    """Logistic regression with an L2 penalty, multinomial for three and more classes, at several values of C.

    Equal to ``LogisticRegression(C=C)`` on the standardised rows, up to its tolerance. Parameters as in `fit_svms`.
    """
    fitted, decided = _axes_rows(fold, train, test)
    models = (LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit(fitted, codes[train]) for C in penalties)
    return [_decisions(model, decided) for model in models]


def _svm_rows(fold: FoldFeatures, train: Positions, test: Positions | None, kernel: str) -> tuple[Floats, Floats]:
    rows, held_out = fold.gram if kernel == "precomputed" else fold.arrays
    decided = held_out if test is None else rows[test]
    return (rows[np.ix_(train, train)], decided[:, train]) if kernel == "precomputed" else (rows[train], decided)


def _axes_rows(fold: FoldFeatures, train: Positions, test: Positions | None) -> tuple[Floats, Floats]:
    axes = fold.axes
    rows, held_out = axes.train[train], axes.test if test is None else axes.train[test]
    if rows.shape[1]:
        return rows, held_out
    return np.zeros((len(rows), 1)), np.zeros((len(held_out), 1))  # a wholly constant column has no axes


def _decisions(model: Any, rows: Floats) -> Decisions:
    values = model.decision_function(rows).reshape(len(rows), -1)
    return Decisions(values, model.predict(rows).astype(np.intp))
