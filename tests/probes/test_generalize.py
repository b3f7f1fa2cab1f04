"""Transfer between layers equals MNE's and plain scikit-learn, and finds where a code is shared."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from mne.decoding import GeneralizingEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stratoscope.probes import ActivationsError, DesignError, assign_folds, generalize, sweep

GROUPS = np.arange(80) // 2
N_LAYERS = 5
PROBES: dict[str, tuple[Any, dict[str, Any]]] = {
    "svm": (SVC(kernel="linear", tol=1e-6), {}),
    "ridge_classifier": (RidgeClassifier(alpha=20.0), {"alpha": 20.0}),
    "lda": (LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3), {"shrinkage": 0.3}),
    "ridge": (Ridge(20.0), {"alpha": 20.0}),
}


def _layers(d_model: int, y: np.ndarray, n_stimuli: int = 80) -> np.ndarray:
    """Layers 0 and 1 share one code of the label, 3 and 4 another; 2 holds none."""
    rng = np.random.default_rng(0)
    layers = rng.normal(size=(N_LAYERS, n_stimuli, d_model)) * rng.uniform(0.5, 3, (N_LAYERS, 1, d_model)) + 1
    codes = rng.normal(size=(2, d_model))
    code = (y - y.mean()) / y.std()
    for layer, which in ((0, 0), (1, 0), (3, 1), (4, 1)):
        layers[layer] += code[:, None] * codes[which]
    return layers.astype(np.float32)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("d_model", [150, 20])
@pytest.mark.parametrize("probe", PROBES)
def test_every_cell_equals_mnes_generalizing_estimator(probe: str, d_model: int, scale: bool) -> None:
    y = np.random.default_rng(1).permutation(np.arange(40) % 2)[GROUPS].astype(float)
    if probe == "ridge":
        y = y + np.random.default_rng(2).normal(size=80)
    layers = _layers(d_model, y)
    fold_of = assign_folds(y, GROUPS, n_folds=4, kind="values" if probe == "ridge" else "classes")
    estimator, settings = PROBES[probe]
    ours = generalize(layers, y, groups=GROUPS, probe=probe, cv=fold_of, scale=scale, **settings)
    metric, score = ("r2", r2_score) if probe == "ridge" else ("balanced_accuracy", balanced_accuracy_score)
    for fold in range(4):
        pipeline = make_pipeline(StandardScaler(with_std=scale), estimator)
        theirs = GeneralizingEstimator(pipeline, verbose="error")
        X = layers.transpose(1, 2, 0).astype(np.float64)  # stimuli, features, layers
        predicted = theirs.fit(X[fold_of != fold], y[fold_of != fold]).predict(X[fold_of == fold])
        cells = ours.filter(metric=metric, fold=fold).sort("train_layer", "test_layer")
        expected = [[score(y[fold_of == fold], predicted[:, i, j]) for j in range(N_LAYERS)] for i in range(N_LAYERS)]
        np.testing.assert_allclose(cells["score"].to_numpy().reshape(N_LAYERS, N_LAYERS), expected, atol=1e-6)


def test_transfer_shows_which_layers_share_a_code() -> None:
    y = np.random.default_rng(1).permutation(np.arange(40) % 2)[GROUPS]
    cells = generalize(_layers(60, y), y, groups=GROUPS, probe="ridge_classifier", alpha=10.0)
    means = cells.filter(metric="roc_auc").group_by("train_layer", "test_layer").agg(pl.col("score").mean())
    table = {(row["train_layer"], row["test_layer"]): row["score"] for row in means.to_dicts()}
    assert len(table) == N_LAYERS**2
    same = {(0, 1), (1, 0), (3, 4), (4, 3), (0, 0), (1, 1), (3, 3), (4, 4)}
    assert all(table[pair] > 0.95 for pair in same)
    assert all(score < 0.85 for pair, score in table.items() if pair not in same)


@pytest.mark.parametrize("probe", ["ridge_classifier", "logistic", "lda"])
def test_a_column_tested_on_itself_scores_as_in_a_sweep_with_three_classes_and_two_targets(probe: str) -> None:
    rng = np.random.default_rng(3)
    y = {"three": rng.permutation(np.arange(80) % 3), "two": rng.permutation(np.arange(80) % 2)}
    layers = _layers(30, y["three"].astype(float))
    settings: dict[str, Any] = {"groups": np.arange(80), "probe": probe, "alpha": 5.0, "shrinkage": 0.2, "cv": 4}
    cells = generalize(layers, y, **settings).filter(pl.col("train_layer") == pl.col("test_layer"))
    swept = sweep(layers, y, controls=(), **settings).scores
    joined = cells.join(
        swept, left_on=["target", "metric", "train_layer", "fold"], right_on=["target", "metric", "layer", "fold"]
    )
    assert joined.height == 2 * 3 * N_LAYERS * 4
    np.testing.assert_allclose(joined["score"], joined["score_right"], atol=1e-9)


def test_what_has_no_weights_to_take_along_is_refused() -> None:
    y = np.arange(80) % 3
    with pytest.raises(DesignError, match=r"'svm' has no weights .* 3 classes"):
        generalize(_layers(10, y.astype(float)), y, groups=np.arange(80), probe="svm")


def test_columns_of_different_width_are_refused_by_name() -> None:
    y = np.arange(80) % 2
    columns = {("resid_post", 0): np.ones((80, 4)), ("heads", 0): np.ones((80, 6))}
    columns["resid_post", 0] = np.random.default_rng(0).normal(size=(80, 4))
    with pytest.raises(ActivationsError, match=r"heads\.0 is 6 wide and others 4"):
        generalize(columns, y, groups=np.arange(80), probe="ridge_classifier")
