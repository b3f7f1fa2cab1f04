"""What the statistics promise, held by simulation: error rates under the null, coverage of planted peaks and onsets."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from stratoscope.probes import (
    DesignError,
    GridEdgeWarning,
    SweepResult,
    assign_folds,
    significance,
    summarise,
    sweep,
)

Design = tuple[np.ndarray, np.ndarray]
"""Labels and groups."""


def _layers(rng: np.random.Generator, groups: np.ndarray, n_layers: int, d_model: int, memory: float) -> np.ndarray:
    """Noise, (n_layers, n_stimuli, d_model), alike within groups and from layer to layer as a residual stream is."""
    shape = (n_layers, len(groups), d_model)
    noise = rng.normal(size=shape) + rng.normal(size=(n_layers, groups.max() + 1, d_model))[:, groups]
    for layer in range(1, n_layers):
        noise[layer] = memory * noise[layer - 1] + np.sqrt(1 - memory**2) * noise[layer]
    return np.asarray(noise / np.sqrt(2))


def _sweep(layers: np.ndarray, design: Design, **settings: Any) -> SweepResult:
    columns = {("resid_post", layer): column for layer, column in enumerate(layers)}
    y, groups = design
    return sweep(columns, y, groups=groups, **{"controls": (), "alpha": 10.0, **settings})


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads."""
    with threadpool_limits(limits=1):
        yield


# --- the null ---


def _items(rng: np.random.Generator) -> Design:
    """A property of items, two texts each."""
    groups = np.arange(120) // 2
    return rng.permutation(np.arange(60) % 2)[groups], groups


def _uneven(rng: np.random.Generator) -> Design:
    """A property of items with one to three texts each, less common in one class."""
    groups = np.repeat(np.arange(72), np.tile([1, 2, 3], 24))
    return (rng.permutation(72) < 28).astype(int)[groups], groups


def _blocks(rng: np.random.Generator) -> Design:
    """Blocks of four texts, two related and two re-paired."""
    groups = np.arange(120) // 4
    return np.concatenate([rng.permutation([0, 0, 1, 1]) for _ in range(30)]), groups


def _graded(rng: np.random.Generator) -> Design:
    """Ratings of pairs in blocks of two, alike within a block."""
    groups = np.arange(60) // 2
    return rng.normal(size=30)[groups] + 0.7 * rng.normal(size=60), groups


NULLS: dict[str, tuple[Callable[[np.random.Generator], Design], dict[str, Any], int]] = {
    "items": (_items, {"probe": "ridge_classifier"}, 150),
    "items, alpha chosen": (_items, {"probe": "ridge_classifier", "alpha": [1.0, 100.0], "inner_folds": 3}, 150),
    "uneven groups": (_uneven, {"probe": "ridge_classifier"}, 150),
    "blocks": (_blocks, {"probe": "ridge_classifier"}, 150),
    "graded pairs": (_graded, {"probe": "ridge"}, 600),
}
"""How labels are drawn, how they are probed, and the number of experiments."""


@pytest.fixture(scope="module")
def null_p_values() -> pl.DataFrame:
    """Smallest p-values over the layers of every experiment without signal, corrected and not."""
    rows = []
    for number, (name, (draw, settings, n_studies)) in enumerate(NULLS.items()):
        for study in range(n_studies):
            rng = np.random.default_rng([number, study])
            design = draw(rng)
            layers = _layers(rng, design[1], n_layers=6, d_model=6, memory=0.6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GridEdgeWarning)
                result = _sweep(layers, design, permutations=199, seed=study, **settings)
            best = significance(result).group_by("metric").agg(pl.col("p", "p_corrected").min())
            rows += [{"design": name, **row} for row in best.to_dicts()]
    return pl.DataFrame(rows)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "roc_auc", "r2", "pearson", "spearman"])
def test_the_family_wise_error_rate_is_held(null_p_values: pl.DataFrame, metric: str) -> None:
    found = null_p_values.filter(metric=metric)
    assert found.height >= 600
    assert (found["p"] <= 0.05).mean() > 0.15, "without correction some layer passes far more often"  # type: ignore[operator]
    assert 0.03 <= (found["p_corrected"] <= 0.05).mean() <= 0.07  # type: ignore[operator]
    for _, of_design in found.group_by("design"):
        # Three standard errors of 150 experiments.
        assert (of_design["p_corrected"] <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_permuting_stimuli_of_grouped_items_one_by_one_would_break_the_error_rate() -> None:
    """The reason why whole groups move: texts of one item are alike, so loose labels make too narrow a null."""
    passed = []
    for study in range(80):
        rng = np.random.default_rng([99, study])
        groups = np.arange(80) // 8
        y = rng.permutation(np.arange(10) % 2)[groups]
        layers = _layers(rng, groups, n_layers=1, d_model=6, memory=0.0)
        folds = assign_folds(y.astype(float), groups, n_folds=5, seed=study)
        alone = _sweep(layers, (y, np.arange(80)), cv=folds, permutations=199, probe="ridge_classifier", seed=study)
        passed.append(significance(alone).filter(metric="roc_auc")["p"][0] <= 0.05)
    assert np.mean(passed) > 0.1


# --- planted peaks and onsets ---


class Curve(NamedTuple):
    """How strongly each layer holds the label, and how it is measured."""

    n_stimuli: int
    n_layers: int
    strength: float
    width: float
    fall: float = 1.0  # width after the peak over width before it
    memory: float = 0.0
    per_group: int = 1
    probe: str = "ridge_classifier"


CURVES = {
    "broad": Curve(120, 12, 0.6, 2.5),
    "narrow": Curve(200, 12, 0.8, 1.5),
    "residual stream": Curve(120, 12, 0.6, 2.5, memory=0.9),
    "lopsided": Curve(200, 20, 0.8, 2.0, fall=3.0, memory=0.5),
    "pairs of texts": Curve(160, 16, 0.8, 3.0, memory=0.7, per_group=2),
    "values": Curve(150, 12, 0.5, 2.0, memory=0.5, probe="ridge"),
}
N_PEAKS = 100
"""Experiments per curve."""


def _planted(curve: Curve, rng: np.random.Generator) -> tuple[np.ndarray, Design, int]:
    """Layers with the label along one direction, strongest at a random depth; and the layer where it is strongest."""
    groups = np.arange(curve.n_stimuli) // curve.per_group
    n_groups = int(groups.max()) + 1
    code = rng.normal(size=n_groups) if curve.probe == "ridge" else rng.permutation(np.arange(n_groups) % 2) * 2.0 - 1
    layers = _layers(rng, groups, curve.n_layers, d_model=8, memory=curve.memory)
    depth = rng.uniform(1.5, curve.n_layers - 2.5)
    gap = np.arange(curve.n_layers) - depth
    strength = curve.strength * np.exp(-0.5 * (gap / np.where(gap < 0, curve.width, curve.width * curve.fall)) ** 2)
    layers[:, :, 0] += strength[:, None] * code[groups]
    return layers, ((code[groups] if curve.probe == "ridge" else code[groups] > 0), groups), int(strength.argmax())


@pytest.fixture(scope="module")
def planted_peaks() -> pl.DataFrame:
    """Whether the layer where the label is strongest lies in the 95% set of its peak, and the size of the set."""
    rows = []
    for number, (name, curve) in enumerate(CURVES.items()):
        for study in range(N_PEAKS):
            layers, design, best = _planted(curve, np.random.default_rng([number, study]))
            result = _sweep(layers, design, probe=curve.probe, seed=study)
            peaks = summarise(result, n_layers=curve.n_layers, n_resamples=400).peaks.to_dicts()
            rows += [
                {
                    "curve": name,
                    "metric": "main" if peak["metric"] in ("balanced_accuracy", "r2") else peak["metric"],
                    "is_covered": best in _layers_of(peak["peak_set"]),
                    "is_peak": peak["peak_layer"] == best,
                    "share": len(_layers_of(peak["peak_set"])) / curve.n_layers,
                }
                for peak in peaks
            ]
    return pl.DataFrame(rows)


def _layers_of(ranges: str) -> list[int]:
    """Read "3-5, 8"."""
    ends = [part.partition("-") for part in ranges.split(", ")]
    return [layer for first, _, last in ends for layer in range(int(first), int(last or first) + 1)]


def test_the_set_of_the_peak_holds_the_layer_where_the_label_is_strongest_19_times_out_of_20(
    planted_peaks: pl.DataFrame,
) -> None:
    main = planted_peaks.filter(metric="main")
    assert main.height == 600
    assert main["is_peak"].mean() < 0.6, "the observed peak alone should often be beside the true one"  # type: ignore[operator]
    assert main["share"].mean() < 0.6, "a set of nearly all layers would say nothing"  # type: ignore[operator]
    assert 0.93 <= main["is_covered"].mean() <= 0.97  # type: ignore[operator]
    of_classes = main.filter(pl.col("curve") != "values")
    assert 0.93 <= of_classes["is_covered"].mean() <= 0.97  # type: ignore[operator]
    assert 0.93 <= planted_peaks.filter(metric="roc_auc")["is_covered"].mean() <= 0.97  # type: ignore[operator]


def test_no_shape_of_curve_breaks_the_set_of_the_peak(planted_peaks: pl.DataFrame) -> None:
    for (curve, metric), found in planted_peaks.group_by("curve", "metric"):
        # 95% less three standard errors of 100 experiments.
        assert found["is_covered"].mean() >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 100), (curve, metric)


def test_the_onset_is_found_where_it_is_planted_and_its_interval_holds_it() -> None:
    found = []
    for study in range(150):
        rng = np.random.default_rng([7, study])
        groups = np.arange(120)
        y, onset = rng.permutation(groups % 2), int(rng.integers(0, 9))
        layers = _layers(rng, groups, n_layers=12, d_model=8, memory=0.5)
        layers[onset:, :, 0] += 0.7 * (2 * y[None] - 1)
        result = _sweep(layers, (y, groups), probe="ridge_classifier", seed=study)
        peak = (
            summarise(result, n_layers=12, n_resamples=400).peaks.filter(metric="balanced_accuracy").row(0, named=True)
        )
        if peak["peak_layer"] >= onset:
            found.append((peak["onset_layer"] - onset, peak["onset_first"] <= onset <= peak["onset_last"]))
    errors = np.array([error for error, _ in found])
    assert len(found) > 140
    assert np.median(errors) == 0
    assert np.mean(np.abs(errors) <= 1) > 0.9
    assert np.mean([inside for _, inside in found]) >= 0.93


def test_without_signal_no_onset_is_claimed() -> None:
    claimed = []
    for study in range(60):
        rng = np.random.default_rng([8, study])
        design = _items(rng)
        layers = _layers(rng, design[1], n_layers=6, d_model=6, memory=0.5)
        result = _sweep(layers, design, probe="ridge_classifier", permutations=199, seed=study)
        peaks = summarise(result, n_layers=6, n_resamples=100).peaks.filter(metric="roc_auc")
        claimed.append(peaks["onset_layer"][0] is not None)
    assert np.mean(claimed) <= 0.12


# --- memory and leaks ---


def test_selectivity_ranks_a_probe_that_remembers_types_below_an_honest_one() -> None:
    rng = np.random.default_rng(0)
    types, contexts = np.tile(np.arange(40), 6), np.repeat(np.arange(6), 40)
    y = (np.arange(40) % 2)[types]
    codes = rng.normal(size=(40, 10))
    codes[:, 0] += 3.0 * (2 * (np.arange(40) % 2) - 1)
    X = codes[types] + 0.2 * rng.normal(size=(240, 10))
    curves = {}
    for probe in ("ridge_classifier", KNeighborsClassifier(1)):
        result = sweep(
            {("resid_post", 0): X}, y, groups=contexts, types=types, controls=("type",), n_shuffles=20, probe=probe,
            alpha=10.0, cv=6,
        )  # fmt: skip
        row = summarise(result, n_layers=1).curves.filter(metric="balanced_accuracy").row(0, named=True)
        curves[row["probe"]] = row
    honest, memory = curves["ridge_classifier"], curves["kneighborsclassifier"]
    assert min(honest["score"], memory["score"]) > 0.97, "the score alone does not tell them apart"
    assert memory["type_mean"] > 0.97
    assert memory["selectivity"] < 0.05
    assert honest["selectivity"] > 0.25
    assert honest["selectivity"] == pytest.approx(honest["score"] - honest["type_mean"])


def test_folds_that_let_a_group_cross_are_refused_and_would_have_looked_like_knowledge() -> None:
    rng = np.random.default_rng(1)
    groups = np.arange(120) // 4
    y = rng.permutation(np.arange(30) % 2)[groups]
    X = rng.normal(size=(30, 60))[groups] + 0.1 * rng.normal(size=(120, 60))  # items, and no property of items
    columns, leaky = {("resid_post", 0): X}, np.arange(120) % 4
    with pytest.raises(DesignError, match="a group must stay in one fold"):
        sweep(columns, y, groups=groups, cv=leaky, controls=(), probe="ridge_classifier")
    scores = [
        sweep(columns, y, groups=g, cv=cv, controls=(), probe="ridge_classifier", alpha=1.0)
        .scores.filter(metric="balanced_accuracy")["score"]
        .mean()
        for g, cv in ((np.arange(120), leaky), (groups, 5))
    ]
    assert scores[0] > 0.95  # type: ignore[operator]
    assert scores[1] < 0.7  # type: ignore[operator]
