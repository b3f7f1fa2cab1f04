"""The probes equal plain scikit-learn and a float64 formula, and see training rows only."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stratoscope.probes import DesignError
from stratoscope.probes.estimators import FoldFit, Settings, fit_ridge, fit_svm
from stratoscope.probes.folds import Split, assign_folds, make_splits
from stratoscope.probes.gram import standardise

REGIMES = [(60, 200), (120, 20)]


def _data(n_stimuli: int, d_model: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features with one constant and one massive dimension, two label vectors, groups of two."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_stimuli, d_model)) * rng.uniform(0.1, 5, d_model) + 3
    X[:, 3], X[:, 7] = 0.1, X[:, 7] * 1e3
    signal = (X[:, 0] - X[:, 0].mean()) / X[:, 0].std()
    Y = np.column_stack([signal + rng.normal(size=n_stimuli), rng.normal(size=n_stimuli)])
    return X.astype(np.float32).astype(np.float64), Y, np.arange(n_stimuli) // 2


def _splits(n_stimuli: int, inner_folds: int = 0) -> tuple[Split, ...]:
    groups = np.arange(n_stimuli) // 2
    return make_splits(
        assign_folds(np.arange(float(n_stimuli)), groups, kind="values"), groups, inner_folds=inner_folds
    )


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
def test_the_svm_equals_the_scikit_learn_pipeline(n_stimuli: int, d_model: int, scale: bool) -> None:
    X, Y, _ = _data(n_stimuli, d_model)
    X[:, 7] /= 1e3  # without scaling LIBSVM hardly converges on a massive dimension
    labels = (Y > 0).astype(float)
    for split in _splits(n_stimuli):
        ours = fit_svm(X, labels, split, Settings(scale=scale))
        for target in range(2):
            plain = Pipeline([("scale", StandardScaler(with_std=scale)), ("svm", SVC(kernel="linear", C=1))])
            plain.fit(X[split.train], labels[split.train, target])
            np.testing.assert_array_equal(ours.decision[:, target] >= 0, plain.predict(X[split.test]) == 1)
            np.testing.assert_allclose(ours.decision[:, target], plain.decision_function(X[split.test]), atol=2e-3)


def test_the_svm_satisfies_its_optimality_conditions() -> None:
    X, Y, _ = _data(60, 200)
    labels = (Y[:, :1] > 0).astype(float)
    split = _splits(60)[0]
    # Tested on its own training rows, each must lie beyond its margin, or be a support vector.
    on_train = fit_svm(X, labels, Split(split.train, split.train), Settings())
    margins = np.where(labels[split.train] == 1, 1, -1) * on_train.decision
    assert on_train.decision.std() > 0.1
    assert margins.min() > 1 - 2e-3, "d_model far above n_train: the classes are separable"


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
def test_ridge_with_a_fixed_alpha_equals_the_pipeline_and_the_normal_equations(
    n_stimuli: int, d_model: int, scale: bool
) -> None:
    X, Y, _ = _data(n_stimuli, d_model)
    for split in _splits(n_stimuli):
        assert (len(split.train) < d_model) == (n_stimuli == 60), "one regime on each side"
        ours = fit_ridge(X, Y, split, Settings(scale=scale, alphas=(10.0,))).decision
        plain = Pipeline([("scale", StandardScaler(with_std=scale)), ("ridge", Ridge(10.0))])
        np.testing.assert_allclose(ours, plain.fit(X[split.train], Y[split.train]).predict(X[split.test]), atol=1e-6)
        np.testing.assert_allclose(ours, _normal_equations(X, Y, split, 10.0, scale), atol=1e-6)


def _normal_equations(X: np.ndarray, Y: np.ndarray, split: Split, alpha: float, scale: bool) -> np.ndarray:
    train, test = X[split.train], X[split.test]
    spread = train.std(axis=0) if scale else np.ones(X.shape[1])
    spread[3] = 1.0
    Z, mean = (train - train.mean(axis=0)) / spread, Y[split.train].mean(axis=0)
    b = np.linalg.solve(Z.T @ Z + alpha * np.eye(Z.shape[1]), Z.T @ (Y[split.train] - mean))
    return np.asarray((test - train.mean(axis=0)) / spread @ b + mean)


@pytest.mark.parametrize(("n_stimuli", "d_model"), REGIMES)
def test_the_chosen_alpha_and_its_predictions_equal_a_grid_search(n_stimuli: int, d_model: int) -> None:
    X, Y, groups = _data(n_stimuli, d_model)
    alphas = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
    seen = set()
    for split in _splits(n_stimuli, inner_folds=4):
        ours = fit_ridge(X, Y, split, Settings(alphas=alphas, inner_folds=4))
        for target in range(2):
            pipeline = Pipeline([("scale", StandardScaler()), ("ridge", Ridge())])
            search = GridSearchCV(
                pipeline, {"ridge__alpha": alphas}, cv=GroupKFold(4), scoring="neg_mean_squared_error"
            )
            search.fit(X[split.train], Y[split.train, target], groups=groups.astype(str)[split.train])
            assert ours.chosen[target] == search.best_params_["ridge__alpha"]
            assert ours.inner[target] == pytest.approx(-search.best_score_, abs=1e-8)
            np.testing.assert_allclose(ours.decision[:, target], search.predict(X[split.test]), atol=1e-6)
            seen.add(ours.chosen[target])
    assert len(seen) > 1, "the case should make the choice of alpha matter"


@pytest.mark.parametrize("fit", [fit_svm, fit_ridge])
def test_a_wholly_constant_column_gives_one_decision_per_fold_and_no_nan(fit: object) -> None:
    X, labels = np.full((40, 10), 0.1), np.tile([[0.0], [1.0]], (20, 1))
    assert callable(fit)
    for split in _splits(40):
        fitted: FoldFit = fit(X, labels, split, Settings(alphas=(1.0,)))
        assert len(np.unique(fitted.decision)) == 1


@pytest.mark.parametrize("fit", [fit_svm, fit_ridge])
def test_scaling_uses_the_training_rows_alone(fit: object) -> None:
    rng = np.random.default_rng(3)
    X, Y = rng.normal(size=(40, 4)), rng.normal(size=(40, 1))
    split = Split(np.arange(30), np.arange(30, 40))
    X[split.test, 0] *= 100  # blows up the deviation over all rows and not over the training rows
    labels = (Y > 0).astype(float)
    assert callable(fit)
    ours: FoldFit = fit(X, labels, split, Settings(alphas=(10.0,)))

    by_train = StandardScaler().fit(X[split.train]).transform(X)
    by_all = StandardScaler().fit_transform(X)
    honest, leaky = (fit(Z, labels, split, Settings(scale=False, alphas=(10.0,))) for Z in (by_train, by_all))
    assert np.abs(honest.decision - leaky.decision).max() > 0.1, "the case should show the leak"
    np.testing.assert_allclose(ours.decision, honest.decision, atol=1e-3)


def test_standardised_training_rows_have_mean_zero_and_deviation_one() -> None:
    X, _, _ = _data(60, 200)
    split = _splits(60)[0]
    features = standardise(X, split.train, split.test, scale=True)
    assert features.train.shape == (len(split.train), 199), "the constant feature is left out"
    np.testing.assert_allclose(features.train.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(features.train.std(axis=0), 1, atol=1e-10)


@pytest.mark.parametrize("wrong", [{"C": 0.0}, {"alphas": (1.0, -1.0)}, {"alphas": (2.0, 1.0)}, {"alphas": ()}])
def test_settings_without_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DesignError):
        Settings(**wrong)  # type: ignore[arg-type]
