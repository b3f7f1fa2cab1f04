"""Where a curve peaks and where it begins, with what resampled stimuli say of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
"""Of confidence sets and intervals."""

Draws = Mapping[tuple[str, str], Floats]
"""Resampled curves by (metric, site): float64 of shape (n_resamples, n_layers), layers ascending."""

PEAKS_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("target", "probe", "metric", "site"), pl.String),
        "n_layers": pl.Int32,
        "peak_layer": pl.Int32,
        "peak_relative_depth": pl.Float64,
        **dict.fromkeys(("score", "se", "low", "high"), pl.Float64),
        "peak_set": pl.String,
        **dict.fromkeys(("peak_first", "peak_last"), pl.Int32),
        "plateau": pl.String,
        **dict.fromkeys(("plateau_first", "plateau_last", "n_plateau"), pl.Int32),
        **dict.fromkeys(("onset_layer", "onset_first", "onset_last"), pl.Int32),
        **dict.fromkeys(("shuffled_mean", "shuffled_low", "shuffled_high", "text_score", "chance"), pl.Float64),
        **dict.fromkeys(("embed_score", "selectivity", "p", "p_corrected", "threshold"), pl.Float64),
    }
)


def layer_peaks(curves: pl.DataFrame, draws: Draws) -> pl.DataFrame:
    """Peak, plateau and onset of every metric and site. Undefined scores never peak; sites without layers have no row.

    Parameters
    ----------
    curves : polars.DataFrame
        Of `layer_curves`.
    draws : mapping of (metric, site) to resampled curves
    """
    keys = ["target", "probe", "metric", "site"]
    layered = curves.filter(pl.col("layer").is_not_null() & pl.col("score").is_finite())
    parts = layered.partition_by(keys, maintain_order=True)
    return pl.DataFrame([_row(part.sort("layer"), draws) for part in parts], PEAKS_SCHEMA)


def confidence_set(scores: Floats, drawn: Floats, *, level: float = LEVEL) -> NDArray[np.bool_]:
    """Layers that may be the best one: those of which this is not rejected at 1 - `level`.

    For each layer l the hypothesis "no layer is better than l" is tested by the greatest studentised difference to the
    others, T = max_k (m_k - m_l) / s_kl. Its null distribution is that of the resampled deviations around the curve
    that the hypothesis allows, min(m_k, m_l): layers observed above l are brought down to it, those below stay below,
    so that layers out of the race do not widen the set. This is multiple comparison with the best (Hsu 1981, *Annals of
    Statistics* 9; Hansen, Lunde & Nason 2011, *Econometrica* 79) with the null curve estimated as in inference on
    moment inequalities (Andrews & Soares 2010, *Econometrica* 78). It assumes nothing of the shape of the curve. A
    layer far above all others is alone in its set.

    Parameters
    ----------
    scores : float64 array of shape (n_layers,)
    drawn : float64 array of shape (n_resamples, n_layers)
        Curves of resampled stimuli.
    level : float

    Returns
    -------
    bool array of shape (n_layers,); the best layer is always in
    """
    deviation = drawn - scores
    kept = np.zeros(len(scores), dtype=bool)
    for layer, score in enumerate(scores):
        difference = deviation - deviation[:, [layer]]
        spread = difference.std(axis=0)
        spread[spread == 0] = np.inf  # itself, and layers that never differ from it
        gap = scores - score
        # Layers that never differ in a resample and yet score otherwise are told apart for certain.
        if (gap[np.isinf(spread)] > 1e-12).any():
            continue
        allowed = np.minimum(gap, 0)
        null = ((allowed + difference) / spread).max(axis=1)
        kept[layer] = (gap / spread).max() <= max(float(np.quantile(null, level)), 0.0)
    kept[int(scores.argmax())] = True
    return kept


def change_points(curves: Floats, baseline: float) -> NDArray[np.intp]:
    """First layer of the upper level, in the best fit of a step from `baseline` up to one level.

    Least squares over all steps, no step at all left of the first layer included; a step down counts as none. One split
    of a binary segmentation whose lower mean is known (Scott & Knott 1974, *Biometrics* 30). The first layer that is
    significant is no estimate of an onset: it depends on the number of stimuli (Sassenhagen & Draschkow 2019,
    *Psychophysiology* 56; Rousselet 2023, bioRxiv 2023.11.13.566864).

    Parameters
    ----------
    curves : float64 array of shape (n_curves, n_layers)
        From the first layer to the peak.
    baseline : float
        Score where there is no signal.

    Returns
    -------
    int array of shape (n_curves,)
    """
    above = curves - baseline
    n_upper = np.arange(curves.shape[1], 0, -1)
    mean = above[:, ::-1].cumsum(axis=1)[:, ::-1] / n_upper
    # The sum of squares falls by n * mean^2 where the upper level is fitted.
    return np.asarray((n_upper * mean.clip(min=0) ** 2).argmax(axis=1))


def _row(part: pl.DataFrame, draws: Draws) -> dict[str, Any]:
    """Row of one metric and site."""
    rows = part.to_dicts()
    best = max(rows, key=lambda row: (row["score"], -row["layer"]))
    layers = [row["layer"] for row in rows]
    plateau = [row["layer"] for row in rows if row is best or row["score"] >= best["score"] - best["se"]]
    drawn = draws[best["metric"], best["site"]]
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    scores = part["score"].to_numpy()
    in_set = confidence_set(scores, drawn) if len(drawn) else np.ones(len(layers), dtype=bool)
    chosen = [layer for layer, kept in zip(layers, in_set, strict=True) if kept]
    return {
        **{name: best[name] for name in PEAKS_SCHEMA if name in best},
        "peak_layer": best["layer"],
        "peak_relative_depth": best["relative_depth"],
        "peak_set": layer_ranges(chosen, layers),
        "peak_first": chosen[0],
        "peak_last": chosen[-1],
        "plateau": layer_ranges(plateau, layers),
        "plateau_first": plateau[0],
        "plateau_last": plateau[-1],
        "n_plateau": len(plateau),
        **_onset(scores, drawn, layers, best),
    }


def _onset(scores: Floats, drawn: Floats, layers: list[int], best: dict[str, Any]) -> dict[str, int | None]:
    """First decodable layer with its interval; nothing where the peak itself is not above chance."""
    baseline = _first_known(best["null_mean"], best["shuffled_mean"], best["chance"])
    tested = best["p_corrected"] is not None
    is_decodable = best["p_corrected"] <= 1 - LEVEL if tested else best["low"] > baseline
    if not is_decodable or not len(drawn):
        return {"onset_layer": None, "onset_first": None, "onset_last": None}
    end = layers.index(best["layer"]) + 1
    first, last = np.quantile(
        change_points(drawn[:, :end], baseline), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf"
    ).astype(int)
    point = int(change_points(scores[None, :end], baseline)[0])
    return {"onset_layer": layers[point], "onset_first": layers[first], "onset_last": layers[last]}


def _first_known(*values: float | None) -> float:
    return next(value for value in values if value is not None and np.isfinite(value))


def layer_ranges(layers: list[int], swept: list[int]) -> str:
    """Write layers as ranges of neighbours among those swept: [3, 4, 5, 8] of 0..9 is "3-5, 8"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and swept.index(layer) == swept.index(runs[-1][-1]) + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
