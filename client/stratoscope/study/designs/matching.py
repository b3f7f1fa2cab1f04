"""Which two things to put together, so that the sum of their scores is large."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STARTS = 4
"""Random starts of the search; the best result is kept."""


def matching(score: Floats, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Match things two by two.

    A local search: from a random matching, two couples at a time exchange partners as long as the sum grows. The result
    is good, not the optimum for certain.

    Parameters
    ----------
    score : float64 array of shape (n, n)
        Symmetric; -inf where two things must not meet. The diagonal is ignored.
    rng : numpy.random.Generator

    Returns
    -------
    list of (int, int)
        The lower index first, in ascending order. Things that found no partner are in none.
    """
    score = score.astype(np.float64)
    np.fill_diagonal(score, -np.inf)
    allowed = np.isfinite(score)
    if not allowed.any():
        return []
    n = len(score)
    # Keeping a thing is worth more than any gain in the scores of all others.
    spread = float(np.abs(score[allowed]).max())
    weight = np.full((n + n % 2, n + n % 2), -(2.0 * spread + 1) * n)
    weight[:n, :n][allowed] = score[allowed]
    found = [_improved(weight, rng.permutation(len(weight)).reshape(-1, 2)) for _ in range(STARTS)]
    best = max(found, key=lambda couples: float(weight[couples[:, 0], couples[:, 1]].sum()))
    couples = [(int(min(couple)), int(max(couple))) for couple in best]
    return sorted(couple for couple in couples if couple[1] < n and allowed[couple])


def _improved(weight: Floats, couples: NDArray[np.intp]) -> NDArray[np.intp]:
    """Let couples exchange partners until no exchange of two couples gains anything."""
    couples = couples.copy()
    gained = True
    while gained:
        gained = False
        for one in range(len(couples)):
            a, b = couples[one]
            c, d = couples.T
            now = weight[a, b] + weight[c, d]
            gain = np.stack([weight[a, c] + weight[b, d], weight[a, d] + weight[b, c]]) - now
            gain[:, one] = 0
            way, other = np.unravel_index(int(gain.argmax()), gain.shape)
            if gain[way, other] > 1e-9:
                partner, left = (c[other], d[other]) if way == 0 else (d[other], c[other])
                couples[one], couples[other] = (a, partner), (b, left)
                gained = True
    return couples
