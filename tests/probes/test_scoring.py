"""Every score equals scikit-learn or scipy, and weights equal repeated rows."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from stratoscope.probes import scoring
from stratoscope.probes.scoring import CLASS_SCORES, VALUE_SCORES, chance

Reference = Callable[[np.ndarray, np.ndarray], float]

REFERENCES: dict[str, Reference] = {
    "balanced_accuracy": lambda y, d: metrics.balanced_accuracy_score(y, d >= 0),
    "roc_auc": metrics.roc_auc_score,
    "accuracy": lambda y, d: metrics.accuracy_score(y, d >= 0),
    "r2": metrics.r2_score,
    "pearson": lambda y, d: stats.pearsonr(y, d).statistic,
    "spearman": lambda y, d: stats.spearmanr(y, d).statistic,
}
SCORES = CLASS_SCORES | VALUE_SCORES


def _case(metric: str, n_targets: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels and decisions with ties, (40, n_targets)."""
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(40, n_targets))
    decision = np.round(signal + rng.normal(size=signal.shape), 1)
    return ((signal > 0.3).astype(float) if metric in CLASS_SCORES else np.round(signal, 1)), decision


def test_every_score_has_a_reference() -> None:
    assert set(REFERENCES) == set(SCORES)


@pytest.mark.parametrize("metric", SCORES)
def test_a_plain_score_equals_its_reference(metric: str) -> None:
    y, decision = _case(metric)
    assert len(np.unique(decision[:, 0])) < len(decision), "the case should hold ties"
    ours = SCORES[metric](y, decision, np.ones((1, len(y))))[0]
    expected = [REFERENCES[metric](y[:, i], decision[:, i]) for i in range(3)]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", SCORES)
def test_a_weighted_score_equals_the_score_of_repeated_rows(metric: str) -> None:
    y, decision = _case(metric)
    weights = np.random.default_rng(2).multinomial(40, np.full(40, 1 / 40), size=4).astype(float)
    assert (weights == 0).any()
    assert (weights > 1).any()
    ours = SCORES[metric](y, decision, weights)
    for resample, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(40), counts)
        expected = [REFERENCES[metric](y[rows, i], decision[rows, i]) for i in range(3)]
        np.testing.assert_allclose(ours[resample], expected, rtol=0, atol=1e-12)


def test_auc_is_one_where_class_1_has_the_higher_decisions_and_zero_where_it_has_the_lower() -> None:
    y, decision = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[-2.0], [-1.0], [1.0], [2.0]])
    once = np.ones((1, 4))
    assert scoring.roc_auc(y, decision, once) == 1.0
    assert scoring.roc_auc(y, -decision, once) == 0.0
    assert scoring.roc_auc(y, np.zeros_like(decision), once) == 0.5


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 / 3])
@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_correlation_with_constant_predictions_is_undefined(metric: str, value: float) -> None:
    y = np.random.default_rng(0).normal(size=(30, 1))
    assert np.isnan(SCORES[metric](y, np.full((30, 1), value), np.ones((1, 30)))).all()


@pytest.mark.parametrize("metric", ["balanced_accuracy", "roc_auc"])
def test_a_score_without_one_class_is_undefined(metric: str) -> None:
    assert np.isnan(SCORES[metric](np.ones((5, 1)), np.ones((5, 1)), np.ones((1, 5)))).all()


def test_chance_is_what_a_blind_guess_scores() -> None:
    y = np.repeat([0.0, 1.0], [30, 10])
    guess, once = -np.ones((40, 1)), np.ones((1, 40))
    for metric in ("accuracy", "balanced_accuracy"):
        assert SCORES[metric](y[:, None], guess, once) == chance(metric, y)
    assert chance("r2", y) == SCORES["r2"](y[:, None], np.full((40, 1), y.mean()), once) == 0.0
