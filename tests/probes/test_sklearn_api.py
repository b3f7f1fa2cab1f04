"""The estimators keep scikit-learn's contract and equal its own."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from stratoscope.probes import RidgeProbe, RidgeProbeClassifier, SVMProbe

ESTIMATORS = [RidgeProbe(), RidgeProbeClassifier(), SVMProbe(), SVMProbe(C=(0.1, 1.0))]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(ESTIMATORS)  # type: ignore[untyped-decorator]
def test_scikit_learns_own_checks_pass(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("d_model", [200, 20])
def test_ridge_equals_a_grouped_grid_search_in_a_pipeline(d_model: int) -> None:
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(90, d_model)) * rng.uniform(0.1, 4, d_model) + 2, np.arange(90) // 3
    Y = np.column_stack([X[:, 0] + rng.normal(size=90), X[:, 1] + rng.normal(size=90)])
    alphas = [1.0, 10.0, 100.0, 1000.0]
    plain = make_pipeline(
        StandardScaler(), GridSearchCV(Ridge(), {"alpha": alphas}, cv=GroupKFold(5), scoring="neg_mean_squared_error")
    ).fit(X, Y, gridsearchcv__groups=groups)
    ours = RidgeProbe(alphas).fit(X, Y, groups=groups)
    assert ours.alpha_ == plain[-1].best_params_["alpha"]
    fresh = rng.normal(size=(30, d_model)) + 2
    np.testing.assert_allclose(ours.predict(fresh), plain.predict(fresh), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_svm_equals_the_pipeline(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(90, 150)) + 1, np.array(["a", "b", "c"])[np.arange(90) % n_classes]
    plain = make_pipeline(StandardScaler(), SVC(kernel="linear", tol=1e-6)).fit(X, y)
    ours = SVMProbe().fit(X, y)
    fresh = rng.normal(size=(40, 150))
    np.testing.assert_array_equal(ours.predict(fresh), plain.predict(fresh))
    np.testing.assert_allclose(ours.decision_function(fresh), plain.decision_function(fresh), atol=1e-5)


def test_the_estimators_work_in_a_search_of_the_users_own() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 30)), np.arange(60) % 2
    X[:, 0] += 2 * y
    search = GridSearchCV(RidgeProbeClassifier(), {"scale": [True, False]}).fit(X, y)
    assert search.best_score_ > 0.7
