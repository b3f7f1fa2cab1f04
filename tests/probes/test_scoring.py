"""Every score equals scikit-learn or scipy, and weights equal repeated rows."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from stratoscope.probes import scoring
from stratoscope.probes.scoring import Held, chance

CLASS_SCORES, VALUE_SCORES = scoring.SCORES["classes"], scoring.SCORES["values"]

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


def _score(metric: str, y: np.ndarray, decision: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    predicted = (decision >= 0).astype(float) if metric in CLASS_SCORES else decision
    return SCORES[metric](Held(y, predicted, decision[:, :, None]), weights)


def _case(metric: str, n_targets: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels and decisions with ties, (40, n_targets)."""
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(40, n_targets))
    decision = np.round(signal + rng.normal(size=signal.shape), 1)
    return ((signal > 0.3).astype(float) if metric in CLASS_SCORES else np.round(signal, 1)), decision


def test_every_score_has_a_reference() -> None:
    assert set(REFERENCES) == set(SCORES)


@pytest.mark.parametrize("is_weighted", [True, False])
@pytest.mark.parametrize("metric", SCORES)
def test_a_plain_score_equals_its_reference(metric: str, is_weighted: bool) -> None:
    y, decision = _case(metric)
    weights = np.ones((1, len(y))) if is_weighted else None
    assert len(np.unique(decision[:, 0])) < len(decision), "the case should hold ties"
    ours = _score(metric, y, decision, weights)[0]
    expected = [REFERENCES[metric](y[:, i], decision[:, i]) for i in range(3)]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", SCORES)
def test_a_weighted_score_equals_the_score_of_repeated_rows(metric: str) -> None:
    y, decision = _case(metric)
    weights = np.random.default_rng(2).multinomial(40, np.full(40, 1 / 40), size=4).astype(float)
    assert (weights == 0).any()
    assert (weights > 1).any()
    ours = _score(metric, y, decision, weights)
    for resample, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(40), counts)
        expected = [REFERENCES[metric](y[rows, i], decision[rows, i]) for i in range(3)]
        np.testing.assert_allclose(ours[resample], expected, rtol=0, atol=1e-12)


def test_auc_is_one_where_class_1_has_the_higher_decisions_and_zero_where_it_has_the_lower() -> None:
    y, decision = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[-2.0], [-1.0], [1.0], [2.0]])
    once = np.ones((1, 4))
    assert _score("roc_auc", y, decision, once) == 1.0
    assert _score("roc_auc", y, -decision, once) == 0.0
    assert _score("roc_auc", y, np.zeros_like(decision), once) == 0.5


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 / 3])
@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_correlation_with_constant_predictions_is_undefined(metric: str, value: float) -> None:
    y = np.random.default_rng(0).normal(size=(30, 1))
    assert np.isnan(_score(metric, y, np.full((30, 1), value), np.ones((1, 30)))).all()


@pytest.mark.parametrize("metric", ["balanced_accuracy", "roc_auc"])
def test_a_score_without_one_class_is_undefined(metric: str) -> None:
    assert np.isnan(_score(metric, np.ones((5, 1)), np.ones((5, 1)), np.ones((1, 5)))).all()


def test_chance_is_what_a_blind_guess_scores() -> None:
    y = np.repeat([0.0, 1.0], [30, 10])
    guess, once = -np.ones((40, 1)), np.ones((1, 40))
    for metric in ("accuracy", "balanced_accuracy"):
        assert _score(metric, y[:, None], guess, once) == chance(metric, y)
    assert chance("r2", y) == _score("r2", y[:, None], np.full((40, 1), y.mean()), once) == 0.0


def _several(n: int = 60, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    y = rng.permutation(np.arange(n) % n_classes).astype(float)
    decision = rng.normal(size=(n, n_classes))
    decision[np.arange(n), y.astype(int)] += 0.7
    return y, decision


@pytest.mark.parametrize("is_weighted", [True, False])
def test_scores_of_several_classes_equal_scikit_learn(is_weighted: bool) -> None:
    y, decision = _several()
    counts = np.random.default_rng(0).integers(0, 3, len(y)) if is_weighted else np.ones(len(y), dtype=int)
    rows = np.repeat(np.arange(len(y)), counts)
    predicted = decision.argmax(axis=1).astype(float)
    held = Held(y[:, None], predicted[:, None], decision[:, None, :])
    weights = counts[None].astype(float) if is_weighted else None
    expected = {
        "balanced_accuracy": metrics.balanced_accuracy_score(y[rows], predicted[rows]),
        "accuracy": metrics.accuracy_score(y[rows], predicted[rows]),
        "roc_auc": np.mean([metrics.roc_auc_score(y[rows] == c, decision[rows, c]) for c in range(4)]),
    }
    for metric, value in expected.items():
        assert CLASS_SCORES[metric](held, weights)[0, 0] == pytest.approx(value, abs=1e-12)
    assert chance("balanced_accuracy", y) == 0.25
