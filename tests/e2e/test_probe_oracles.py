"""On SmolLM2's own activations the probe engine equals plain scikit-learn, with stimuli fewer and more than d_model."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stratoscope import Run
from stratoscope.probes import sweep
from stratoscope.probes.estimators import ALPHAS
from stratoscope.probes.features import FoldFeatures
from stratoscope.probes.ridge import predict_ridge

D_MODEL = 576
COLUMNS = (("resid_post", 0), ("resid_post", 14), ("resid_post", 29), ("attn_out", 9), ("mlp_out", 20))


class FinishedDemo:
    """Stands for the fixture's type, which lives in conftest."""

    folder: Path


class Case(NamedTuple):
    """Activations with labels of every kind."""

    X: NDArray[np.float32]
    groups: NDArray[Any]
    binary: NDArray[Any]
    several: NDArray[Any]
    multi_label: NDArray[Any]
    values: NDArray[np.float64]


@pytest.fixture(scope="module")
def item(demo: FinishedDemo) -> Run:
    return Run.open(demo.folder / "item")


@pytest.fixture(scope="module", params=["fewer stimuli than features", "more stimuli than features"])
def cases(request: pytest.FixtureRequest, item: Run) -> dict[str, Case]:
    """The 250 items at single columns, or at four columns stacked as 1,000 stimuli."""
    frame, activations = item.stimuli(), item.activations()
    labels = ["edible", "living", "large", "elongated", "self_moving"]
    properties = frame.select(labels).to_numpy()
    size = frame["log10_size_cm"].to_numpy()
    quarter = np.array(["tiny", "small", "large", "huge"])[np.digitize(size, np.quantile(size, [0.25, 0.5, 0.75]))]
    values = np.column_stack([size, frame["text"].str.len_chars().to_numpy().astype(float)])
    groups = frame["group"].to_numpy()
    if request.param == "fewer stimuli than features":
        blocks = {f"{site}.{layer}": activations[site, layer] for site, layer in COLUMNS}
    else:
        blocks = {"stacked": np.concatenate([activations["resid_post", layer] for layer in (6, 12, 18, 24)])}
    found = {}
    for name, X in blocks.items():
        times = len(X) // len(frame)
        assert X.shape[1] == D_MODEL
        assert (len(X) * 0.8 < D_MODEL) == (times == 1), "one regime each"
        tile = (times, 1)
        found[name] = Case(
            X,
            np.tile(groups, times),
            np.tile(properties[:, 1], times),
            np.tile(quarter, times),
            np.tile(properties, tile),
            np.tile(values, tile),
        )
    return found


def _folds(case: Case, y: Any) -> NDArray[np.intp]:
    result = sweep({("x", 0): case.X[:, :2]}, y, groups=case.groups, probe="lda", shrinkage=0.5, controls=())
    first = result.split()[0].predictions
    return first["fold"].to_numpy()[:: first.height // len(case.X)]


def _decisions(case: Case, y: Any, fold_of: NDArray[np.intp], **settings: Any) -> dict[str, tuple[Any, Any]]:
    """Out-of-fold predictions and decisions, (n_stimuli,) and (n_stimuli, n_outputs), by target."""
    result = sweep({("x", 0): case.X}, y, groups=case.groups, cv=fold_of, controls=(), **settings)
    found = {}
    for one in result.split():
        n_outputs = one.predictions.height // len(case.X)
        predicted = one.predictions["prediction"].to_numpy()[::n_outputs]
        decision = one.predictions["decision"].to_numpy().reshape(len(case.X), n_outputs)
        found[one.provenance["target"]] = predicted, decision
    return found


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("C", [1e-4, 1.0])
@pytest.mark.parametrize("labels", ["binary", "several"])
def test_svm_decisions_are_those_of_scikit_learn(cases: dict[str, Case], labels: str, C: float, scale: bool) -> None:
    for name, case in cases.items():
        y = getattr(case, labels)
        X = case.X.astype(np.float64)
        if not scale:
            # The residual stream has features of a thousand times the others' size, on which LIBSVM does not end.
            X = X / np.abs(X).max()
            case = case._replace(X=X)  # noqa: PLW2901
        fold_of, codes = _folds(case, y), np.unique(y, return_inverse=True)[1]
        ((predicted, decision),) = _decisions(case, y, fold_of, probe="svm", C=C, scale=scale).values()
        for fold in range(5):
            train, test = fold_of != fold, fold_of == fold
            plain = make_pipeline(StandardScaler(with_std=scale), SVC(kernel="linear", C=C, tol=1e-9)).fit(
                X[train], codes[train]
            )
            np.testing.assert_array_equal(predicted[test], plain.predict(X[test]), err_msg=name)
            expected = plain.decision_function(X[test]).reshape(test.sum(), -1)
            # LIBSVM holds inner products in single precision: see `test_margin` for what is nearer the optimum.
            np.testing.assert_allclose(decision[test], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_multi_label_svms_are_one_plain_svm_per_label_on_the_same_folds(cases: dict[str, Case]) -> None:
    for case in cases.values():
        fold_of = _folds(case, case.multi_label)
        found = _decisions(case, case.multi_label, fold_of, probe="svm")
        assert len(found) == 5
        X = case.X.astype(np.float64)
        for fold in range(5):
            train, test = fold_of != fold, fold_of == fold
            svm = OneVsRestClassifier(SVC(kernel="linear", tol=1e-9))
            plain = make_pipeline(StandardScaler(), svm).fit(X[train], case.multi_label[train])
            ours = np.column_stack([decision[:, 0] for _, decision in found.values()])[test]
            np.testing.assert_allclose(ours, plain.decision_function(X[test]), rtol=1e-4, atol=1e-4)
            labels = np.column_stack([predicted for predicted, _ in found.values()])[test]
            np.testing.assert_array_equal(labels, plain.predict(X[test]))


@pytest.mark.parametrize("scale", [True, False])
def test_ridge_predictions_of_two_targets_are_those_of_scikit_learn_at_every_alpha(
    cases: dict[str, Case], scale: bool
) -> None:
    for name, case in cases.items():
        fold_of, X = _folds(case, case.binary), case.X.astype(np.float64)
        for fold in (0, 3):
            train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
            axes = FoldFeatures(case.X, train, test, scale=scale).axes
            scaler = StandardScaler(with_std=scale).fit(X[train])
            for alpha in ALPHAS:
                ours = predict_ridge(axes, case.values[train], np.full(2, alpha))
                plain = Ridge(alpha).fit(scaler.transform(X[train]), case.values[train])
                expected = plain.predict(scaler.transform(X[test]))
                relative = np.linalg.norm(ours - expected, axis=0) / np.linalg.norm(expected, axis=0)
                assert relative.max() <= 1e-6, (name, alpha, relative)


@pytest.mark.parametrize("labels", ["binary", "several"])
@pytest.mark.parametrize("alpha", [1.0, 1e3, 1e6])
def test_the_ridge_classifier_is_that_of_scikit_learn(cases: dict[str, Case], labels: str, alpha: float) -> None:
    for name, case in cases.items():
        y, X = getattr(case, labels), case.X.astype(np.float64)
        fold_of, codes = _folds(case, y), np.unique(y, return_inverse=True)[1]
        ((predicted, decision),) = _decisions(case, y, fold_of, probe="ridge_classifier", alpha=alpha).values()
        for fold in range(5):
            train, test = fold_of != fold, fold_of == fold
            plain = make_pipeline(StandardScaler(), RidgeClassifier(alpha=alpha)).fit(X[train], codes[train])
            expected = plain.decision_function(X[test]).reshape(test.sum(), -1)
            np.testing.assert_allclose(decision[test], expected, atol=1e-6 * np.abs(expected).max(), err_msg=name)
            np.testing.assert_array_equal(predicted[test], plain.predict(X[test]), err_msg=name)


def test_a_sweep_by_the_names_of_a_runs_columns_equals_one_by_arrays(item: Run) -> None:
    stimuli = item.stimuli()
    by_name = sweep(item, "edible", groups="group", sites=["mlp_out"], probe="ridge_classifier")
    arrays = {key: column for key, column in item.activations().items() if key[0] == "mlp_out"}
    by_array = sweep(
        arrays,
        stimuli["edible"],
        groups=stimuli["group"],
        ids=stimuli["id"].to_list(),
        texts=stimuli["text"].to_list(),
        target="edible",
        probe="ridge_classifier",
    )
    assert len(arrays) == 30
    assert by_name.scores.equals(by_array.scores)
    assert by_name.predictions.equals(by_array.predictions)
    assert by_name.provenance["model"] == item.card.model
