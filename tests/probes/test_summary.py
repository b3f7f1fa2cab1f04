"""Curves carry the right numbers; intervals cover what they say; peaks are the planted ones."""

from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest

from stratoscope.probes import ConstantFeatureWarning, DesignError, SweepResult, summarise, sweep
from stratoscope.probes.bootstrap import group_weights
from stratoscope.probes.peaks import layer_peaks, layer_ranges

N_LAYERS = 10


@cache
def _result(strength: float = 1.2, n: int = 120, **changes: Any) -> SweepResult:
    rng = np.random.default_rng(0)
    y, groups = np.arange(n) // 2 % 2, np.arange(n) // 2
    direction = rng.normal(size=30) / np.sqrt(30)
    activations: dict[tuple[str, int | None], np.ndarray] = {("embed", None): rng.normal(size=(n, 30))}
    for layer in range(N_LAYERS):
        planted = strength * (2 * y - 1)[:, None] * direction if layer in (3, 4, 5) else 0
        activations["resid_post", layer] = rng.normal(size=(n, 30)) + planted
    texts = [f"w{group} {row % 2}" for row, group in enumerate(groups)]
    return sweep(activations, y, groups=groups, texts=texts, target="planted", **changes)


def test_curve_scores_equal_the_mean_over_outer_folds() -> None:
    result = _result()
    curves = summarise(result, n_layers=N_LAYERS).curves
    outer = result.scores.filter(level="outer", control="none")
    means = outer.group_by("metric", "site", "layer", maintain_order=True).agg(pl.col("score").mean())
    assert curves.height == means.height == 3 * 11
    joined = curves.join(means, on=["metric", "site", "layer"], nulls_equal=True, suffix="_scores")
    assert joined.height == curves.height
    np.testing.assert_allclose(joined["score"], joined["score_scores"], atol=1e-12)


def test_the_planted_layers_are_peak_and_plateau_and_beat_every_control() -> None:
    summary = summarise(_result(), n_layers=N_LAYERS)
    peak = summary.peaks.row(by_predicate=pl.col("metric") == "balanced_accuracy", named=True)
    assert peak["peak_layer"] in (3, 4, 5)
    assert {peak["plateau_first"], peak["plateau_last"]} <= {3, 4, 5}
    assert peak["low"] > max(peak["shuffled_high"], peak["text_score"], peak["chance"])
    assert peak["peak_relative_depth"] == peak["peak_layer"] / (N_LAYERS - 1)


def test_a_null_stays_near_its_shuffled_band() -> None:
    nulls = []
    for study in range(4):
        rng, y, groups = np.random.default_rng(study), np.arange(48) // 2 % 2, np.arange(48) // 2
        columns: dict[tuple[str, int | None], np.ndarray] = {
            ("mlp_out", i): rng.normal(size=(48, 10)) for i in range(5)
        }
        result = sweep(columns, y, groups=groups, controls=("shuffled",), n_shuffles=16, seed=study)
        nulls.append(summarise(result, n_layers=5, n_resamples=100).curves.filter(metric="balanced_accuracy"))
    null = pl.concat(nulls)
    inside = null.filter(pl.col("score").is_between("shuffled_low", "shuffled_high"))
    assert null.height == 20
    assert inside.height >= 16
    np.testing.assert_allclose(null.select(pl.col("score", "shuffled_mean").mean()).row(0), 0.5, atol=0.05)


def test_intervals_hold_their_score_and_repeat_with_the_seed() -> None:
    result = _result()
    first, again = (summarise(result, n_layers=N_LAYERS, seed=1).curves for _ in range(2))
    assert first.equals(again)
    assert first.filter(pl.col("score").is_between("low", "high")).height == first.height
    assert not first.equals(summarise(result, n_layers=N_LAYERS, seed=2).curves)


def test_resampling_draws_whole_groups_and_keeps_the_number_per_class() -> None:
    group_of = np.repeat(np.arange(12), 3)
    stratum_of = (group_of < 8).astype(np.intp)
    weights = group_weights(group_of, stratum_of, n_resamples=200, seed=0)
    per_group = weights.reshape(200, 12, 3)
    assert (per_group == per_group[:, :, :1]).all()
    np.testing.assert_array_equal(per_group[:, :8, 0].sum(axis=1), 8)
    np.testing.assert_array_equal(per_group[:, 8:, 0].sum(axis=1), 4)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.25)


def _balanced_accuracy(y: np.ndarray, decision: np.ndarray) -> float:
    """NaN where a class is missing."""
    right = (decision >= 0) == (y == 1)
    return float(np.mean([right[y == c].mean() if (y == c).any() else np.nan for c in (0, 1)]))


def test_the_standard_error_equals_an_explicit_bootstrap_over_groups() -> None:
    result = _result()
    column = result.predictions.filter(site="resid_post").filter(pl.col("layer") == 4)
    y, decision, fold_of = (column[name].to_numpy() for name in ("label", "decision", "fold"))
    groups = column["group"].to_numpy()
    rng, drawn = np.random.default_rng(0), []
    by_class = [np.unique(groups[y == label]) for label in (0, 1)]
    rows_of = {group: np.flatnonzero(groups == group) for group in np.unique(groups)}
    for _ in range(1500):
        picked = [g for names in by_class for g in rng.choice(names, len(names))]
        rows = np.concatenate([rows_of[group] for group in picked])
        in_folds = [rows[fold_of[rows] == fold] for fold in range(5)]
        folds = [_balanced_accuracy(y[r], decision[r]) for r in in_folds]
        drawn.append(np.nanmean(folds))
    ours = summarise(result, n_layers=N_LAYERS).curves.filter(metric="balanced_accuracy").filter(pl.col("layer") == 4)
    assert ours["se"][0] > 0.01
    assert ours["se"][0] == pytest.approx(np.std(drawn), rel=0.1)
    np.testing.assert_allclose(ours.select("low", "high").row(0), np.quantile(drawn, [0.025, 0.975]), atol=0.015)


def test_the_interval_covers_the_expected_score_about_as_often_as_it_says() -> None:
    direction = np.random.default_rng(99).normal(size=5) / np.sqrt(5)
    scores, intervals = [], []
    for study in range(60):
        rng = np.random.default_rng(study)
        groups = np.arange(60)
        y = groups % 2
        X = rng.normal(size=(60, 5)) + 0.8 * (2 * y - 1)[:, None] * direction
        result = sweep({("resid_post", 0): X}, y, groups=groups, controls=())
        curve = summarise(result, n_layers=1, n_resamples=300).curves.filter(metric="balanced_accuracy")
        scores.append(curve["score"][0])
        intervals.append(curve.select("low", "high").row(0))
    expected = np.mean(scores)
    assert 0.6 < expected < 0.9, "neither chance nor ceiling"
    covered = np.mean([low <= expected <= high for low, high in intervals])
    assert 0.85 <= covered <= 0.99


def test_a_label_within_groups_is_resampled_without_strata() -> None:
    rng = np.random.default_rng(0)
    y, groups = np.tile([0, 1], 40), np.arange(80) // 4
    result = sweep({("resid_post", 0): rng.normal(size=(80, 10))}, y, groups=groups, controls=("shuffled",))
    assert result.provenance["label_level"] == "within"
    curve = summarise(result, n_layers=1).curves.filter(metric="roc_auc").row(0, named=True)
    assert curve["low"] < curve["score"] < curve["high"]
    assert curve["text_score"] is None


def test_an_undefined_score_never_peaks_and_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=60)
    columns: dict[tuple[str, int | None], np.ndarray] = {
        ("resid_post", 0): np.full((60, 8), 0.1),
        ("resid_post", 1): rng.normal(size=(60, 8)),
    }
    with pytest.warns(ConstantFeatureWarning):
        result = sweep(columns, values, groups=np.arange(60), probe="ridge", alpha=10.0, controls=("shuffled",))
    summary = summarise(result, n_layers=2)
    undefined = summary.curves.filter(metric="pearson").filter(pl.col("layer") == 0).row(0, named=True)
    assert all(np.isnan(undefined[name]) for name in ("score", "se", "low", "high", "shuffled_mean", "shuffled_high"))
    assert summary.peaks.filter(metric="pearson")["peak_layer"].to_list() == [1]


def test_relative_depth_counts_the_layers_of_the_model_and_not_those_swept() -> None:
    result = _result()
    curves = summarise(result, n_layers=80).curves
    assert curves.filter(pl.col("layer") == 4)["relative_depth"].unique().to_list() == [4 / 79]
    assert curves.filter(pl.col("layer").is_null())["relative_depth"].unique().to_list() == [None]
    with pytest.raises(DesignError, match="n_layers=9, but the scores hold layer 9"):
        summarise(result, n_layers=9)


def test_the_embedding_layer_stands_beside_every_layer_as_a_baseline() -> None:
    curves = summarise(_result(), n_layers=N_LAYERS).curves
    embed = curves.filter(site="embed").select("metric", "score")
    joined = curves.join(embed, on="metric", suffix="_of_embed")
    assert joined["embed_score"].equals(joined["score_of_embed"])


def test_a_peak_comes_with_its_set_its_onset_and_its_p_value() -> None:
    peak = summarise(_result(permutations=200), n_layers=N_LAYERS).peaks.filter(metric="roc_auc").row(0, named=True)
    assert {peak["peak_first"], peak["peak_layer"], peak["peak_last"]} <= {3, 4, 5}
    assert peak["onset_layer"] == 3
    assert peak["onset_first"] <= 3 <= peak["onset_last"]
    assert peak["p_corrected"] == pytest.approx(1 / 201)
    assert peak["score"] > peak["threshold"]


def test_a_summary_of_several_targets_is_those_of_each_below_each_other() -> None:
    rng = np.random.default_rng(0)
    y = {"a": np.arange(60) % 2, "b": rng.permutation(np.arange(60) % 3)}
    columns = {("resid_post", layer): rng.normal(size=(60, 8)) for layer in range(3)}
    result = sweep(
        columns, y, groups=np.arange(60), probe=["ridge_classifier", "lda"], alpha=1.0, shrinkage=0.5, controls=()
    )
    summary = summarise(result, n_layers=3)
    alone = [summarise(part, n_layers=3) for part in result.split()]
    assert summary.curves.equals(pl.concat([one.curves for one in alone]))
    assert summary.peaks.equals(pl.concat([one.peaks for one in alone]))
    assert summary.curves.filter(target="b", metric="balanced_accuracy")["chance"].unique().to_list() == [1 / 3]


def test_whole_model_sites_have_curve_rows_and_no_peak() -> None:
    summary = summarise(_result(), n_layers=N_LAYERS)
    assert "embed" in summary.curves["site"].to_list()
    assert summary.peaks["site"].unique().to_list() == ["resid_post"]


def test_the_first_of_two_equal_peaks_is_taken_and_the_plateau_lists_both() -> None:
    curves = summarise(_result(), n_layers=N_LAYERS).curves.filter(metric="accuracy", site="resid_post")
    scores = [0.5, 0.9, 0.5, 0.9, 0.89, *[0.5] * 5]
    draws = {("accuracy", "resid_post"): np.array(scores) + np.random.default_rng(0).normal(0, 0.02, (200, 10))}
    tied = layer_peaks(curves.with_columns(score=pl.Series(scores), se=pl.lit(0.02)), draws).row(0, named=True)
    assert (tied["peak_layer"], tied["plateau"], tied["n_plateau"]) == (1, "1, 3-4", 3)


def test_layers_are_written_as_ranges_of_neighbours_among_those_swept() -> None:
    assert layer_ranges([3, 4, 5, 8], list(range(10))) == "3-5, 8"
    assert layer_ranges([4, 8, 16], [0, 4, 8, 12, 16]) == "4-8, 16"
