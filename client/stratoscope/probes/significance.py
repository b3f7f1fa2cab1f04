"""Which layers beat the permutation null, with the family-wise error over all of them held."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.probes.errors import DesignError
from stratoscope.probes.sweep import SweepResult

Floats = NDArray[np.float64]

ON = ["target", "probe", "metric"]


def significance(result: SweepResult, *, level: float = 0.05) -> pl.DataFrame:
    """Compare every column's score with its permutations, alone and with the best of all columns.

    The family is every column of the sweep (all sites and layers) for one target, probe and metric. A corrected p-value
    compares the score with the maximum over the family under each permutation, the labels of which are the same for all
    columns (Nichols & Holmes 2002, *Human Brain Mapping* 15; Westfall & Young 1993). It does not correct for several
    targets, probes, metrics or sweeps.

    Parameters
    ----------
    result : SweepResult
        Of a sweep with ``permutations=``.
    level : float
        Family-wise error rate of the threshold.

    Returns
    -------
    polars.DataFrame
        ``target, probe, metric, site, layer, score`` (mean over outer folds), ``p`` (uncorrected), ``p_corrected``,
        ``threshold`` (a score above it has p_corrected <= level; infinite if permutations are too few), ``null_mean``,
        ``n_permutations``. p = (1 + number of permutations at least as good) / (1 + number of permutations).

    Raises
    ------
    DesignError
        If the sweep had no permutations.
    """
    if result.null.is_empty():
        raise DesignError("the sweep had no permutations; run it with permutations=1000")
    outer = result.scores.filter(pl.col("level") == "outer", pl.col("control") == "none")
    scores = outer.group_by([*ON, "site", "layer"], maintain_order=True).agg(pl.col("score").mean())
    parts = [_family(part, result.null, level) for part in scores.partition_by(ON, maintain_order=True)]
    return pl.concat(parts)


def _family(scores: pl.DataFrame, null: pl.DataFrame, level: float) -> pl.DataFrame:
    names = scores.row(0, named=True)
    mine = null.filter(*(pl.col(name) == names[name] for name in ON))
    columns = mine.partition_by("site", "layer", as_dict=True)
    drawn = np.stack(
        [
            columns[site, layer].sort("permutation")["score"].to_numpy()
            for site, layer in scores.select("site", "layer").rows()
        ]
    )  # n_columns, n_permutations
    drawn = np.where(np.isnan(drawn), -np.inf, drawn)  # an undefined score beats nothing
    best, observed = drawn.max(axis=0), scores["score"].to_numpy()
    return scores.with_columns(
        p=pl.Series(_p(drawn, observed[:, None])),
        p_corrected=pl.Series(_p(best[None], observed[:, None])),
        threshold=pl.lit(threshold(best, level)),
        null_mean=pl.Series(np.where(np.isfinite(drawn), drawn, np.nan).mean(axis=1)),
        n_permutations=pl.lit(len(best), pl.Int32),
    )


def _p(drawn: Floats, observed: Floats) -> Floats:
    at_least = (drawn >= observed - 1e-12 * np.abs(observed)).sum(axis=1)
    return np.where(np.isnan(observed[:, 0]), np.nan, (1 + at_least) / (1 + drawn.shape[1]))


def threshold(best: Floats, level: float) -> float:
    """Score that the best of a family exceeds in at most `level` of permutations; infinite if these are too few."""
    rank = int(np.floor(level * (1 + len(best)) + 1e-9))
    return float(np.sort(best)[::-1][rank - 1]) if rank else float("inf")
