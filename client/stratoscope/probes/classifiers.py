"""Classifiers that take one label vector at a time: support vectors, discriminant analysis, logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from stratoscope.probes.features import GRAM_LIMIT, FoldFeatures, Gram
from stratoscope.probes.margin import inverse_gram
from stratoscope.probes.svm import SVM_TOLERANCE, fit_machines

Floats = NDArray[np.float64]
Positions = NDArray[np.intp]


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

    The solution that ``SVC(kernel="linear", C=C)`` on the standardised rows approaches as ``tol`` goes to zero; see
    `stratoscope.probes.margin`. Penalties are fitted in ascending order: once no dual coefficient reaches C the margin
    is hard, and every greater C has the same solution.

    Parameters
    ----------
    codes : float64 array of shape (n_train,)
        Class numbers of the fold's training rows.
    train : positions among the training rows to fit
    test : positions among the training rows to decide on, or None for the fold's test rows
        The former choose C; where LIBSVM must fit them, it is to its own tolerance.
    penalties : values of C, in ascending order
    """
    if not fold.is_wide and len(fold.train_rows) > GRAM_LIMIT:
        return _fit_features(fold, codes, train, test, penalties)
    if test is None:
        gram, inverse = fold.gram, fold.inverse
    else:
        gram = Gram(fold.gram.train[np.ix_(train, train)], fold.gram.train[test][:, train])
        inverse = inverse_gram(gram.train) if fold.is_wide else None
    found: list[Decisions] = []
    is_hard = False
    for C in penalties:
        if not is_hard:
            machines = fit_machines(gram.train, codes[train], C, inverse, _tolerance(test))
            is_hard, here = machines.is_hard(C), Decisions(*machines.decide(gram.test))
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


def _fit_features(
    fold: FoldFeatures, codes: Floats, train: Positions, test: Positions | None, penalties: Sequence[float]
) -> list[Decisions]:
    """Fit by LIBSVM on the features themselves, where a Gram matrix would be larger than they are."""
    rows, held_out = fold.arrays
    decided = held_out if test is None else rows[test]
    machines = (SVC(kernel="linear", C=C, tol=_tolerance(test), cache_size=500) for C in penalties)
    return [_decisions(machine.fit(rows[train], codes[train]), decided) for machine in machines]


def _tolerance(test: Positions | None) -> float:
    return SVM_TOLERANCE if test is None else 1e-3


def _axes_rows(fold: FoldFeatures, train: Positions, test: Positions | None) -> tuple[Floats, Floats]:
    axes = fold.axes
    rows, held_out = axes.train[train], axes.test if test is None else axes.train[test]
    if rows.shape[1]:
        return rows, held_out
    return np.zeros((len(rows), 1)), np.zeros((len(held_out), 1))  # a wholly constant column has no axes


def _decisions(model: Any, rows: Floats) -> Decisions:
    values = model.decision_function(rows).reshape(len(rows), -1)
    return Decisions(values, model.predict(rows).astype(np.intp))
