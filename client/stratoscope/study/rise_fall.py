"""Rise, fall, rise again: a dip between two peaks, located on one half of the groups and tested on the other.

A curve over many layers always has some dip, if it is looked for, and a score below chance is no knowledge lost: a
trough counts as chance at least. So the windows are either fixed beforehand, or found
on half the groups and tested on the other half, which were fitted on their own. Both contrasts must hold, first peak
over trough and second peak over trough: an intersection-union test, whose p is the larger of the two (Berger 1982,
*Technometrics* 24). Contrasts are resampled over groups with the fitted probes held.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stratoscope.study.resampling import Curve, smoothed

Floats = NDArray[np.float64]
Window = tuple[int, int]
"""First and last layer, both included."""

MIN_LAYERS = 9
"""Of three windows with room between them."""


class Contrast(NamedTuple):
    """A difference between two windows of a curve: mean, 2.5th and 97.5th percentile, one-sided p."""

    value: float
    low: float
    high: float
    p: float


class RiseFallRise(NamedTuple):
    """Windows, and what lies between them.

    fall : first peak less trough
    rise : second peak less trough
    """

    windows: tuple[Window, Window, Window]
    fall: Contrast
    rise: Contrast

    @property
    def p(self) -> float:
        """Of both contrasts together."""
        return max(self.fall.p, self.rise.p)


def find_windows(
    scores: Floats, layers: NDArray[np.intp], *, chance: float = 0.0
) -> tuple[Window, Window, Window] | None:
    """Find the dip with the deepest lower side: windows around first peak, trough and second peak.

    Parameters
    ----------
    scores : float64 array of shape (n_layers,)
    layers : int array of shape (n_layers,), ascending
    chance : float
        Score of a guess.

    Returns
    -------
    three windows, or None where there are fewer than `MIN_LAYERS` layers or no layer lies below both sides
    """
    if len(scores) < MIN_LAYERS:
        return None
    reach = window_reach(len(scores))
    curve = np.maximum(smoothed(scores, 2 * reach + 1), chance)
    best, found = 0.0, None
    for trough in range(2 * reach + 1, len(curve) - 2 * reach - 1):
        left = int(curve[: trough - 2 * reach].argmax())
        right = trough + 2 * reach + 1 + int(curve[trough + 2 * reach + 1 :].argmax())
        depth = float(min(curve[left], curve[right]) - curve[trough])
        if depth > best:
            best, found = depth, (left, trough, right)
    if found is None:
        return None
    first, middle, last = (_window(place, reach, layers) for place in found)
    return first, middle, last


def rise_fall_rise(curve: Curve, windows: tuple[Window, Window, Window], *, chance: float = 0.0) -> RiseFallRise:
    """Measure a dip in given windows; these must not come from the same groups."""
    peak1, trough, peak2 = windows
    return RiseFallRise(
        windows, contrast(curve, peak1, trough, floor=chance), contrast(curve, peak2, trough, floor=chance)
    )


def contrast(curve: Curve, upper: Window, lower: Window, *, floor: float = -np.inf) -> Contrast:
    """Mean score in one window less that in another, with its resamples; the lower one counts as `floor` at least."""
    above, below = _mean_of(upper, curve.layers), _mean_of(lower, curve.layers)
    drawn = curve.draws @ above - np.maximum(curve.draws @ below, floor)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    # One added to both, as for permutations: no p of zero from a finite number of resamples.
    p = (1 + int((drawn <= 0).sum())) / (1 + len(drawn))
    value = float(curve.scores @ above) - max(float(curve.scores @ below), floor)
    return Contrast(value, float(low), float(high), p)


def window_reach(n_layers: int) -> int:
    """Layers on either side of a window's middle: one in models of up to 50 layers, two in those of 80."""
    return max(1, round(n_layers / 40))


def _window(place: int, reach: int, layers: NDArray[np.intp]) -> Window:
    return int(layers[max(place - reach, 0)]), int(layers[min(place + reach, len(layers) - 1)])


def _mean_of(window: Window, layers: NDArray[np.intp]) -> Floats:
    inside = (layers >= window[0]) & (layers <= window[1])
    if not inside.any():
        raise ValueError(f"window {window[0]}-{window[1]} holds none of the layers {layers[0]}-{layers[-1]}")
    return np.asarray(inside / inside.sum(), dtype=np.float64)
