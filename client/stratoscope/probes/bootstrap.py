"""Bootstrap over groups: scores recomputed on resampled held-out items, as weights on the out-of-fold predictions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stratoscope.probes.scoring import Held, Score

Floats = NDArray[np.float64]


def group_weights(group_of: NDArray[np.intp], stratum_of: NDArray[np.intp], *, n_resamples: int, seed: int) -> Floats:
    """How often each stimulus counts in each resample: whole groups are drawn with replacement.

    Groups are drawn within strata, so that a resample keeps the number of groups of each class where a class is a
    property of groups (Davison & Hinkley 1997, *Bootstrap Methods*, 2.4 and 3.2).

    Parameters
    ----------
    group_of, stratum_of : int arrays of shape (n_stimuli,)
        A group lies in one stratum.
    n_resamples : int
    seed : int

    Returns
    -------
    float64 array of shape (n_resamples, n_stimuli)
    """
    rng = np.random.default_rng(seed)
    _, first = np.unique(group_of, return_index=True)
    stratum_of_group = stratum_of[first]
    counts = np.zeros((n_resamples, len(first)))
    for stratum in np.unique(stratum_of_group):
        members = np.flatnonzero(stratum_of_group == stratum)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n_resamples)
    return counts[:, group_of]


def fold_scores(score: Score, held: Held, fold_of: NDArray[np.intp], weights: Floats | None) -> Floats:
    """Score every fold and column under each weighting.

    Parameters
    ----------
    score : Score
    held : Held
        All n_stimuli rows, with one vector per column of activations.
    fold_of : int array of shape (n_stimuli,)
    weights : float64 array of shape (n_resamples, n_stimuli), or None for once each

    Returns
    -------
    float64 array of shape (n_folds, n_resamples, n_columns), NaN where not defined
    """
    folds = [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
    return np.stack(
        [score(Held(*(rows[test] for rows in held)), None if weights is None else weights[:, test]) for test in folds]
    )


def mean_of_defined(scores: Floats) -> Floats:
    """Mean over the first axis without NaN; NaN where nothing is left.

    For resamples: one may leave a fold without a class or without any rows, and the other folds then speak for it.
    """
    defined = np.isfinite(scores)
    n_defined = defined.sum(axis=0)
    return np.asarray(np.where(defined, scores, 0.0).sum(axis=0) / np.where(n_defined == 0, np.nan, n_defined))
