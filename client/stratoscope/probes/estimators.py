"""Linear probes: pure functions that fit all label vectors of one fold at once, and the registry of them."""

# ruff: noqa: N803  X, Y and C are the names of the mathematics and of scikit-learn

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from stratoscope.probes.errors import DesignError
from stratoscope.probes.folds import Kind, Rows, Split
from stratoscope.probes.gram import Features, gram, standardise
from stratoscope.probes.scoring import CLASS_SCORES, VALUE_SCORES, Score

Floats = NDArray[np.float64]

ALPHAS: tuple[float, ...] = tuple(float(alpha) for alpha in 10.0 ** np.arange(0, 7.5, 0.5))
"""Default grid of ridge penalties, 1 to 1e7 in half decades. A standardised Gram has eigenvalues of mean d_model."""


@dataclass(frozen=True)
class Settings:
    """What a probe is told beside the data.

    scale : divide features by their standard deviation over the training rows (they are centred in any case)
    C : penalty of the SVM's hinge loss
    alphas : ridge penalties; one is used as it is, several are chosen from by inner grouped folds
    inner_folds : number of those inner folds
    """

    scale: bool = True
    C: float = 1.0
    alphas: tuple[float, ...] = ALPHAS
    inner_folds: int = 5

    def __post_init__(self) -> None:
        numbers = {"C": self.C, **{f"alphas[{i}]": alpha for i, alpha in enumerate(self.alphas)}}
        for name, number in numbers.items():
            if not (np.isfinite(number) and number > 0):
                raise DesignError(f"{name}={number}: a penalty must be finite and above zero")
        if not self.alphas or list(self.alphas) != sorted(set(self.alphas)):
            raise DesignError("alphas: give at least one penalty, each once, in ascending order")
        if self.inner_folds < 2:
            raise DesignError(f"inner_folds={self.inner_folds}: at least 2 are needed to choose alpha")


class FoldFit(NamedTuple):
    """What one fold yields for every label vector.

    decision : float64 array of shape (n_test, n_targets); signed distance, or predicted value
    chosen : float64 array of shape (n_targets,); the C or alpha that was used
    inner : float64 array of shape (n_targets,); mean squared error over the inner folds at `chosen`, NaN if none
    """

    decision: Floats
    chosen: Floats
    inner: Floats


@dataclass(frozen=True)
class Probe:
    """A kind of probe: what its labels are, how it is fitted, how it is scored (first score first)."""

    kind: Kind
    fit: Callable[[Floats, Floats, Split, Settings], FoldFit]
    scores: dict[str, Score]
    hyper: Literal["C", "alpha"]


def fit_svm(X: Floats, Y: Floats, split: Split, settings: Settings) -> FoldFit:
    """Linear support vector classifier: hinge loss, unpenalised intercept (scikit-learn's ``SVC``, from LIBSVM).

    One Gram matrix serves all label vectors. Equal to ``Pipeline(StandardScaler(), SVC(kernel="linear", C=C))``.

    Parameters
    ----------
    X : float64 array of shape (n_stimuli, d_model)
    Y : float64 array of shape (n_stimuli, n_targets)
        Label vectors of 0.0 and 1.0.
    split : Split
    settings : Settings
    """
    train, test = gram(standardise(X, split.train, split.test, scale=settings.scale))
    svms = [SVC(kernel="precomputed", C=settings.C).fit(train, labels) for labels in Y[split.train].T]
    n_targets = Y.shape[1]
    return FoldFit(
        np.column_stack([svm.decision_function(test) for svm in svms]),
        np.full(n_targets, settings.C),
        np.full(n_targets, np.nan),
    )


def fit_ridge(X: Floats, Y: Floats, split: Split, settings: Settings) -> FoldFit:
    """Ridge regression, b = argmin ||y - X b - b0||^2 + alpha ||b||^2, with alpha chosen per label vector.

    Alpha minimises the mean over the inner folds of the mean squared error, as
    ``GridSearchCV(Pipeline(StandardScaler(), Ridge()), cv=GroupKFold(inner_folds), scoring="neg_mean_squared_error")``
    does; features are standardised anew in every inner fold. Parameters as in `fit_svm`.
    """
    alphas, n_targets = np.asarray(settings.alphas), Y.shape[1]
    chosen, inner = np.full(n_targets, alphas[0]), np.full(n_targets, np.nan)
    if len(alphas) > 1:
        errors = np.mean([_inner_errors(X, Y, *rows, alphas, scale=settings.scale) for rows in split.inner], axis=0)
        best = errors.argmin(axis=0)
        chosen, inner = alphas[best], errors[best, np.arange(n_targets)]
    features = standardise(X, split.train, split.test, scale=settings.scale)
    return FoldFit(solve_ridge(features, Y[split.train], chosen[None])[0], chosen, inner)


def solve_ridge(features: Features, Y: Floats, alphas: Floats) -> Floats:
    """Ridge predictions for many penalties and label vectors from one eigendecomposition.

    Of the Gram matrix where rows are fewer than features, else of the features' cross products
    (Hastie, Tibshirani & Friedman, *Elements of Statistical Learning*, 18.3.5).

    Parameters
    ----------
    features : Features
        Centred on the training rows.
    Y : float64 array of shape (n_train, n_targets)
    alphas : float64 array of shape (n_alphas, 1) or (n_alphas, n_targets)
        One penalty for all label vectors, or one for each.

    Returns
    -------
    float64 array of shape (n_alphas, n_test, n_targets)
    """
    mean = Y.mean(axis=0)
    if len(features.train) <= features.train.shape[1]:
        train, test = gram(features)
        targets = Y - mean
    else:
        train, test = features.train.T @ features.train, features.test
        targets = features.train.T @ (Y - mean)
    values, vectors = np.linalg.eigh(train)
    values = values.clip(min=0)  # a Gram matrix has none below zero; rounding does
    shrunk = (vectors.T @ targets) / (values[:, None] + alphas[:, None, :])  # n_alphas, n_values, n_targets
    return np.asarray((test @ vectors) @ shrunk + mean)


def _inner_errors(X: Floats, Y: Floats, train: Rows, test: Rows, alphas: Floats, *, scale: bool) -> Floats:
    """Mean squared errors of one inner fold, (n_alphas, n_targets)."""
    predicted = solve_ridge(standardise(X, train, test, scale=scale), Y[train], alphas[:, None])
    return np.asarray(((predicted - Y[test]) ** 2).mean(axis=1))


PROBES: dict[str, Probe] = {
    "svm": Probe("classes", fit_svm, CLASS_SCORES, "C"),
    "ridge": Probe("values", fit_ridge, VALUE_SCORES, "alpha"),
}
