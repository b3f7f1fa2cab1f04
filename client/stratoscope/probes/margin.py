"""Support vector machines of two classes, solved exactly by an active-set method on the Gram matrix.

The dual of the soft margin with an unpenalised intercept is, with K the Gram matrix, y in {-1, 1} and b = y * alpha,

    minimise  b'Kb / 2 - y'b   subject to   sum(b) = 0,  0 <= y b <= C.

Every row is free, at 0, or at C. Given which is which, the free ones and the intercept follow from a linear system;
rows that break a bound or the sign of their margin change sides, all at once, until none does (block pivoting:
Portugal, Judice & Vicente 1994; with their rule for going on one at a time where such rows stop getting fewer). With
P = K^-1, formed once for all label vectors, only a system of the size of the rows *at a bound* is left to solve.
What is returned was held against the Karush-Kuhn-Tucker conditions with K itself.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stratoscope.probes.cholesky import factorise, invert, solve

Floats = NDArray[np.float64]

MARGIN_TOLERANCE: Final = 1e-7
"""By how much a margin may break its condition in what is returned; margins of support vectors are 1."""

_ROUNDING: Final = 1e-9
_MOST_STEPS: Final = 40
_PATIENCE: Final = 3
_FREE, _AT_ZERO, _AT_C = np.int8(0), np.int8(1), np.int8(2)


class Margin(NamedTuple):
    """A linear decision, rows @ dual + intercept of inner products with the training rows.

    dual : float64 array of shape (n_train,); 0 for rows that support nothing, at most C in size
    intercept : float
    """

    dual: Floats
    intercept: float


def inverse_gram(K: Floats) -> Floats | None:
    """Invert a Gram matrix with a constant added, or return None if it is singular.

    Since duals sum to zero a constant changes no solution; without one, the Gram matrix of centred rows is singular.

    Parameters
    ----------
    K : float64 array of shape (n_train, n_train)

    Returns
    -------
    float64 array of shape (n_train, n_train), or None
    """
    inverse: Floats = K + K.trace() / len(K) ** 2
    return inverse if factorise(inverse) and invert(inverse) else None


def widest_margin(K: Floats, inverse: Floats, signs: Floats, C: float) -> Margin | None:
    """Solve for one label vector, or return None if that does not come to an end that fulfils the conditions.

    Parameters
    ----------
    K : float64 array of shape (n_train, n_train)
    inverse : float64 array of shape (n_train, n_train)
        Of `inverse_gram`.
    signs : float64 array of shape (n_train,)
        -1 and 1, both of them present.
    C : float
        Penalty of the hinge loss.
    """
    side = np.full(len(signs), _FREE, np.int8)
    unbound = np.stack([inverse @ signs, inverse.sum(axis=0)])
    fewest, patience = len(signs) + 1, _PATIENCE
    for _ in range(_MOST_STEPS):
        found = _given_sides(inverse, unbound, signs, C, side)
        if found is None:
            return None
        (moved,) = (found.side != side).nonzero()
        if not len(moved):
            return _checked(K, found.dual, signs, C)
        if len(moved) < fewest:
            fewest, patience = len(moved), _PATIENCE
        elif patience:
            patience -= 1
        else:
            moved = moved[-1:]
        side[moved] = found.side[moved]
    return None


class _Found(NamedTuple):
    """The solution for given sides, and the sides that it asks for."""

    dual: Floats
    side: NDArray[np.int8]


def _given_sides(inverse: Floats, unbound: Floats, signs: Floats, C: float, side: NDArray[np.int8]) -> _Found | None:
    """Solve with the bound rows held where they are; `unbound` is the inverse times the signs, and times ones."""
    (bound,) = side.nonzero()
    if len(bound) == len(side):
        return None
    at_c, y = side[bound] == _AT_C, signs[bound]
    held = C * y * at_c
    slack = -unbound.take(bound, axis=1)
    slack[0] += held
    full = unbound
    if len(bound):
        rows = inverse.take(bound, axis=0)
        factor = rows.take(bound, axis=1)
        if not factorise(factor):
            return None
        solve(factor, slack)
        full = unbound + slack @ rows
    with_signs, with_ones = full.sum(axis=1)
    intercept = with_signs / with_ones
    dual = full[0] - intercept * full[1]
    dual[bound] = held
    excess = y * (slack[0] - intercept * slack[1])  # margins of the bound rows, less 1
    alpha = signs * dual
    wanted = _AT_ZERO * (alpha < 0) + _AT_C * (alpha > C)
    wanted[bound] = side[bound] * (np.where(at_c, excess, -excess) <= _ROUNDING)
    return _Found(dual, wanted)


def _checked(K: Floats, dual: Floats, signs: Floats, C: float) -> Margin | None:
    """Find the intercept anew from K itself, and return the solution if every row fulfils its condition."""
    alpha = signs * dual
    at_zero, at_c = alpha <= _ROUNDING * C, alpha >= (1 - _ROUNDING) * C
    offset = signs - K @ dual  # the intercept at which a row lies on its margin
    free = ~(at_zero | at_c)
    is_lowest = free | np.where(signs > 0, at_zero, at_c)
    is_highest = free | np.where(signs > 0, at_c, at_zero)
    lowest, highest = offset[is_lowest].max(initial=-np.inf), offset[is_highest].min(initial=np.inf)
    if not lowest - highest <= MARGIN_TOLERANCE or abs(dual.sum()) > MARGIN_TOLERANCE * np.abs(dual).max():
        return None
    # Of an intercept that is not unique the middle is taken, as LIBSVM does.
    return Margin(dual, float(offset[free].mean() if free.any() else (lowest + highest) / 2))
