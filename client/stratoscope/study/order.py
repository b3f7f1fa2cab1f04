"""Which of two experiments peaks earlier: the difference of their peaks' layers, with what resampled groups say of it.

The peak is the best layer of the curve, averaged over the experiment's targets and over three neighbouring layers. The
interval is the middle 95 % of the same difference over resamples. A flat curve gives a wide interval, not a wrong one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stratoscope.study.resampling import Curve, smoothed

Verdict = Literal["holds", "does not hold", "cannot be told"]
SMOOTH = 3


class Order(NamedTuple):
    """How many layers later the second experiment peaks: difference, middle 95 %, and what follows."""

    difference: float
    low: float
    high: float
    verdict: Verdict


def peaks(curve: Curve) -> tuple[float, NDArray[np.float64]]:
    """Return the layer of the peak, and those of its resamples (n_resamples,)."""
    drawn = curve.draws[np.isfinite(curve.draws).all(axis=1)]
    return (
        float(curve.layers[smoothed(curve.scores, SMOOTH).argmax()]),
        curve.layers[smoothed(drawn, SMOOTH).argmax(axis=1)].astype(np.float64),
    )


def peak_difference(first: Curve, second: Curve, scales: tuple[float, float] = (1, 1)) -> tuple[float, float, float]:
    """Return how much later the second curve peaks, and the middle 95 %; layers are divided by the scales."""
    (a, a_drawn), (b, b_drawn) = peaks(first), peaks(second)
    n_both = min(len(a_drawn), len(b_drawn))
    low, high = np.quantile(b_drawn[:n_both] / scales[1] - a_drawn[:n_both] / scales[0], [0.025, 0.975])
    return b / scales[1] - a / scales[0], float(low), float(high)


def order_of_peaks(earlier: Curve, later: Curve) -> Order:
    """Compare two curves of the same layers.

    The claim "the second peaks later" holds if the whole interval is above zero, does not hold if it is below one
    layer, and cannot be told otherwise.
    """
    difference, low, high = peak_difference(earlier, later)
    verdict: Verdict = "holds" if low > 0 else "does not hold" if high < 1 else "cannot be told"
    return Order(difference, low, high, verdict)
