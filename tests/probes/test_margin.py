"""The active-set solution of support vector machines: proven optimal, near LIBSVM's, and honest when it fails."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.svm import SVC

from stratoscope.probes.margin import MARGIN_TOLERANCE, Margin, inverse_gram, widest_margin
from stratoscope.probes.svm import fit_machines

Floats = NDArray[np.float64]


class Problem(NamedTuple):
    """K : (n_train, n_train); signs : (n_train,)."""

    K: Floats
    signs: Floats
    C: float


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Rows of few or many more features than rows, of even or very uneven spread, with labels of any share."""
    n_rows, rng = draw(st.integers(2, 40)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_features = n_rows + draw(st.integers(0, 3 * n_rows))
    X = rng.normal(size=(n_rows, n_features)) * rng.uniform(0.1, 1, n_features) ** draw(st.integers(0, 4))
    X -= X.mean(axis=0)
    n_positive = draw(st.integers(1, n_rows - 1))
    signs = rng.permutation(np.where(np.arange(n_rows) < n_positive, 1.0, -1.0))
    X[:, 0] += draw(st.sampled_from([0.0, 1.0, 5.0])) * signs
    return Problem(X @ X.T, signs, 10.0 ** draw(st.integers(-4, 4)))


def _solve(problem: Problem) -> Margin | None:
    inverse = inverse_gram(problem.K)
    assert inverse is not None, "features outnumber rows: the Gram matrix is regular but for the mean"
    return widest_margin(problem.K, inverse, problem.signs, problem.C)


def _gap(problem: Problem, dual: Floats, intercept: float) -> float:
    """By how much the primal objective lies above the dual one, as a part of it: 0 at the solution alone.

    A margin broken by less than its tolerance costs nothing here: times a great C it would cost all.
    """
    K, signs, C = problem
    hinge = np.maximum(0, 1 - MARGIN_TOLERANCE - signs * (K @ dual + intercept)).sum()
    primal, lower = dual @ K @ dual / 2 + C * hinge, signs @ dual - dual @ K @ dual / 2
    return float((primal - lower) / max(abs(lower), 1e-12))


@settings(max_examples=300, deadline=None)
@given(problems())
def test_what_is_returned_keeps_every_bound_and_closes_the_duality_gap(problem: Problem) -> None:
    found = _solve(problem)
    if found is not None:
        alpha = problem.signs * found.dual
        assert alpha.min() >= -1e-9 * problem.C
        assert alpha.max() <= problem.C * (1 + 1e-9)
        assert abs(found.dual.sum()) <= MARGIN_TOLERANCE * alpha.max()
        assert _gap(problem, found.dual, found.intercept) <= 1e-6


@settings(max_examples=200, deadline=None)
@given(problems())
def test_machines_decide_as_libsvm_does_whichever_of_the_two_fitted_them(problem: Problem) -> None:
    K, signs, C = problem
    decided, predicted = fit_machines(K, (signs + 1) / 2, C, inverse_gram(K)).decide(K)
    plain = SVC(kernel="precomputed", C=C, tol=1e-8).fit(K, signs)
    expected = plain.decision_function(K)
    # LIBSVM holds the Gram matrix in single precision.
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(decided[:, 0], expected, atol=3e-4 * scale)
    clear = np.abs(expected) > 1e-3 * scale
    np.testing.assert_array_equal(2 * predicted[clear] - 1, plain.predict(K)[clear])


def test_most_problems_come_to_an_exact_end() -> None:
    rng, ends = np.random.default_rng(0), []
    for C in (0.01, 1.0, 100.0):
        for _ in range(50):
            X = rng.normal(size=(60, 200))
            X -= X.mean(axis=0)
            signs = rng.permutation(np.repeat([1.0, -1.0], 30))
            ends.append(_solve(Problem(X @ X.T, signs, C)) is not None)
    assert np.mean(ends) > 0.9


def test_the_exact_solution_is_nearer_the_optimum_than_libsvms_own() -> None:
    rng, gaps = np.random.default_rng(1), []
    X = rng.normal(size=(80, 300)) * np.geomspace(30, 0.03, 300)
    X -= X.mean(axis=0)
    signs = rng.permutation(np.repeat([1.0, -1.0], 40))
    problem = Problem(X @ X.T, signs, 1.0)
    found = _solve(problem)
    assert found is not None
    plain = SVC(kernel="precomputed", C=1.0, tol=1e-6).fit(problem.K, signs)
    dual = np.zeros(80)
    dual[plain.support_] = plain.dual_coef_[0]
    gaps = [_gap(problem, found.dual, found.intercept), _gap(problem, dual, float(plain.intercept_[0]))]
    assert abs(gaps[0]) < 1e-9
    assert abs(gaps[0]) < abs(gaps[1])


def test_two_points_have_the_margin_of_the_formula() -> None:
    # Points at -3 and 5 on one axis: w = 2 / 8, the boundary midway at 1, and both duals w / 8.
    x = np.array([-3.0, 5.0])
    signs = np.array([-1.0, 1.0])
    found = _solve(Problem(np.outer(x, x) + np.eye(2) * 1e-12, signs, 10.0))
    assert found is not None
    np.testing.assert_allclose(found.dual, [-1 / 32, 1 / 32], rtol=1e-9)
    assert found.intercept == pytest.approx(-0.25, rel=1e-9)


def test_where_every_row_is_at_its_bound_the_intercept_is_the_middle_of_what_is_possible() -> None:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(20, 60))
    signs = np.repeat([1.0, -1.0], 10)
    K, C = X @ X.T, 1e-4
    plain = SVC(kernel="precomputed", C=C, tol=1e-10).fit(K, signs)
    assert np.allclose(np.abs(plain.dual_coef_), C), "no row is free, so that the intercept is not unique"
    ours, _ = fit_machines(K, (signs + 1) / 2, C, inverse_gram(K)).decide(K)
    np.testing.assert_allclose(ours[:, 0], plain.decision_function(K), atol=1e-6)


def test_equal_rows_of_both_classes_leave_a_singular_matrix_to_libsvm() -> None:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(12, 40))
    X[6:8] = X[:2]
    K, codes = X @ X.T, np.repeat([0.0, 1.0], 6)
    inverse = inverse_gram(K)
    exact = None if inverse is None else widest_margin(K, inverse, 2 * codes - 1, 1.0)
    assert exact is None
    decided, _ = fit_machines(K, codes, 1.0, inverse).decide(K)
    plain = SVC(kernel="precomputed", C=1.0, tol=1e-6).fit(K, codes)
    np.testing.assert_allclose(decided[:, 0], plain.decision_function(K), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("C", [1e-3, 1.0])
def test_several_classes_are_told_apart_pair_by_pair_as_scikit_learn_does(C: float) -> None:
    rng = np.random.default_rng(5)
    codes = np.arange(60.0) % 5
    X = rng.normal(size=(60, 150))
    X[:, :5] += 2 * np.eye(5)[codes.astype(int)]
    X -= X.mean(axis=0)
    K = X @ X.T
    decided, predicted = fit_machines(K, codes, C, inverse_gram(K)).decide(K)
    plain = SVC(kernel="precomputed", C=C, tol=1e-9).fit(K, codes)
    np.testing.assert_allclose(decided, plain.decision_function(K), atol=1e-5)
    np.testing.assert_array_equal(predicted, plain.predict(K))
