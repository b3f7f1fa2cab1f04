"""Cholesky factors: the same as SciPy's, in place, refused where there are none, in no other thread's way."""

import ctypes
import threading
import time

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stratoscope.probes.cholesky import factorise, invert, solve


def gram(n_rows: int, n_features: int, seed: int = 0) -> NDArray[np.float64]:
    X = np.random.default_rng(seed).normal(size=(n_rows, n_features))
    return np.asarray(X @ X.T)


@pytest.mark.parametrize("n", [1, 2, 63, 200])
def test_factor_inverse_and_solutions_are_those_of_scipy_and_numpy(n: int) -> None:
    K = gram(n, 2 * n + 1)
    factor = K.copy()
    assert factorise(factor)
    np.testing.assert_allclose(np.tril(factor), scipy.linalg.cholesky(K, lower=True), rtol=1e-9, atol=1e-9)
    values = np.random.default_rng(1).normal(size=(3, n))
    found = values.copy()
    solve(factor, found)
    np.testing.assert_allclose(found, scipy.linalg.solve(K, values.T, assume_a="pos").T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found @ K, values, rtol=1e-7, atol=1e-7)
    assert invert(factor)
    np.testing.assert_array_equal(factor, factor.T)
    np.testing.assert_allclose(factor, np.linalg.inv(K), rtol=1e-7, atol=1e-9)


def test_only_the_lower_triangle_is_read_and_changed() -> None:
    K = gram(20, 30)
    marked = np.where(np.tri(20, dtype=bool), K, np.nan)
    assert factorise(marked)
    assert np.isnan(marked[~np.tri(20, dtype=bool)]).all()
    np.testing.assert_allclose(np.tril(marked), scipy.linalg.cholesky(K, lower=True), rtol=1e-9)


@pytest.mark.parametrize("K", [np.zeros((3, 3)), -np.eye(3)], ids=["zero", "negative"])
def test_a_matrix_that_is_not_positive_definite_is_said_to_have_no_factor(K: NDArray[np.float64]) -> None:
    assert not factorise(K.copy())


@pytest.mark.parametrize(
    "K",
    [np.eye(3, dtype=np.float32), np.asfortranarray(gram(3, 9)), np.eye(6)[::2, ::2]],
    ids=["float32", "F", "slice"],
)
def test_memory_that_lapack_would_misread_is_refused(K: NDArray[np.float64]) -> None:
    with pytest.raises(ctypes.ArgumentError):
        factorise(K)


def test_another_thread_goes_on_while_a_factor_is_computed() -> None:
    K = gram(1500, 2000)
    with threadpool_limits(limits=1):
        began = time.perf_counter()
        factorise(K.copy())
        needed = time.perf_counter() - began
    assert needed > 0.01, "long enough to be noticed"
    n_steps, done = 0, threading.Event()

    def count() -> None:
        nonlocal n_steps
        while not done.is_set():
            n_steps += 1

    other = threading.Thread(target=count)
    factor = K.copy()
    other.start()
    before = n_steps
    factorise(factor)
    passed = n_steps - before
    done.set()
    other.join()
    assert passed > 1000, "a thread that keeps the interpreter's lock lets none of these steps happen"
