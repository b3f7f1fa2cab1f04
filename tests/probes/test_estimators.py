"""The probes equal plain scikit-learn and a float64 formula, and see training rows only."""

from typing import Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from stratoscope.probes import DesignError
from stratoscope.probes.estimators import PROBES, FoldFit, Settings, find_probe
from stratoscope.probes.features import FoldFeatures
from stratoscope.probes.folds import Split, assign_folds, make_splits
from stratoscope.probes.labels import Labels, encode
from stratoscope.probes.ridge import held_out_errors, predict_ridge
from stratoscope.probes.svm import SVM_TOLERANCE

REGIMES = [(60, 200), (120, 20)]
ALPHAS = (0.01, 1.0, 10.0, 100.0, 1e3, 1e4)


def _features(n_stimuli: int, d_model: int, seed: int = 0) -> np.ndarray:
    """Features with an offset, one constant, one nearly so and one massive dimension, as float32."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_stimuli, d_model)) * rng.uniform(0.1, 5, d_model) + 3
    X[:, 3], X[:, 5], X[:, 7] = 0.1, 1e4 + 1e-3 * X[:, 5], X[:, 7] * 30
    return X.astype(np.float32)


def _values(X: np.ndarray, n_targets: int = 2) -> np.ndarray:
    rng = np.random.default_rng(5)
    signal = (X[:, 0] - X[:, 0].mean()) / X[:, 0].std()
    return np.column_stack([signal + rng.normal(size=len(X)), *rng.normal(size=(n_targets - 1, len(X)))])


def _classes(X: np.ndarray, n_classes: int) -> np.ndarray:
    values = _values(X)[:, 0]
    return np.asarray(np.digitize(values, np.quantile(values, np.arange(1, n_classes) / n_classes)))


def _splits(n_stimuli: int, inner_folds: int = 4) -> tuple[Split, ...]:
    groups = np.arange(n_stimuli) // 2
    fold_of = assign_folds(np.arange(float(n_stimuli)), groups, kind="values")
    return make_splits(fold_of, groups, inner_folds=inner_folds)


def _fit(name: str, X: np.ndarray, labels: Labels, split: Split, **settings: Any) -> FoldFit:
    chosen = Settings(**settings)
    return PROBES[name].fit(FoldFeatures(X, split.train, split.test, scale=chosen.scale), labels, split, chosen)


def _one(y: np.ndarray, name: str) -> Labels:
    return encode(y, kind=PROBES[name].kind, target="label")[0]


def _rows(X: np.ndarray, split: Split, scale: bool) -> tuple[np.ndarray, np.ndarray]:
    scaler = StandardScaler(with_std=scale).fit(X[split.train].astype(np.float64))
    return scaler.transform(X[split.train].astype(np.float64)), scaler.transform(X[split.test].astype(np.float64))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
def test_ridge_equals_the_pipeline_and_the_normal_equations_at_every_alpha(
    n_stimuli: int, d_model: int, scale: bool
) -> None:
    X = _features(n_stimuli, d_model)
    Y = _values(X, 3)
    for split in _splits(n_stimuli):
        assert (len(split.train) < d_model) == (n_stimuli == 60), "one regime on each side"
        axes = FoldFeatures(X, split.train, split.test, scale=scale).axes
        train, test = _rows(X, split, scale)
        for alpha in ALPHAS:
            ours = predict_ridge(axes, Y[split.train], np.full(3, alpha))
            plain = Ridge(alpha).fit(train, Y[split.train]).predict(test)
            np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-6 * np.abs(plain).max())
            formula = _normal_equations(train, test, Y[split.train], alpha)
            np.testing.assert_allclose(ours, formula, rtol=1e-6, atol=1e-6 * np.abs(plain).max())


def _normal_equations(train: np.ndarray, test: np.ndarray, Y: np.ndarray, alpha: float) -> np.ndarray:
    mean = Y.mean(axis=0)
    b = np.linalg.solve(train.T @ train + alpha * np.eye(train.shape[1]), train.T @ (Y - mean))
    return np.asarray(test @ b + mean)


@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
def test_held_out_errors_without_a_refit_equal_those_of_refits(n_stimuli: int, d_model: int) -> None:
    X = _features(n_stimuli, d_model)
    Y = _values(X)
    split = _splits(n_stimuli)[0]
    axes = FoldFeatures(X, split.train, split.test, scale=True).axes
    ours = held_out_errors(axes, Y[split.train], split.inner, np.array(ALPHAS))
    rows, _ = _rows(X, split, scale=True)
    for alpha, errors in zip(ALPHAS, ours, strict=True):
        refits = [
            ((Ridge(alpha).fit(rows[a], Y[split.train][a]).predict(rows[b]) - Y[split.train][b]) ** 2).mean(axis=0)
            for a, b in split.inner
        ]
        np.testing.assert_allclose(errors, np.mean(refits, axis=0), rtol=1e-6)


@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
def test_the_chosen_alpha_and_its_predictions_equal_a_grid_search_per_target(n_stimuli: int, d_model: int) -> None:
    X = _features(n_stimuli, d_model)
    groups, seen = np.arange(n_stimuli) // 2, set()
    for target in _values(X).T:
        for split in _splits(n_stimuli):
            ours = _fit("ridge", X, _one(target, "ridge"), split, alpha=ALPHAS, inner_folds=4)
            search = GridSearchCV(Ridge(), {"alpha": ALPHAS}, cv=GroupKFold(4), scoring="neg_mean_squared_error")
            plain = make_pipeline(StandardScaler(), search)
            names = groups.astype(str)[split.train]
            plain.fit(X[split.train].astype(np.float64), target[split.train], gridsearchcv__groups=names)
            assert ours.chosen[0] == search.best_params_["alpha"]
            assert ours.inner[0] == pytest.approx(-search.best_score_, rel=1e-6)
            predicted = plain.predict(X[split.test].astype(np.float64))
            np.testing.assert_allclose(ours.predicted[:, 0], predicted, rtol=1e-6, atol=1e-6)
            seen.add(ours.chosen[0])
    assert len(seen) > 1, "the case should make the choice of alpha matter"


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
def test_the_svm_equals_the_scikit_learn_pipeline(n_stimuli: int, d_model: int, scale: bool, n_classes: int) -> None:
    X = _features(n_stimuli, d_model)
    X[:, 7] /= 30  # without scaling LIBSVM hardly converges on a massive dimension
    y = _classes(X, n_classes)
    for C in (1e-3, 1.0):
        for split in _splits(n_stimuli):
            ours = _fit("svm", X, _one(y, "svm"), split, C=(C,), scale=scale)
            plain = make_pipeline(StandardScaler(with_std=scale), SVC(kernel="linear", C=C, tol=SVM_TOLERANCE)).fit(
                X[split.train].astype(np.float64), y[split.train]
            )
            rows = X[split.test].astype(np.float64)
            np.testing.assert_array_equal(ours.predicted[:, 0], plain.predict(rows))
            expected = plain.decision_function(rows).reshape(len(rows), -1)
            np.testing.assert_allclose(ours.decision[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
def test_the_svm_chooses_the_c_of_a_grid_search_over_grouped_folds(n_stimuli: int, d_model: int) -> None:
    X, grid, seen = _features(n_stimuli, d_model), (1e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1.0), set()
    y, names = _classes(X, 2), (np.arange(n_stimuli) // 2).astype(str)
    for split in _splits(n_stimuli):
        ours = _fit("svm", X, _one(y, "svm"), split, C=grid, inner_folds=4)
        search = GridSearchCV(SVC(kernel="linear"), {"C": grid}, cv=GroupKFold(4), scoring="balanced_accuracy")
        train, test = _rows(X, split, scale=True)
        search.fit(train, y[split.train], groups=names[split.train])
        assert ours.chosen[0] == search.best_params_["C"]
        assert ours.inner[0] == pytest.approx(search.best_score_)
        plain = SVC(kernel="linear", C=search.best_params_["C"], tol=SVM_TOLERANCE).fit(train, y[split.train])
        np.testing.assert_allclose(ours.decision[:, 0, 0], plain.decision_function(test), atol=1e-5)
        seen.add(ours.chosen[0])
    assert len(seen) > 1, "the case should make the choice of C matter"


def test_a_hard_margin_is_fitted_once_for_all_greater_penalties() -> None:
    X = _features(60, 200)
    y = _classes(X, 2)
    split = _splits(60)[0]
    train, test = _rows(X, split, scale=True)
    hard = SVC(kernel="linear", C=1e3, tol=SVM_TOLERANCE).fit(train, y[split.train])
    assert np.abs(hard.dual_coef_).max() < 1, "no coefficient reaches C = 1"
    for C in (1.0, 1e6):
        ours = _fit("svm", X, _one(y, "svm"), split, C=(C,))
        np.testing.assert_allclose(ours.decision[:, 0, 0], hard.decision_function(test), atol=1e-5)


def test_the_svm_satisfies_its_optimality_conditions() -> None:
    X = _features(60, 200)
    y = _classes(X, 2)
    split = _splits(60)[0]
    # Tested on its own training rows, each must lie beyond its margin, or be a support vector.
    on_train = _fit("svm", X, _one(y, "svm"), Split(split.train, split.train))
    margins = np.where(y[split.train] == 1, 1, -1) * on_train.decision[:, 0, 0]
    assert margins.min() > 1 - 1e-5, "d_model far above n_train: the classes are separable"
    assert np.isclose(margins, 1, atol=1e-5).sum() > 5, "support vectors lie on the margin"


ORACLES: dict[str, tuple[dict[str, Any], Any, float]] = {
    "ridge_classifier": ({"alpha": (30.0,)}, RidgeClassifier(alpha=30.0), 1e-6),
    "lda": ({"shrinkage": (0.2,)}, LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2), 1e-6),
    "logistic": ({"C": (0.1,)}, LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000), 1e-4),
    "linear_svc": ({}, LinearSVC(random_state=0, max_iter=10_000), 1e-9),
}


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
@pytest.mark.parametrize("name", ORACLES)
def test_every_other_classifier_equals_scikit_learns(
    name: str, n_stimuli: int, d_model: int, scale: bool, n_classes: int
) -> None:
    X = _features(n_stimuli, d_model)
    X[:, 5] = X[:, 6]
    X[:, 7] /= 30
    y = _classes(X, n_classes)
    settings, oracle, tolerance = ORACLES[name]
    if name == "linear_svc" and not scale:
        X /= 10  # LIBLINEAR does not converge on large features
    for split in _splits(n_stimuli):
        ours = _fit(name, X, _one(y, name), split, scale=scale, **settings)
        train, test = _rows(X, split, scale)
        oracle.fit(train, y[split.train])
        np.testing.assert_array_equal(ours.predicted[:, 0], oracle.predict(test))
        expected = oracle.decision_function(test).reshape(len(test), -1)
        np.testing.assert_allclose(ours.decision[:, 0], expected, atol=tolerance * np.abs(expected).max())


def test_the_ridge_classifier_chooses_alpha_by_the_squared_error_of_its_codes() -> None:
    X = _features(60, 200)
    y = _classes(X, 2)
    names = (np.arange(60) // 2).astype(str)

    def squared_error(codes: np.ndarray, decision: np.ndarray) -> float:
        return float(((2 * codes - 1 - decision) ** 2).mean())

    scorer = make_scorer(squared_error, greater_is_better=False, response_method="decision_function")
    for split in _splits(60):
        ours = _fit("ridge_classifier", X, _one(y, "ridge_classifier"), split, alpha=ALPHAS, inner_folds=4)
        search = GridSearchCV(RidgeClassifier(), {"alpha": ALPHAS}, cv=GroupKFold(4), scoring=scorer)
        train, _ = _rows(X, split, scale=True)
        search.fit(train, y[split.train], groups=names[split.train])
        assert ours.chosen[0] == search.best_params_["alpha"]
        assert ours.inner[0] == pytest.approx(-search.best_score_)


@pytest.mark.parametrize("name", PROBES)
def test_a_wholly_constant_column_gives_one_decision_per_fold_and_no_nan(name: str) -> None:
    X, y = np.full((40, 10), 0.1, dtype=np.float32), np.tile([0.0, 1.0], 20)
    for split in _splits(40):
        fitted = _fit(name, X, _one(y, name), split, alpha=(1.0,), shrinkage=(0.5,))
        assert len(np.unique(fitted.decision)) == 1
        assert np.isfinite(fitted.decision).all()


@pytest.mark.parametrize("name", PROBES)
def test_scaling_uses_the_training_rows_alone(name: str) -> None:
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(40, 4)), (rng.normal(size=40) > 0).astype(float)
    split = Split(np.arange(30), np.arange(30, 40))
    X[split.test, 0] *= 100  # blows up the deviation over all rows and not over the training rows
    settings: dict[str, Any] = {"alpha": (10.0,), "shrinkage": (0.1,)}
    ours = _fit(name, X, _one(y, name), split, **settings)
    by_train, by_all = StandardScaler().fit(X[split.train]).transform(X), StandardScaler().fit_transform(X)
    honest, leaky = (_fit(name, Z, _one(y, name), split, scale=False, **settings) for Z in (by_train, by_all))
    assert np.abs(honest.decision - leaky.decision).max() > 0.1, "the case should show the leak"
    np.testing.assert_allclose(ours.decision, honest.decision, atol=1e-3)


@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
@pytest.mark.parametrize("scale", [True, False])
def test_features_are_standardised_as_scikit_learn_does_it(n_stimuli: int, d_model: int, scale: bool) -> None:
    X = _features(n_stimuli, d_model)
    X[:, 5] = np.where(np.arange(n_stimuli) % 2, 1e4, np.nextafter(np.float32(1e4), np.float32(2e4)))
    split = _splits(n_stimuli)[0]
    fold = FoldFeatures(X, split.train, split.test, scale=scale)
    scaler = StandardScaler(with_std=scale).fit(X[split.train].astype(np.float64))
    mean, spread = fold.statistics
    np.testing.assert_allclose(mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(spread, scaler.scale_ if scale else 1.0, rtol=1e-9)
    train, test = _rows(X, split, scale)
    np.testing.assert_allclose(fold.gram.train, train @ train.T, atol=1e-8 * np.abs(train @ train.T).max())
    np.testing.assert_allclose(fold.gram.test, test @ train.T, atol=1e-8 * np.abs(test @ train.T).max())


@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
def test_principal_axes_keep_all_inner_products(n_stimuli: int, d_model: int) -> None:
    X = _features(n_stimuli, d_model)
    split = _splits(n_stimuli)[0]
    fold = FoldFeatures(X, split.train, split.test, scale=True)
    axes, K = fold.axes, fold.gram
    np.testing.assert_allclose(axes.train @ axes.train.T, K.train, atol=1e-9 * K.train.max())
    np.testing.assert_allclose(axes.test @ axes.train.T, K.test, atol=1e-9 * K.train.max())
    np.testing.assert_allclose(axes.train.T @ axes.train, np.diag(axes.values), atol=1e-9 * axes.values.max())


def test_weights_on_the_features_give_the_decisions_back() -> None:
    for n_stimuli, d_model in REGIMES:
        X = _features(n_stimuli, d_model)
        split = _splits(n_stimuli)[0]
        Y = _values(X)
        on_train = predict_ridge(
            FoldFeatures(X, split.train, split.train, scale=True).axes, Y[split.train], np.full(2, 3.0)
        )
        fold = FoldFeatures(X, split.train, split.test, scale=True)
        weights, intercept = fold.weights(on_train)
        expected = predict_ridge(fold.axes, Y[split.train], np.full(2, 3.0))
        np.testing.assert_allclose(X[split.test].astype(np.float64) @ weights + intercept, expected, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"C": (0.0,)},
        {"alpha": (1.0, -1.0)},
        {"alpha": (2.0, 1.0)},
        {"alpha": ()},
        {"shrinkage": (0.5, 2.0)},
        {"inner_folds": 1},
    ],
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DesignError):
        Settings(**wrong)


def test_what_is_neither_classifier_nor_regressor_is_no_probe() -> None:
    with pytest.raises(DesignError, match="StandardScaler is neither a classifier nor a regressor"):
        find_probe(StandardScaler())
