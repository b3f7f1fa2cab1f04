"""Ridge regression and the ridge classifier: one eigendecomposition per fold for all penalties, targets and draws."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stratoscope.probes.features import Axes

Floats = NDArray[np.float64]
Positions = NDArray[np.intp]

AT_ONCE: Final = 1 << 20
"""Numbers held at a time for several penalties of inner cross-validation: 8 MiB, about what a cache holds."""


def predict_ridge(axes: Axes, Y: Floats, alphas: Floats) -> Floats:
    """Ridge predictions at the test rows, b = argmin ||y - X b - b0||^2 + alpha ||b||^2.

    Equal to scikit-learn's ``Ridge(alpha).fit(train, y).predict(test)``.

    Parameters
    ----------
    axes : Axes
    Y : float64 array of shape (n_train, n_columns)
    alphas : float64 array of shape (n_columns,), or a number
        The penalty of each column.

    Returns
    -------
    float64 array of shape (n_test, n_columns)
    """
    mean = Y.mean(axis=0)
    shrunk = (axes.train.T @ (Y - mean)) / (axes.values[:, None] + alphas)
    return np.asarray(axes.test @ shrunk + mean)


def held_out_errors(axes: Axes, Y: Floats, inner: tuple[tuple[Positions, Positions], ...], alphas: Floats) -> Floats:
    """Mean squared errors of inner cross-validation at every penalty, without a refit.

    With H the hat matrix of the training rows, unpenalised intercept included, the residuals of rows T under a fit that
    left T out are (I - H_TT)^-1 (y - H y)_T: exact for any T, so for grouped folds too (Cook & Weisberg 1982,
    *Residuals and Influence*, 2.2; Treder 2018, arXiv 1803.10016). It is linear in y, so permuted labels ride along.

    Parameters
    ----------
    axes : Axes
    Y : float64 array of shape (n_train, n_columns)
    inner : (train, test) positions among the training rows
    alphas : float64 array of shape (n_alphas,)

    Returns
    -------
    float64 array of shape (n_alphas, n_columns); the mean over inner folds of the mean over their rows
    """
    mean, Q = Y.mean(axis=0), axes.train
    projected = Q.T @ (Y - mean)
    errors = np.zeros((len(alphas), Y.shape[1]))
    for some in np.array_split(np.arange(len(alphas)), _n_passes(Q, len(alphas), inner)):
        shrinkage = 1 / (axes.values + alphas[some, None])  # n_some, n_axes
        residual = Y - mean - Q @ (shrinkage[:, :, None] * projected)  # n_some, n_train, n_columns
        for _, test in inner:
            H = (Q[test] * shrinkage[:, None, :]) @ Q[test].T + 1 / len(Q)
            held_out = np.linalg.solve(np.eye(len(test)) - H, residual[:, test])
            errors[some] += (held_out**2).mean(axis=1) / len(inner)
    return errors


def _n_passes(Q: Floats, n_alphas: int, inner: tuple[tuple[Positions, Positions], ...]) -> int:
    """In how many parts penalties are taken, so that what is held for all of one part stays small."""
    n_held, n_axes = max(len(test) for _, test in inner), len(Q.T)
    return min(n_alphas, 1 + n_alphas * n_held * n_axes // AT_ONCE)


def code_classes(codes: Floats, n_outputs: int) -> Floats:
    """Code class numbers as -1 and 1: one column per class against the rest, or one alone for two classes.

    Parameters
    ----------
    codes : float64 array of shape (n_stimuli, n_vectors)

    Returns
    -------
    float64 array of shape (n_stimuli, n_vectors, n_outputs)
    """
    if n_outputs == 1:
        return np.asarray(2 * codes[:, :, None] - 1)
    return np.asarray(np.where(codes[:, :, None] == np.arange(n_outputs), 1.0, -1.0))
