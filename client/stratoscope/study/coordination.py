"""Whether neighbouring layers take turns: reliable alternation around a curve's trend.

A zig-zag in one curve proves nothing: differences of white noise alternate in sign two thirds of the time, and
detrending alone makes neighbours anticorrelated. So: (1) every curve is measured on two disjoint halves of the groups,
fitted apart, and detrended; what the halves share is *reliable*. (2) The lag-1 correlation is taken across halves, one
half's layer with the other half's next, so that noise which neighbouring layers share through common stimuli drops out.
(3) Both are held against curves whose deviations from the trend are exchanged among neighbouring layers, and which are
detrended again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.intp]


class Turns(NamedTuple):
    """What was found at one site.

    reliability : mean correlation of detrended curves between halves
    reliability_p : one-sided, against halves whose layers are exchanged separately
    lag1 : mean correlation of a layer with the next across halves, in units of the curves' own spread
    null_low, null_high : middle 95 % of the same under exchanged layers
    lag1_p : one-sided, for a negative value
    """

    reliability: float
    reliability_p: float
    lag1: float
    null_low: float
    null_high: float
    lag1_p: float


class TradeOff(NamedTuple):
    """Whether two targets are up in different layers: correlation of their detrended curves, across halves."""

    correlation: float
    null_low: float
    null_high: float
    p: float


def detrending(n_layers: int, span: int) -> Floats:
    """Return the matrix that takes a local parabola from a curve, float64 of shape (n_layers, n_layers).

    At every layer a parabola is fitted by least squares to the nearest ``span + 1`` layers, and its value there is
    subtracted (local regression of degree two with a uniform window; Cleveland 1979, *JASA* 74). A straight line would
    leave the bend of a peak behind, which is no alternation but reliable all the same.
    """
    matrix = np.eye(n_layers)
    width = min(span + 1, n_layers)
    for layer in range(n_layers):
        start = min(max(0, layer - width // 2), n_layers - width)
        near = np.arange(start, start + width)
        parabola = np.vander(near - layer, 3, increasing=True).astype(np.float64)
        matrix[layer, near] -= np.linalg.pinv(parabola)[0]
    return matrix


def exchanged(n_layers: int, span: int, n_draws: int, seed: int) -> Numbers:
    """Draw orders of the layers that exchange them within windows of `span` layers, which begin at a random layer.

    Returns
    -------
    int array of shape (n_draws, n_layers)
    """
    rng = np.random.default_rng(seed)
    starts = rng.integers(span, size=n_draws)
    window = (np.arange(n_layers)[None, :] + starts[:, None]) // span
    return np.argsort(window + rng.random((n_draws, n_layers)), axis=1)


def take_turns(curves: Floats, *, span: int = 8, n_draws: int = 2000, seed: int = 0) -> Turns:
    """Test for turns between neighbouring layers.

    Parameters
    ----------
    curves : float64 array of shape (n_targets, n_splits, 2, n_layers)
        Scores of both halves for every division of the groups. Several targets are averaged.
    span, n_draws, seed : int
        See `detrending` and `exchanged`.
    """
    matrix = detrending(curves.shape[-1], span)
    flat = curves.reshape(-1, 2, curves.shape[-1])
    residual, trend = flat @ matrix.T, flat - flat @ matrix.T
    orders = exchanged(curves.shape[-1], span, n_draws, seed)
    others = exchanged(curves.shape[-1], span, n_draws, seed + 1)
    together = np.array([_lag1((trend + residual[..., order]) @ matrix.T) for order in orders])
    apart = np.array(
        [
            _shared((trend + np.stack([residual[:, 0][:, a], residual[:, 1][:, b]], axis=1)) @ matrix.T)
            for a, b in zip(orders, others, strict=True)
        ]
    )
    reliability, lag1 = _shared(residual), _lag1(residual)
    low, high = np.quantile(together, [0.025, 0.975])
    return Turns(
        reliability, _upper_p(apart, reliability), lag1, float(low), float(high), _upper_p(-together, -lag1)
    )  # fmt: skip


def trade_off(a: Floats, b: Floats, *, span: int = 8, n_draws: int = 2000, seed: int = 0) -> TradeOff:
    """Test whether two targets trade off: where one is above its trend, the other is below.

    Parameters
    ----------
    a, b : float64 arrays of shape (n_splits, 2, n_layers)
        Halves of two targets. One half of `a` is held against the other half of `b`, so that stimuli they share do not
        correlate them.
    span, n_draws, seed : int
    """
    matrix = detrending(a.shape[-1], span)
    left, right = a @ matrix.T, b @ matrix.T
    trend = b - right
    observed = _across(left, right)
    orders = exchanged(a.shape[-1], span, n_draws, seed)
    null = np.array([_across(left, (trend + right[..., order]) @ matrix.T) for order in orders])
    low, high = np.quantile(null, [0.025, 0.975])
    return TradeOff(observed, float(low), float(high), _upper_p(-null, -observed))


def _shared(residual: Floats) -> float:
    return float(np.mean(_correlate(residual[:, 0], residual[:, 1])))


def _lag1(residual: Floats) -> float:
    a, b = residual[:, 0], residual[:, 1]
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    crossed = ((a[:, :-1] * b[:, 1:]).sum(axis=-1) + (b[:, :-1] * a[:, 1:]).sum(axis=-1)) / 2
    return float(np.mean(crossed / np.where(scale == 0, np.inf, scale)))


def _across(a: Floats, b: Floats) -> float:
    return float(np.mean([_correlate(a[:, 0], b[:, 1]), _correlate(a[:, 1], b[:, 0])]))


def _correlate(a: Floats, b: Floats) -> Floats:
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return np.asarray((a * b).sum(axis=-1) / np.where(scale == 0, np.inf, scale))


def _upper_p(null: Floats, observed: float) -> float:
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + len(null)))
