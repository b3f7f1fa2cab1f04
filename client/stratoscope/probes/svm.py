"""Linear support vector machines on inner products: one per pair of classes, combined as scikit-learn does."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from stratoscope.probes.margin import Margin, inverse_gram, widest_margin

Floats = NDArray[np.float64]

SVM_TOLERANCE: Final = 1e-6
"""Of LIBSVM's stopping rule. Its default of 1e-3 leaves decisions uncertain in the third digit."""


@dataclass(frozen=True)
class Machines:
    """What tells every two classes apart.

    classes : intp array of shape (n_classes,); class numbers, ascending
    dual : float64 array of shape (n_train, n_pairs); pairs in the order (0, 1), (0, 2), ..., (1, 2), ...; a row of the
        second class has a positive coefficient, rows of other classes 0
    intercept : float64 array of shape (n_pairs,)
    """

    classes: NDArray[np.intp]
    dual: Floats
    intercept: Floats

    def decide(self, rows: Floats) -> tuple[Floats, NDArray[np.intp]]:
        """Decide on rows by their inner products with the training rows.

        Parameters
        ----------
        rows : float64 array of shape (n_test, n_train)

        Returns
        -------
        float64 array of shape (n_test, 1) or (n_test, n_classes), intp array of shape (n_test,)
            Decisions, as ``SVC.decision_function`` gives them, and class numbers: that of most pairs won, of equal ones
            the lowest.
        """
        values = rows @ self.dual + self.intercept
        if len(self.classes) == 2:
            return values, self.classes[(values[:, 0] > 0).astype(np.intp)]
        votes, confidence = np.zeros((2, len(rows), len(self.classes)))
        for value, (first, second) in zip(values.T, combinations(range(len(self.classes)), 2), strict=True):
            votes[:, first] += value <= 0
            votes[:, second] += value > 0
            confidence[:, first] -= value
            confidence[:, second] += value
        # Confidence decides between classes of equal votes alone (scikit-learn's `_ovr_decision_function`).
        decision = votes + confidence / (3 * (np.abs(confidence) + 1))
        return decision, self.classes[votes.argmax(axis=1)]

    def is_hard(self, C: float) -> bool:
        """Whether no coefficient reaches C: every greater C then has the same solution."""
        return bool(np.abs(self.dual).max(initial=0.0) < C)


def fit_machines(
    K: Floats, codes: Floats, C: float, inverse: Floats | None, tolerance: float = SVM_TOLERANCE
) -> Machines:
    """Fit on a Gram matrix: exactly where the active-set method comes to an end, else by LIBSVM to a tolerance.

    Parameters
    ----------
    K : float64 array of shape (n_train, n_train)
    codes : float64 array of shape (n_train,)
        Class numbers, two or more different ones.
    C : float
        Penalty of the hinge loss.
    inverse : float64 array of shape (n_train, n_train), or None
        `inverse_gram` of K; None if K is singular, as where rows outnumber features: LIBSVM then fits.
    tolerance : float
        Of LIBSVM's stopping rule.
    """
    classes = np.unique(codes).astype(np.intp)
    if len(classes) == 2:
        margins = [_margin(K, np.where(codes == classes[1], 1.0, -1.0), C, inverse, tolerance)]
    else:
        pairs = combinations(classes, 2)
        margins = [_margin_of_two(K, codes, pair, C, tolerance, exactly=inverse is not None) for pair in pairs]
    dual = np.stack([one.dual for one in margins], axis=1)
    return Machines(classes, dual, np.array([one.intercept for one in margins]))


def _margin_of_two(
    K: Floats, codes: Floats, pair: tuple[int, int], C: float, tolerance: float, *, exactly: bool
) -> Margin:
    rows = np.flatnonzero(np.isin(codes, pair))
    among = np.ascontiguousarray(K[np.ix_(rows, rows)])
    signs = np.where(codes[rows] == pair[1], 1.0, -1.0)
    found = _margin(among, signs, C, inverse_gram(among) if exactly else None, tolerance)
    dual = np.zeros(len(codes))
    dual[rows] = found.dual
    return Margin(dual, found.intercept)


def _margin(K: Floats, signs: Floats, C: float, inverse: Floats | None, tolerance: float) -> Margin:
    exact = None if inverse is None else widest_margin(K, inverse, signs, C)
    return _by_libsvm(K, signs, C, tolerance) if exact is None else exact


def _by_libsvm(K: Floats, signs: Floats, C: float, tolerance: float) -> Margin:
    svm = SVC(kernel="precomputed", C=C, tol=tolerance, cache_size=500).fit(K, signs)
    dual = np.zeros(len(K))
    dual[svm.support_] = svm.dual_coef_[0]
    return Margin(dual, float(svm.intercept_[0]))
