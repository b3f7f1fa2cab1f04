"""Layer curves under resampled groups, the same resample for all targets and layers of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stratoscope.probes import SweepResult
from stratoscope.probes.bootstrap import fold_scores, group_weights, mean_of_defined
from stratoscope.probes.scoring import SCORES, Held

Floats = NDArray[np.float64]


class Curve(NamedTuple):
    """A layer curve with its resamples.

    layers : int array of shape (n_layers,), ascending
    scores : float64 array of shape (n_layers,); the mean over folds
    draws : float64 array of shape (n_resamples, n_layers)
    """

    layers: NDArray[np.intp]
    scores: Floats
    draws: Floats


def resampled_curve(result: SweepResult, site: str, metric: str, *, n_resamples: int, seed: int) -> Curve:
    """Score every layer of a site under resampled groups, the fitted probes held.

    Groups are drawn from all groups alike, not within classes: two targets of the same groups get the same resamples.

    Parameters
    ----------
    result : SweepResult
        Of one target and probe.
    site, metric : str
    n_resamples, seed : int
    """
    rows = result.predictions.filter(site=site, control="none")
    columns = rows.partition_by("layer", maintain_order=True)
    columns = sorted(columns, key=lambda column: column["layer"][0])
    first = columns[0]
    n_outputs = first["class"].n_unique()
    once = slice(None, None, n_outputs)
    y, fold_of = first["label"].to_numpy()[once], first["fold"].to_numpy()[once].astype(np.intp)
    group_of = np.unique(first["group"].to_numpy()[once], return_inverse=True)[1]
    weights = group_weights(group_of, np.zeros(len(y), dtype=np.intp), n_resamples=n_resamples, seed=seed)
    predicted = np.column_stack([column["prediction"].to_numpy()[once] for column in columns])
    decision = np.stack([column["decision"].to_numpy().reshape(-1, n_outputs) for column in columns], axis=1)
    held = Held(np.broadcast_to(y[:, None], predicted.shape), predicted, decision)
    score = SCORES[result.provenance["kind"]][metric]
    return Curve(
        np.array([column["layer"][0] for column in columns]),
        mean_of_defined(fold_scores(score, held, fold_of, None))[0],
        mean_of_defined(fold_scores(score, held, fold_of, weights)),
    )


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average the curves of targets of one experiment, resample by resample."""
    return Curve(
        curves[0].layers,
        np.mean([curve.scores for curve in curves], axis=0),
        np.mean([curve.draws for curve in curves], axis=0),
    )


def smoothed(curves: Floats, width: int) -> Floats:
    """Take the running mean over `width` layers, fewer at the ends; curves have shape (..., n_layers)."""
    n_layers = curves.shape[-1]
    near = np.abs(np.subtract.outer(np.arange(n_layers), np.arange(n_layers))) <= width // 2
    return np.asarray(curves @ (near / near.sum(axis=0)))
