"""Permutation p-values equal a naive loop, and the peak's set and onset do what their formulas say."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stratoscope.probes import DesignError, GridEdgeWarning, PermutationWarning, SweepResult, significance, sweep
from stratoscope.probes.baselines import permute_labels
from stratoscope.probes.peaks import change_points, confidence_set
from stratoscope.probes.significance import threshold

GROUPS = np.arange(60) // 2


def _layers(strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.normal(size=30)[GROUPS]
    layers = rng.normal(size=(4, 60, 25))
    layers[2] += strength * y[:, None] * rng.normal(size=25) / 2
    return layers, y


def _result(permutations: int = 150, **changes: Any) -> SweepResult:
    layers, y = _layers()
    return sweep(layers, y, groups=GROUPS, probe="ridge", alpha=5.0, controls=(), permutations=permutations, **changes)


def test_the_null_and_the_p_values_equal_a_naive_loop_over_scikit_learn() -> None:
    layers, y = _layers()
    result = _result()
    fold_of = result.predictions.filter(layer=0)["fold"].to_numpy()
    group_of = np.unique(GROUPS.astype(str), return_inverse=True)[1]
    drawn = permute_labels(y, group_of, fold_of, n_draws=150, seed=0)

    def score(X: np.ndarray, labels: np.ndarray) -> float:
        plain = make_pipeline(StandardScaler(), Ridge(5.0))
        predicted = cross_val_predict(plain, X, labels, cv=PredefinedSplit(fold_of))
        return float(np.mean([r2_score(labels[fold_of == f], predicted[fold_of == f]) for f in range(5)]))

    null = np.array([[score(X, labels) for labels in drawn.T] for X in layers])
    ours = result.null.filter(metric="r2").sort("layer", "permutation")["score"].to_numpy().reshape(4, 150)
    np.testing.assert_allclose(ours, null, atol=1e-9)
    observed = np.array([score(X, y) for X in layers])
    table = significance(result).filter(metric="r2").sort("layer")
    np.testing.assert_allclose(table["score"], observed, atol=1e-9)
    np.testing.assert_allclose(table["p"], (1 + (null >= observed[:, None]).sum(axis=1)) / 151)
    best = null.max(axis=0)
    np.testing.assert_allclose(table["p_corrected"], (1 + (best >= observed[:, None]).sum(axis=1)) / 151)
    assert table["p_corrected"].to_list()[2] <= 0.05 < table["p_corrected"].to_list()[0]
    assert (table["p_corrected"] >= table["p"]).all()


@settings(max_examples=100, deadline=None)
@given(best=st.lists(st.integers(0, 30), min_size=5, max_size=200), observed=st.integers(-1, 31))
def test_a_score_above_the_threshold_is_one_whose_corrected_p_is_at_most_the_level(
    best: list[int], observed: int
) -> None:
    values = np.array(best, dtype=float)
    p = (1 + (values >= observed).sum()) / (1 + len(values))
    assert (observed > threshold(values, 0.05)) == (p <= 0.05)


def test_hyper_parameters_are_chosen_anew_for_every_permutation() -> None:
    layers, y = _layers()
    alphas = [0.1, 10.0, 1e7]
    with pytest.warns(GridEdgeWarning):
        result = sweep(layers[:1], y, groups=GROUPS, probe="ridge", alpha=alphas, controls=(), permutations=100)
    fixed = [
        sweep(layers[:1], y, groups=GROUPS, probe="ridge", alpha=alpha, controls=(), permutations=100).null["score"]
        for alpha in (10.0, 1e7)
    ]
    assert all(not result.null["score"].equals(one) for one in fixed)


def test_without_permutations_there_is_no_test_and_few_draw_a_warning() -> None:
    with pytest.raises(DesignError, match="had no permutations"):
        significance(_result(permutations=0))
    with pytest.warns(PermutationWarning, match=r"multiples of 1/20"):
        table = significance(_result(permutations=19))
    assert table["threshold"].is_finite().all()
    with pytest.warns(PermutationWarning):
        assert significance(_result(permutations=10))["threshold"].is_infinite().all()


def test_a_layer_far_above_all_others_is_alone_in_its_set_and_equal_layers_are_all_in_it() -> None:
    rng = np.random.default_rng(0)
    scores = np.array([0.5, 0.6, 0.95, 0.6])
    assert confidence_set(scores, scores + 0.02 * rng.normal(size=(500, 4))).tolist() == [False, False, True, False]
    equal = np.full(4, 0.7)
    assert confidence_set(equal, equal + 0.02 * rng.normal(size=(500, 4))).all()


def test_layers_that_move_together_are_told_apart_more_finely() -> None:
    rng = np.random.default_rng(0)
    scores = np.array([0.70, 0.73])
    common, own = rng.normal(size=(500, 1)), rng.normal(size=(500, 2))
    assert confidence_set(scores, scores + 0.03 * own).all()
    assert confidence_set(scores, scores + 0.03 * common + 0.003 * own).tolist() == [False, True]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n_layers=st.integers(1, 12))
def test_the_best_layer_is_always_in_the_set(seed: int, n_layers: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.uniform(size=n_layers), 1)
    drawn = np.round(scores + rng.choice([0.0, 0.1]) * rng.normal(size=(100, n_layers)), 2)
    kept = confidence_set(scores, drawn)
    assert kept[scores.argmax()]
    assert not kept[scores < scores.max() - 1].any()


def test_the_change_point_is_the_step_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    curves = 0.5 + 0.2 * (np.arange(9) >= 4) + 0.05 * rng.normal(size=(40, 9))

    def squares(curve: np.ndarray, start: int) -> float:
        level = max(curve[start:].mean(), 0.5)
        return float(((curve[:start] - 0.5) ** 2).sum() + ((curve[start:] - level) ** 2).sum())

    expected = [int(np.argmin([squares(curve, start) for start in range(9)])) for curve in curves]
    assert change_points(curves, 0.5).tolist() == expected
    assert len(set(expected)) > 1
    assert change_points(np.full((1, 5), 0.9), 0.5).tolist() == [0]


def test_a_family_is_all_columns_of_one_target_probe_and_metric() -> None:
    layers, y = _layers()
    columns = {("resid_post", 0): layers[2], ("mlp_out", 0): layers[0]}
    settings: dict[str, Any] = {"groups": GROUPS, "probe": "ridge", "alpha": 5.0, "controls": (), "permutations": 150}
    both = significance(sweep(columns, {"a": y, "b": y**2}, **settings))
    assert both.select("target", "metric").unique().height == 6
    assert both.group_by("target", "metric").agg(pl.col("threshold").n_unique())["threshold"].unique().to_list() == [1]
    one = significance(sweep({("mlp_out", 0): layers[0]}, y, **settings)).filter(metric="r2")
    of_two = both.filter(target="a", metric="r2", site="mlp_out")
    assert of_two["p"][0] == one["p"][0] == one["p_corrected"][0]
    assert of_two["p_corrected"][0] >= one["p_corrected"][0]
