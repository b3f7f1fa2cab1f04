"""Layer curves and peaks, from the tables of a sweep.

What the intervals cover. `low` and `high` are the 2.5th and 97.5th percentiles of the score over resamples of the
groups (items), the probes and folds held as they were fitted. They say how far the score would move had other items of
the same kind been held out. They do not cover refitting on other training items, another division into folds, another
seed, or another model. Where every held-out stimulus is right there is nothing to resample, and the interval has no
width: at the ceiling it says little.

The interval at a peak is that of the layer which happens to be the peak: nothing corrects for having picked the best of
many layers, so a peak score is biased upwards and its interval too optimistic, and neither interval nor plateau is an
interval on the peak's *position*. Layers share stimuli and folds, so their intervals move together: overlap of two of
them is no test of their difference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.probes.baselines import label_level
from stratoscope.probes.bootstrap import fold_scores, group_weights, mean_of_defined
from stratoscope.probes.errors import DesignError, ResultsError
from stratoscope.probes.estimators import PROBES
from stratoscope.probes.scoring import chance
from stratoscope.probes.sweep import SweepResult


class Summary(NamedTuple):
    """A sweep in two tables.

    curves : one row per metric and column: ``target, probe, metric, site, layer, relative_depth, n_layers, n_stimuli,
        n_groups, n_folds, score`` (mean over outer folds), ``se, low, high`` (bootstrap over groups, ``n_resamples``),
        ``shuffled_mean, shuffled_low, shuffled_high`` (mean, 2.5th and 97.5th percentile over ``n_shuffles`` shuffles),
        ``text_score, text_low, text_high`` (text-only baseline) and ``chance``
    peaks : one row per metric and site that has layers: ``peak_layer, peak_relative_depth, score, se, low, high``, the
        plateau (``plateau``, such as "3-5, 8", with ``plateau_first, plateau_last, n_plateau``) and the controls there
    """

    curves: pl.DataFrame
    peaks: pl.DataFrame


def summarise(result: SweepResult, *, n_layers: int, n_resamples: int = 1000, seed: int = 0) -> Summary:
    """Turn a sweep into layer curves with intervals and controls, and their peaks.

    Parameters
    ----------
    result : SweepResult
    n_layers : int
        Layers of the *model*, from its card: relative depth is layer / (n_layers - 1), whichever layers were swept.
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Summary

    Raises
    ------
    DesignError
        If a layer is beyond `n_layers`, or there are fewer than 100 resamples.
    ResultsError
        If the predictions of a column lack stimuli that others have.
    """
    curves = layer_curves(result.scores, result.predictions, n_layers=n_layers, n_resamples=n_resamples, seed=seed)
    return Summary(curves, layer_peaks(curves))


def layer_curves(
    scores: pl.DataFrame, predictions: pl.DataFrame, *, n_layers: int, n_resamples: int = 1000, seed: int = 0
) -> pl.DataFrame:
    """Score, interval and controls of every column; parameters as in `summarise`, for one target and probe."""
    if n_resamples < 100:
        raise DesignError(f"n_resamples={n_resamples}: at least 100 are needed for a 95% percentile interval")
    deepest = scores["layer"].max()
    if isinstance(deepest, int) and deepest >= n_layers:
        raise DesignError(f"n_layers={n_layers}, but the scores hold layer {deepest}; give the model's n_layers")
    intervals = _intervals(predictions, n_resamples=n_resamples, seed=seed)
    on = ["metric", "site", "layer"]
    curves = intervals.filter(pl.col("control") == "none").drop("control")
    text = intervals.filter(pl.col("control") == "text").select(
        "metric", text_score="score", text_low="low", text_high="high"
    )
    depth = pl.col("layer") / max(n_layers - 1, 1)
    counts = {"n_layers": n_layers, "n_resamples": n_resamples}
    return (
        curves.join(_shuffled_band(scores), on=on, how="left", nulls_equal=True, maintain_order="left")
        .join(text, on="metric", how="left", maintain_order="left")
        .with_columns(relative_depth=depth, **{name: pl.lit(n, pl.Int32) for name, n in counts.items()})
        .select(_CURVE_COLUMNS)
    )


def layer_peaks(curves: pl.DataFrame) -> pl.DataFrame:
    """Best layer of every metric and site, the first one on a tie, with the layers within one standard error of it.

    The standard error is the bootstrap's at the peak. Undefined scores never peak; sites without layers have no row.
    """
    keys = ["target", "probe", "metric", "site"]
    layered = curves.filter(pl.col("layer").is_not_null() & pl.col("score").is_finite())
    return pl.DataFrame([_peak(part) for part in layered.partition_by(keys, maintain_order=True)], _PEAKS_SCHEMA)


_CURVE_COLUMNS = [
    *("target", "probe", "metric", "site", "layer", "relative_depth", "n_layers", "n_stimuli", "n_groups", "n_folds"),
    *("score", "se", "low", "high", "n_resamples", "shuffled_mean", "shuffled_low", "shuffled_high", "n_shuffles"),
    *("text_score", "text_low", "text_high", "chance"),
]

_PEAKS_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("target", "probe", "metric", "site"), pl.String),
        "n_layers": pl.Int32,
        "peak_layer": pl.Int32,
        "peak_relative_depth": pl.Float64,
        **dict.fromkeys(("score", "se", "low", "high"), pl.Float64),
        "plateau": pl.String,
        **dict.fromkeys(("plateau_first", "plateau_last", "n_plateau"), pl.Int32),
        **dict.fromkeys(("shuffled_mean", "shuffled_low", "shuffled_high", "text_score", "chance"), pl.Float64),
    }
)


def _intervals(predictions: pl.DataFrame, *, n_resamples: int, seed: int) -> pl.DataFrame:
    """Score, standard error and interval per metric and column, text baseline included."""
    columns = predictions.partition_by("site", "layer", "control", maintain_order=True)
    first = columns[0]
    for column in columns:
        if not column["stimulus_id"].equals(first["stimulus_id"]):
            raise ResultsError(f"predictions of {column['site'][0]}.{column['layer'][0]} are for other stimuli")
    y, fold_of = first["label"].to_numpy(), first["fold"].to_numpy().astype(np.intp)
    group_of = np.unique(first["group"].to_numpy(), return_inverse=True)[1]
    probe = PROBES[first["probe"][0]]
    fixed_classes = probe.kind == "classes" and label_level(y, group_of) == "group"
    strata = y.astype(np.intp) if fixed_classes else np.zeros(len(y), dtype=np.intp)
    drawn = group_weights(group_of, strata, n_resamples=n_resamples, seed=seed)
    once = np.ones((1, len(y)))
    decisions = np.column_stack([column["decision"].to_numpy() for column in columns])
    counts = {"n_stimuli": len(y), "n_groups": int(group_of.max()) + 1, "n_folds": int(fold_of.max()) + 1}
    rows = []
    for metric, score in probe.scores.items():
        points = fold_scores(score, y, decisions, fold_of, once).mean(axis=0)[0]  # one undefined fold undoes the mean
        resampled = mean_of_defined(fold_scores(score, y, decisions, fold_of, drawn))
        for column, point, values in zip(columns, points, resampled.T, strict=True):
            names = column.select("target", "probe", "site", "layer", "control").row(0, named=True)
            rows.append(
                {**names, "metric": metric, **counts, **_spread(float(point), values), "chance": chance(metric, y)}
            )
    return pl.DataFrame(rows, schema_overrides={"layer": pl.Int32}, infer_schema_length=None)


def _spread(point: float, resampled: NDArray[np.float64]) -> dict[str, float]:
    """Put standard error and percentile interval beside the point; `resampled` has shape (n_resamples,)."""
    drawn = resampled[np.isfinite(resampled)]
    if not np.isfinite(point) or not len(drawn):
        return {"score": point, "se": np.nan, "low": np.nan, "high": np.nan}
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"score": point, "se": float(drawn.std(ddof=1)), "low": float(low), "high": float(high)}


def _shuffled_band(scores: pl.DataFrame) -> pl.DataFrame:
    """Mean and percentiles over shuffles of the mean over folds."""
    outer = scores.filter((pl.col("control") == "shuffled") & (pl.col("level") == "outer"))
    repeats = outer.group_by("metric", "site", "layer", "repeat", maintain_order=True).agg(pl.col("score").mean())
    score = pl.when(pl.col("score").is_nan().any()).then(float("nan")).otherwise(pl.col("score"))
    return repeats.group_by("metric", "site", "layer", maintain_order=True).agg(
        shuffled_mean=score.mean(),
        shuffled_low=score.quantile(0.025, "linear"),
        shuffled_high=score.quantile(0.975, "linear"),
        n_shuffles=pl.len().cast(pl.Int32),
    )


def _peak(part: pl.DataFrame) -> dict[str, Any]:
    """Row of one metric and site."""
    rows = part.sort("layer").to_dicts()
    best = max(rows, key=lambda row: (row["score"], -row["layer"]))
    plateau = [row["layer"] for row in rows if row is best or row["score"] >= best["score"] - best["se"]]
    return {
        **{name: best[name] for name in _PEAKS_SCHEMA if name in best},
        "peak_layer": best["layer"],
        "peak_relative_depth": best["relative_depth"],
        "plateau": layer_ranges(plateau, [row["layer"] for row in rows]),
        "plateau_first": plateau[0],
        "plateau_last": plateau[-1],
        "n_plateau": len(plateau),
    }


def layer_ranges(layers: list[int], swept: list[int]) -> str:
    """Write layers as ranges of neighbours among those swept: [3, 4, 5, 8] of 0..9 is "3-5, 8"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and swept.index(layer) == swept.index(runs[-1][-1]) + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
