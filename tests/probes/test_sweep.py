"""The sweep finds what is planted, keeps one set of folds, and names what is wrong."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stratoscope.probes import (
    ActivationsError,
    ConstantFeatureWarning,
    DesignError,
    GridEdgeWarning,
    ProbeError,
    SweepResult,
    sweep,
)
from stratoscope.probes.tables import PREDICTIONS_SCHEMA, SCORES_SCHEMA

N = 80
GROUPS = np.array([f"item{i // 2:02d}" for i in range(N)])
Y = np.array(["edible", "inedible"])[np.arange(N) // 2 % 2]
IDS = [f"s{i}" for i in range(N)]
TEXTS = [f"{'An' if i % 2 else 'The'} item{i // 2:02d}" for i in range(N)]
PLANTED = (3, 4, 5)


def _activations(strength: float = 2.5, n_layers: int = 8) -> dict[tuple[str, int | None], np.ndarray]:
    """Noise, with the label planted at layers 3 to 5."""
    rng = np.random.default_rng(0)
    direction, signs = rng.normal(size=40) / np.sqrt(40), np.where(Y == "inedible", 1, -1)
    columns: dict[tuple[str, int | None], np.ndarray] = {("embed", None): rng.normal(size=(N, 40))}
    for layer in range(n_layers):
        planted = strength * signs[:, None] * direction if layer in PLANTED else 0
        columns["resid_post", layer] = rng.normal(size=(N, 40)) + planted
    return {key: column.astype(np.float32) for key, column in columns.items()}


def _sweep(activations: Any = None, y: Any = Y, **changes: Any) -> SweepResult:
    settings: dict[str, Any] = {"groups": GROUPS, "ids": IDS, "texts": TEXTS, **changes}
    return sweep(_activations() if activations is None else activations, y, **settings)


def _means(result: SweepResult, control: str, metric: str = "balanced_accuracy") -> dict[int | None, float]:
    outer = result.scores.filter(pl.col("level") == "outer", control=control, metric=metric)
    means = outer.group_by("layer").agg(pl.col("score").mean())
    return dict(zip(means["layer"].to_list(), means["score"].to_list(), strict=True))


def test_a_planted_signal_is_found_where_it_is_and_nowhere_else() -> None:
    means = _means(_sweep(), "none")
    assert {layer for layer, score in means.items() if score > 0.75} == set(PLANTED)
    assert all(0.25 < score < 0.75 for layer, score in means.items() if layer not in PLANTED)


def test_shuffled_labels_find_nothing_at_the_planted_layers() -> None:
    means = _means(_sweep(n_shuffles=10), "shuffled")
    assert all(0.35 < means[layer] < 0.65 for layer in PLANTED)


def test_scores_and_predictions_equal_plain_scikit_learn_on_the_same_folds() -> None:
    activations = _activations()
    result = _sweep(activations)
    column = result.predictions.filter(pl.col("layer") == 4)
    fold_of, X = column["fold"].to_numpy(), activations["resid_post", 4].astype(np.float64)
    plain = make_pipeline(StandardScaler(), SVC(kernel="linear", C=1, tol=1e-6))
    expected = cross_val_predict(plain, X, Y == "inedible", cv=PredefinedSplit(fold_of))
    np.testing.assert_array_equal(column["prediction"].to_numpy() == 1, expected)
    recorded = result.scores.filter(layer=4, control="none", metric="balanced_accuracy").sort("fold")["score"]
    by_fold = [balanced_accuracy_score((Y == "inedible")[fold_of == f], expected[fold_of == f]) for f in range(5)]
    np.testing.assert_allclose(recorded.to_numpy(), by_fold, atol=1e-12)


def test_all_columns_and_controls_share_the_folds() -> None:
    predictions = _sweep().predictions
    assert predictions.select("site", "layer", "control").unique().height == 10
    assert predictions.group_by("stimulus_id").agg(pl.col("fold").n_unique())["fold"].unique().to_list() == [1]
    assert predictions.group_by("group").agg(pl.col("fold").n_unique())["fold"].unique().to_list() == [1]


def test_folds_can_be_replayed_from_an_array() -> None:
    made = _sweep()
    fold_of = made.predictions.filter(pl.col("layer") == 0)["fold"].to_numpy()
    replayed = _sweep(cv=fold_of, seed=0)
    assert replayed.scores.equals(made.scores)
    assert replayed.provenance["folds_sha256"] == made.provenance["folds_sha256"]


def test_the_tables_are_tidy_and_complete() -> None:
    result = _sweep(n_shuffles=3)
    assert result.scores.schema == SCORES_SCHEMA
    assert result.predictions.schema == PREDICTIONS_SCHEMA
    counts = result.scores.group_by("control").len().sort("control")
    per_column = 5 * 3  # folds, metrics
    assert counts.rows() == [("none", 9 * per_column), ("shuffled", 27 * per_column), ("text", per_column)]
    assert result.scores.filter(control="text").select("site", "layer").unique().rows() == [("text", None)]
    assert result.scores.filter(control="shuffled")["repeat"].unique().sort().to_list() == [0, 1, 2]
    assert result.scores["C"].unique().to_list() == [1.0]
    assert result.scores["alpha"].null_count() == len(result.scores)
    assert (result.scores["n_train"] + result.scores["n_test"]).unique().to_list() == [N]
    assert result.predictions.filter(pl.col("layer") == 2)["stimulus_id"].to_list() == IDS


def test_the_numbers_do_not_depend_on_the_number_of_threads() -> None:
    one, two = _sweep(n_jobs=1), _sweep(n_jobs=2)
    assert one.scores.equals(two.scores)
    assert one.predictions.equals(two.predictions)


def test_columns_are_read_once_each_and_progress_is_told() -> None:
    read: list[Any] = []

    class Lazy(dict[tuple[str, int | None], np.ndarray]):
        def __getitem__(self, key: tuple[str, int | None]) -> np.ndarray:
            read.append(key)
            return super().__getitem__(key)

    lazy, told = Lazy(_activations()), list[tuple[int, int]]()
    _sweep(lazy, progress=lambda done, total: told.append((done, total)))
    assert read == list(lazy)
    assert told == [(i + 1, 9) for i in range(9)]


def test_words_that_give_the_label_away_show_in_the_text_baseline() -> None:
    honest = _means(_sweep(), "text")[None]
    given_away = [f"{text} {label}" for text, label in zip(TEXTS, Y, strict=True)]
    assert _means(_sweep(texts=given_away), "text")[None] == 1.0
    assert honest < 0.7


def test_ridge_recovers_a_planted_value_and_reports_alpha_per_fold() -> None:
    rng, activations = np.random.default_rng(1), _activations(strength=0)
    values = rng.normal(size=N // 2).repeat(2)
    activations["resid_post", 4] += (values[:, None] * rng.normal(size=40)).astype(np.float32)
    with pytest.warns(GridEdgeWarning, match="upper edge"):  # the seven layers without signal
        result = _sweep(activations, values, probe="ridge", alpha=[1e-3, 1.0, 10.0, 100.0, 1e12], controls=())
    means = _means(result, "none", "r2")
    assert means[4] > 0.7
    assert all(score < 0.2 for layer, score in means.items() if layer != 4)
    at_peak = result.scores.filter(pl.col("layer") == 4)
    assert at_peak.filter(level="inner")["metric"].unique().to_list() == ["mse"]
    assert set(at_peak["alpha"]) <= {1.0, 10.0, 100.0}
    assert at_peak["C"].null_count() == len(at_peak)


def test_ridge_warns_by_name_when_alpha_sits_at_the_edge_of_its_grid() -> None:
    activations = {("resid_post", 0): _activations(0)["resid_post", 0]}
    values = np.random.default_rng(1).normal(size=N)
    with pytest.warns(GridEdgeWarning, match="target 'size': alpha sits at the upper edge"):
        _sweep(activations, values, probe="ridge", alpha=[1e-3, 1.0], target="size")


@pytest.mark.parametrize("probe", ["svm", "ridge"])
def test_a_wholly_constant_column_scores_chance_or_is_undefined(probe: str) -> None:
    constant = {("embed", None): np.full((N, 16), 0.1, dtype=np.float32)}
    labels = Y if probe == "svm" else np.arange(N) // 2 % 7
    with pytest.warns(ConstantFeatureWarning, match="1 of 1 columns hold features .* first embed with 16"):
        result = _sweep(constant, labels, probe=probe, alpha=1.0)
    scores = {m: _means(result, "none", m)[None] for m in result.scores.filter(level="outer")["metric"].unique()}
    if probe == "svm":
        assert scores["balanced_accuracy"] == scores["roc_auc"] == 0.5
    else:
        assert scores["r2"] <= 0
        assert np.isnan(scores["pearson"])
        assert np.isnan(scores["spearman"])


def test_labels_come_as_frames_arrays_and_mappings_and_columns_as_one_array() -> None:
    rng = np.random.default_rng(0)
    layers, values = rng.normal(size=(3, N, 12)), rng.normal(size=(N, 2))
    settings: dict[str, Any] = {"groups": GROUPS, "probe": "ridge", "alpha": 10.0, "controls": ()}
    by_array = sweep(layers, values, target=["a", "b"], **settings)
    for y in (pl.DataFrame({"a": values[:, 0], "b": values[:, 1]}), {"a": values[:, 0], "b": values[:, 1]}):
        assert sweep(layers, y, **settings).scores.equals(by_array.scores)
    by_mapping = sweep({("array", i): layer for i, layer in enumerate(layers)}, values, target=["a", "b"], **settings)
    assert by_mapping.predictions.equals(by_array.predictions)
    numbered = sweep(layers, values, target="size", **settings)
    assert numbered.scores["target"].unique().sort().to_list() == ["size_0", "size_1"]


def test_an_estimator_of_scikit_learn_is_fitted_as_it_is() -> None:
    activations = _activations()
    result = _sweep(activations, probe=LogisticRegression(C=0.01), controls=(), cv=4)
    column = result.predictions.filter(pl.col("layer") == 4)
    fold_of = column["fold"].to_numpy()
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    X = activations["resid_post", 4].astype(np.float64)
    expected = cross_val_predict(plain, X, Y == "inedible", cv=PredefinedSplit(fold_of), method="decision_function")
    np.testing.assert_allclose(column["decision"], expected, atol=1e-9)
    assert result.provenance["probe"] == "logisticregression"
    assert result.provenance["estimator"] == "LogisticRegression(C=0.01)"


def test_provenance_says_how_the_numbers_were_made() -> None:
    provenance = _sweep(target="edible", seed=7).provenance
    assert provenance["classes"] == ["edible", "inedible"]
    assert provenance["label_level"] == "group"
    assert (provenance["seed"], provenance["n_groups"], provenance["settings"]["C"]) == (7, N // 2, [1.0])
    assert len(provenance["folds_sha256"]) == 64
    assert provenance["versions"]["scikit-learn"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"probe": "tree"}, DesignError, "'tree' is unknown; choose one of svm, ridge"),
        ({"probe": ["svm", "ridge"]}, DesignError, "svm takes classes, ridge takes values"),
        ({"probe": ["svm", "svm"]}, DesignError, "each once"),
        ({"y": np.zeros(N)}, DesignError, "y holds the one class 0.0"),
        ({"y": np.linspace(0, 1, N)}, DesignError, "80 different values over 80 stimuli: these are no classes"),
        ({"y": {"a": Y, "b": Y[1:]}}, DesignError, "one label per stimulus"),
        ({"y": np.where(np.arange(N) == 5, np.nan, np.arange(N) % 2)}, DesignError, r"y\[5\] is nan"),
        ({"y": [None, *Y[1:]]}, DesignError, r"y\[0\] is None"),
        ({"probe": "ridge"}, DesignError, "takes numbers"),
        ({"groups": GROUPS[1:]}, DesignError, r"groups has shape \(79,\)"),
        ({"groups": [None, *GROUPS[1:]]}, DesignError, r"groups\[0\] is None"),
        ({"ids": ["s1", *IDS[1:]]}, DesignError, "'s1' is given more than once"),
        ({"ids": IDS[1:]}, DesignError, "ids has 79 entries"),
        ({"texts": TEXTS[1:]}, DesignError, "texts has 79 entries"),
        ({"texts": ["An apple"] * N}, DesignError, "'An apple' is in groups 'item00' and 'item01'"),
        ({"texts": None}, DesignError, 'control "text" needs texts='),
        ({"controls": ("shufled",)}, DesignError, "'shufled' is unknown"),
        ({"n_shuffles": 0}, DesignError, "n_shuffles=0; give at least 1"),
        ({"n_jobs": 0}, DesignError, "n_jobs=0"),
        ({"permutations": -1}, DesignError, "permutations=-1"),
        ({"controls": ("type",)}, DesignError, 'control "type" needs types='),
        ({"cv": np.arange(N) % 5}, DesignError, "a group must stay in one fold"),
        ({"cv": 41}, DesignError, "40 groups cannot fill 41 folds"),
        ({"activations": {}}, ActivationsError, "no columns"),
    ],
)
def test_what_cannot_be_probed_is_refused_by_name(
    changes: dict[str, Any], error: type[ProbeError], message: str
) -> None:
    _sweep()
    with pytest.raises(error, match=message):
        _sweep(**changes)


@pytest.mark.parametrize("key", ["resid_post.3", ("resid_post", 3, "last"), ("resid_post", "3")])
def test_a_key_that_is_no_site_and_layer_is_refused(key: Any) -> None:
    with pytest.raises(ActivationsError, match=r"expected \(site, layer\)"):
        _sweep({key: np.ones((N, 4), dtype=np.float32)})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.ones((N - 1, 4), dtype=np.float32), r"column mlp_out.3 has shape \(79, 4\); expected \(80, d_model\)"),
        ([np.ones((2, 4))] * N, "column mlp_out.3 is a list, not one array"),
        (np.ones((N, 4), dtype=np.uint16), "column mlp_out.3 has dtype uint16; widen raw bfloat16"),
        (np.where(np.eye(N, 4, k=-6), np.inf, 1.0), r"column mlp_out.3 holds NaN or infinity for stimulus 's6' \(4 of"),
    ],
)
def test_a_bad_column_is_refused_by_name(column: Any, message: str) -> None:
    with pytest.raises(ActivationsError, match=message):
        _sweep({("mlp_out", 3): column})
