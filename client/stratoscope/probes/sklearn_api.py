"""The shared-Gram probes as scikit-learn estimators, for pipelines and searches of your own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import GroupKFold, KFold
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from stratoscope.probes.classifiers import fit_svms
from stratoscope.probes.estimators import ALPHAS, mean_recall
from stratoscope.probes.features import FoldFeatures
from stratoscope.probes.ridge import code_classes, held_out_errors, predict_ridge
from stratoscope.probes.svm import fit_machines

Floats = NDArray[np.float64]
Inner = tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]


class _Ridge(BaseEstimator):  # type: ignore[misc]
    """What ridge regression and the ridge classifier share."""

    def __init__(self, alphas: Sequence[float] = ALPHAS, *, scale: bool = True, inner_folds: int = 5) -> None:
        self.alphas = alphas
        self.scale = scale
        self.inner_folds = inner_folds

    def _fit_columns(self, X: Floats, Y: Floats, groups: ArrayLike | None) -> None:
        """Fit columns of Y, (n_stimuli, n_columns), with one alpha for all of them."""
        everything = np.arange(len(X))
        fold = FoldFeatures(X, everything, everything, scale=self.scale)
        alphas = np.sort(np.asarray(self.alphas, dtype=np.float64).reshape(-1))
        self.alpha_ = float(alphas[0])
        if len(alphas) > 1 and len(X) > 1:
            errors = held_out_errors(fold.axes, Y, _inner(self.inner_folds, len(X), groups), alphas).mean(axis=1)
            self.alpha_ = float(alphas[errors.argmin()])
        weights, intercept = fold.weights(predict_ridge(fold.axes, Y, np.full(Y.shape[1], self.alpha_)))
        self.coef_: Floats = weights.T
        self.intercept_: Any = intercept


class RidgeProbe(MultiOutputMixin, RegressorMixin, _Ridge):  # type: ignore[misc]
    """Ridge regression on standardised features, its penalty chosen by (grouped) folds from one eigendecomposition.

    Equal to ``make_pipeline(StandardScaler(), GridSearchCV(Ridge(), {"alpha": alphas}, cv=..., scoring=
    "neg_mean_squared_error"))``, with coefficients on the features as they come.

    Parameters
    ----------
    alphas : sequence of float
    scale : bool
        Divide features by their standard deviation; they are centred in any case.
    inner_folds : int
        Folds that choose alpha: ``GroupKFold`` where `fit` is given groups, else ``KFold``.

    Attributes
    ----------
    alpha_ : float
    coef_ : float64 array of shape (n_features,) or (n_targets, n_features)
    intercept_ : float or float64 array of shape (n_targets,)
    """

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None) -> Self:
        """Fit; rows of one of `groups` are never on both sides of an inner fold."""
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        self._fit_columns(X, y.reshape(len(y), -1).astype(np.float64), groups)
        if y.ndim == 1:
            self.coef_, self.intercept_ = self.coef_[0], float(self.intercept_[0])
        return self

    def predict(self, X: Any) -> Floats:
        """Predict values, (n_stimuli,) or (n_stimuli, n_targets)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return np.asarray(X @ self.coef_.T + self.intercept_)


class RidgeProbeClassifier(ClassifierMixin, _Ridge):  # type: ignore[misc]
    """Ridge regression on classes coded -1 and 1, one against the rest; parameters as in `RidgeProbe`.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    alpha_ : float
    coef_ : float64 array of shape (1 or n_classes, n_features)
    intercept_ : float64 array of shape (1 or n_classes,)
    """

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None) -> Self:
        """Fit; rows of one of `groups` are never on both sides of an inner fold."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        self.classes_, codes = _classes(y)
        n_outputs = len(self.classes_) if len(self.classes_) > 2 else 1
        self._fit_columns(X, code_classes(codes[:, None], n_outputs)[:, 0], groups)
        return self

    def decision_function(self, X: Any) -> Floats:
        """Signed distances, (n_stimuli,) for two classes, else (n_stimuli, n_classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        decision = X @ self.coef_.T + self.intercept_
        return np.asarray(decision[:, 0] if len(self.classes_) == 2 else decision)

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict classes, (n_stimuli,)."""
        decision = self.decision_function(X)
        codes = (decision >= 0).astype(np.intp) if decision.ndim == 1 else decision.argmax(axis=1)
        return np.asarray(self.classes_[codes])


class SVMProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Linear support vector machine on standardised features, from one Gram matrix for all values of C.

    Equal to ``make_pipeline(StandardScaler(), SVC(kernel="linear", C=C, tol=1e-6))``; of several values of C, (grouped)
    folds choose the one with the best balanced accuracy, the lowest on a tie.

    Parameters
    ----------
    C : float or sequence of float
    scale, inner_folds : as in `RidgeProbe`

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    C_ : float
    """

    def __init__(self, C: float | Sequence[float] = 1.0, *, scale: bool = True, inner_folds: int = 5) -> None:
        self.C = C
        self.scale = scale
        self.inner_folds = inner_folds

    def fit(self, X: Any, y: Any, groups: ArrayLike | None = None) -> Self:
        """Fit; rows of one of `groups` are never on both sides of an inner fold."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        self.classes_, codes = _classes(y)
        everything = np.arange(len(X))
        fold = FoldFeatures(X, everything, everything, scale=self.scale)
        grid = sorted({float(C) for C in np.atleast_1d(np.asarray(self.C, dtype=np.float64))})
        self.C_ = grid[0]
        if len(grid) > 1:
            scores = [
                [mean_recall(codes[test], one.predicted) for one in fit_svms(fold, codes, train, test, grid)]
                for train, test in _inner(self.inner_folds, len(X), groups)
                if len(np.unique(codes[train])) > 1
            ]
            self.C_ = grid[int(np.mean(scores, axis=0).argmax())] if scores else grid[0]
        self._rows = fold.arrays[0]
        self._mean, self._spread = fold.statistics
        self._machines = fit_machines(fold.gram.train, codes, self.C_, fold.inverse)
        return self

    def decision_function(self, X: Any) -> Floats:
        """Signed distances, (n_stimuli,) for two classes, else (n_stimuli, n_classes)."""
        values, _ = self._decide(X)
        return values[:, 0] if values.shape[1] == 1 else values

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict classes, (n_stimuli,)."""
        _, codes = self._decide(X)
        return np.asarray(self.classes_[codes])

    def _decide(self, X: Any) -> tuple[Floats, NDArray[np.intp]]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return self._machines.decide(((X - self._mean) / self._spread) @ self._rows.T)


def _classes(y: NDArray[Any]) -> tuple[NDArray[Any], Floats]:
    check_classification_targets(y)
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y holds one class, {classes[0]!r}; a classifier needs two")
    return classes, codes.astype(np.float64)


def _inner(n_folds: int, n_rows: int, groups: ArrayLike | None) -> Inner:
    if groups is not None:
        return tuple(GroupKFold(n_folds).split(np.zeros(n_rows), groups=np.asarray(groups)))
    return tuple(KFold(min(n_folds, n_rows)).split(np.zeros(n_rows)))
