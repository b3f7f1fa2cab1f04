"""Layer curves and peaks, from the tables of a sweep.

What the intervals cover. `low` and `high` are the 2.5th and 97.5th percentiles of the score over resamples of the
groups (items), the probes and folds held as they were fitted. They say how far the score would move had other items of
the same kind been held out. They do not cover refitting on other training items, another division into folds, another
seed, or another model. Where every held-out stimulus is right there is nothing to resample, and the interval has no
width: at the ceiling it says little.

The interval at a peak is that of the layer which happens to be the peak: nothing corrects for having picked the best of
many layers, so a peak score is biased upwards and its interval too optimistic. Where the peak *is* says `peak_set`, a
confidence set of layers (`peaks.confidence_set`). Layers share stimuli and folds, so their intervals move together:
overlap of two of them is no test of their difference. Formulas and sources: ``docs/statistics.md``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.probes.baselines import label_level
from stratoscope.probes.bootstrap import fold_scores, group_weights, mean_of_defined
from stratoscope.probes.errors import DesignError, ResultsError
from stratoscope.probes.labels import Kind
from stratoscope.probes.peaks import Draws, layer_peaks
from stratoscope.probes.scoring import SCORES, Held, chance
from stratoscope.probes.significance import significance
from stratoscope.probes.sweep import SweepResult


class Summary(NamedTuple):
    """A sweep in two tables.

    curves : one row per metric and column: ``target, probe, metric, site, layer, relative_depth, n_layers, n_stimuli,
        n_groups, n_folds, score`` (mean over outer folds), ``se, low, high`` (bootstrap over groups, ``n_resamples``),
        ``shuffled_mean, shuffled_low, shuffled_high`` (mean, 2.5th and 97.5th percentile over ``n_shuffles`` shuffles),
        ``text_score, text_low, text_high`` (text-only baseline), ``embed_score`` (the embedding layer), ``type_mean``
        and ``selectivity`` (score on the type-consistent control task, and what the real score has over it), ``p,
        p_corrected, threshold, null_mean, n_permutations`` (see `significance`) and ``chance``
    peaks : one row per metric and site that has layers: ``peak_layer, peak_relative_depth, score, se, low, high``, the
        95% confidence set of the peak's layer (``peak_set``, such as "3-5, 8", from ``peak_first`` to ``peak_last``),
        the plateau of layers within one standard error of it (``plateau, plateau_first, plateau_last, n_plateau``), the
        first decodable layer by change point with its 95% interval (``onset_layer, onset_first, onset_last``, null
        where the peak is not above chance) and the controls at the peak
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
    if n_resamples < 100:
        raise DesignError(f"n_resamples={n_resamples}: at least 100 are needed for a 95% percentile interval")
    deepest = result.scores["layer"].max()
    if isinstance(deepest, int) and deepest >= n_layers:
        raise DesignError(f"n_layers={n_layers}, but the scores hold layer {deepest}; give the model's n_layers")
    parts = [_summarise_one(one, n_layers, n_resamples, seed) for one in result.split()]
    return Summary(pl.concat([part.curves for part in parts]), pl.concat([part.peaks for part in parts]))


def _summarise_one(result: SweepResult, n_layers: int, n_resamples: int, seed: int) -> Summary:
    """Summarise one target under one probe."""
    intervals, draws = _intervals(result.predictions, result.provenance["kind"], n_resamples=n_resamples, seed=seed)
    on = ["metric", "site", "layer"]
    curves = intervals.filter(pl.col("control") == "none").drop("control")
    text = intervals.filter(pl.col("control") == "text").select(
        "metric", text_score="score", text_low="low", text_high="high"
    )
    embed = curves.filter(pl.col("site") == "embed").select("metric", embed_score="score")
    depth = pl.col("layer") / max(n_layers - 1, 1)
    counts = {"n_layers": n_layers, "n_resamples": n_resamples}
    curves = (
        curves.join(_shuffled_band(result.scores), on=on, how="left", nulls_equal=True, maintain_order="left")
        .join(_type_means(result.scores), on=on, how="left", nulls_equal=True, maintain_order="left")
        .join(_tests(result), on=on, how="left", nulls_equal=True, maintain_order="left")
        .join(text, on="metric", how="left", maintain_order="left")
        .join(embed, on="metric", how="left", maintain_order="left")
        .with_columns(
            relative_depth=depth,
            selectivity=pl.col("score") - pl.col("type_mean"),
            **{name: pl.lit(n, pl.Int32) for name, n in counts.items()},
        )
        .select(_CURVE_COLUMNS)
    )
    return Summary(curves, layer_peaks(curves, draws))


_CURVE_COLUMNS = [
    *("target", "probe", "metric", "site", "layer", "relative_depth", "n_layers", "n_stimuli", "n_groups", "n_folds"),
    *("score", "se", "low", "high", "n_resamples", "shuffled_mean", "shuffled_low", "shuffled_high", "n_shuffles"),
    *("text_score", "text_low", "text_high", "embed_score", "type_mean", "selectivity"),
    *("p", "p_corrected", "threshold", "null_mean", "n_permutations", "chance"),
]

_TESTS = {"p": pl.Float64, "p_corrected": pl.Float64, "threshold": pl.Float64, "null_mean": pl.Float64}


def _intervals(predictions: pl.DataFrame, kind: Kind, *, n_resamples: int, seed: int) -> tuple[pl.DataFrame, Draws]:
    """Score, standard error and interval per metric and column, text baseline included; and the resampled curves."""
    columns = predictions.partition_by("site", "layer", "control", maintain_order=True)
    first = columns[0]
    for column in columns:
        if not column["stimulus_id"].equals(first["stimulus_id"]):
            raise ResultsError(f"predictions of {column['site'][0]}.{column['layer'][0]} are for other stimuli")
    n_outputs = first["class"].n_unique()
    once = slice(None, None, n_outputs)
    y, fold_of = first["label"].to_numpy()[once], first["fold"].to_numpy()[once].astype(np.intp)
    group_of = np.unique(first["group"].to_numpy()[once], return_inverse=True)[1]
    fixed_classes = kind == "classes" and label_level(y, group_of) == "group"
    strata = y.astype(np.intp) if fixed_classes else np.zeros(len(y), dtype=np.intp)
    weights = group_weights(group_of, strata, n_resamples=n_resamples, seed=seed)
    predicted = np.column_stack([column["prediction"].to_numpy()[once] for column in columns])
    decision = np.stack([column["decision"].to_numpy().reshape(-1, n_outputs) for column in columns], axis=1)
    held = Held(np.broadcast_to(y[:, None], predicted.shape), predicted, decision)
    counts = {"n_stimuli": len(y), "n_groups": int(group_of.max()) + 1, "n_folds": int(fold_of.max()) + 1}
    names = [column.select("target", "probe", "site", "layer", "control").row(0, named=True) for column in columns]
    rows, draws = [], {}
    for metric, score in SCORES[kind].items():
        points = fold_scores(score, held, fold_of, None).mean(axis=0)[0]  # one undefined fold undoes the mean
        resampled = mean_of_defined(fold_scores(score, held, fold_of, weights))
        for name, point, values in zip(names, points, resampled.T, strict=True):
            rows.append(
                {**name, "metric": metric, **counts, **_spread(float(point), values), "chance": chance(metric, y)}
            )
        draws.update({(metric, site): resampled[:, at] for site, at in _layered(names, points).items()})
    return pl.DataFrame(rows, schema_overrides={"layer": pl.Int32}, infer_schema_length=None), draws


def _layered(names: list[dict[str, Any]], points: NDArray[np.float64]) -> dict[str, list[int]]:
    """Positions of each site's layers with a defined score, layers ascending."""
    found: dict[str, list[int]] = {}
    for at in sorted(range(len(names)), key=lambda at: names[at]["layer"] or 0):
        if names[at]["layer"] is not None and np.isfinite(points[at]):
            found.setdefault(names[at]["site"], []).append(at)
    return found


def _tests(result: SweepResult) -> pl.DataFrame:
    """Permutation tests per metric and column; empty where there were no permutations."""
    schema = {"metric": pl.String, "site": pl.String, "layer": pl.Int32, **_TESTS, "n_permutations": pl.Int32}
    if result.null.is_empty():
        return pl.DataFrame(schema=schema)
    return significance(result).select(list(schema))


def _type_means(scores: pl.DataFrame) -> pl.DataFrame:
    """Mean over draws and folds of the score on the type-consistent control task."""
    outer = scores.filter((pl.col("control") == "type") & (pl.col("level") == "outer"))
    return outer.group_by("metric", "site", "layer", maintain_order=True).agg(type_mean=pl.col("score").mean())


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
