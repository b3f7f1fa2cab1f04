"""Standardised features of one fold, and their inner products: all that a linear probe needs to see of the rows."""

# ruff: noqa: N803  X, Y and C are the names of the mathematics and of scikit-learn

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from stratoscope.probes.folds import Rows


class Features(NamedTuple):
    """Features of one fold, centred (and scaled) on the training rows.

    train : float64 array of shape (n_train, n_varying)
    test : float64 array of shape (n_test, n_varying)
    """

    train: NDArray[np.float64]
    test: NDArray[np.float64]


class Gram(NamedTuple):
    """Inner products of one fold.

    train : float64 array of shape (n_train, n_train)
    test : float64 array of shape (n_test, n_train)
    """

    train: NDArray[np.float64]
    test: NDArray[np.float64]


def standardise(X: NDArray[np.float64], train: Rows, test: Rows, *, scale: bool) -> Features:
    """Centre, and if `scale` divide by the standard deviation, with the statistics of the training rows alone.

    A feature constant over the training rows is left out. That changes no linear probe: its training column is zero
    after centring, so it gets no weight; scikit-learn keeps it (with scale 1) to the same end. Leaving it out
    makes the inner products of a wholly constant column exactly zero instead of rounding noise.

    Parameters
    ----------
    X : float64 array of shape (n_stimuli, d_model)
    train, test : int arrays of shape (n_train,), (n_test,)
    scale : bool
    """
    rows = X[train]
    varying = rows.min(axis=0) < rows.max(axis=0)
    if not varying.any():
        return Features(np.zeros((len(train), 0)), np.zeros((len(test), 0)))
    scaler = StandardScaler(with_std=scale).fit(rows[:, varying])
    return Features(scaler.transform(rows[:, varying]), scaler.transform(X[test][:, varying]))


def gram(features: Features) -> Gram:
    """Inner products of training rows with each other, and of test rows with training rows."""
    return Gram(features.train @ features.train.T, features.test @ features.train.T)
