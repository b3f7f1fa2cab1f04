"""Order of peaks and rise-fall-rise, on simulated experiments whose truth is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stratoscope.study.order import order_of_peaks
from stratoscope.study.resampling import Curve, smoothed
from stratoscope.study.rise_fall import contrast, find_windows, rise_fall_rise

Floats = NDArray[np.float64]
N_SIMULATIONS = 150


def simulated(mean: Floats, rng: np.random.Generator, n_stimuli: int = 100) -> Curve:
    """Score stimuli whose layers are correlated, as a residual stream has them, with a bootstrap over stimuli."""
    noise = rng.normal(size=(n_stimuli, len(mean)))
    for layer in range(1, len(mean)):
        noise[:, layer] = 0.8 * noise[:, layer - 1] + 0.6 * noise[:, layer]
    scores = mean + 0.4 * noise
    weights = rng.multinomial(n_stimuli, np.full(n_stimuli, 1 / n_stimuli), size=300) / n_stimuli
    return Curve(np.arange(len(mean)), scores.mean(axis=0), weights @ scores)


def peak(n_layers: int, depth: float, width: float = 0.2, height: float = 0.3) -> Floats:
    return np.asarray(height * np.exp(-(((np.linspace(0, 1, n_layers) - depth) / width) ** 2)))


def most_by_chance(rate: float) -> float:
    return rate + 3.1 * float(np.sqrt(rate * (1 - rate) / N_SIMULATIONS))


@pytest.mark.parametrize("n_layers", [28, 80])
def test_a_planted_dip_is_found_and_where_it_is(n_layers: int) -> None:
    rng = np.random.default_rng(0)
    mean = 0.5 + peak(n_layers, 0.2, 0.08) + peak(n_layers, 0.7, 0.1, 0.2)
    found = []
    for _ in range(40):
        windows = find_windows(simulated(mean, rng).scores, np.arange(n_layers))
        assert windows is not None
        found.append(rise_fall_rise(simulated(mean, rng), windows).p <= 0.05)
        first, trough, last = (sum(window) / 2 / (n_layers - 1) for window in windows)
        assert abs(first - 0.2) < 0.15
        assert 0.3 < trough < 0.6
        assert abs(last - 0.7) < 0.2
    assert np.mean(found) > 0.9


@pytest.mark.parametrize("shape", ["flat", "one peak", "plateau"])
def test_no_dip_is_found_in_a_curve_without_one(shape: str) -> None:
    rng = np.random.default_rng(1)
    depth = np.linspace(0, 1, 30)
    mean = {
        "flat": np.full(30, 0.6),
        "one peak": 0.5 + peak(30, 0.4),
        "plateau": 0.5 + 0.3 / (1 + np.exp(-(depth - 0.2) * 30)),
    }[shape]
    found, located = [], 0
    for _ in range(N_SIMULATIONS):
        windows = find_windows(simulated(mean, rng).scores, np.arange(30))
        located += windows is not None
        found.append(windows is not None and rise_fall_rise(simulated(mean, rng), windows).p <= 0.05)
    assert located > N_SIMULATIONS / 2  # noise alone offers dips: it is the test on other stimuli that refuses them
    assert np.mean(found) <= most_by_chance(0.05)


def test_the_same_stimuli_for_finding_and_testing_would_find_dips_that_are_not_there() -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(N_SIMULATIONS):
        curve = simulated(np.full(30, 0.6), rng)
        windows = find_windows(curve.scores, curve.layers)
        found.append(windows is not None and rise_fall_rise(curve, windows).p <= 0.05)
    assert np.mean(found) > 0.15


def test_too_few_layers_give_no_windows() -> None:
    assert find_windows(np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]), np.arange(8)) is None


def test_a_contrast_is_the_difference_of_the_windows_means() -> None:
    scores = np.array([0.1, 0.5, 0.7, 0.2, 0.3])
    curve = Curve(np.arange(5), scores, np.tile(scores, (100, 1)))
    found = contrast(curve, (1, 2), (3, 4))
    assert found.value == pytest.approx(0.6 - 0.25)
    assert found.low == found.high == pytest.approx(found.value)
    with pytest.raises(ValueError, match="window 7-9"):
        contrast(curve, (7, 9), (3, 4))


@pytest.mark.parametrize("n_layers", [28, 80])
def test_a_later_peak_is_called_later_and_an_earlier_one_not(n_layers: int) -> None:
    rng = np.random.default_rng(3)
    early, late = 0.5 + peak(n_layers, 0.2), 0.5 + peak(n_layers, 0.6)
    forward = [order_of_peaks(simulated(early, rng), simulated(late, rng)).verdict for _ in range(40)]
    backward = [order_of_peaks(simulated(late, rng), simulated(early, rng)).verdict for _ in range(40)]
    assert forward.count("holds") >= 38
    assert backward.count("does not hold") >= 38


@pytest.mark.parametrize("mean", [np.full(30, 0.6), 0.5 + peak(30, 0.4)], ids=["flat", "same peak"])
def test_equal_curves_are_not_put_in_order(mean: Floats) -> None:
    rng = np.random.default_rng(4)
    verdicts = [order_of_peaks(simulated(mean, rng), simulated(mean, rng)).verdict for _ in range(N_SIMULATIONS)]
    assert verdicts.count("holds") / N_SIMULATIONS <= most_by_chance(0.025)


def test_smoothing_is_a_running_mean_with_shorter_windows_at_the_ends() -> None:
    assert smoothed(np.array([0.0, 3.0, 6.0, 3.0]), 3).tolist() == pytest.approx([1.5, 3.0, 4.0, 4.5])


def test_falling_below_chance_is_no_dip() -> None:
    """Counterbalanced texts give scores below chance where nothing is to be read, and that is nothing lost."""
    scores = np.concatenate([np.full(6, 0.5), np.full(5, 0.3), np.full(19, 0.9)])
    assert find_windows(scores, np.arange(30)) is not None  # the precondition: it would be taken for one
    assert find_windows(scores, np.arange(30), chance=0.5) is None
    curve = Curve(np.arange(30), scores, np.tile(scores, (100, 1)))
    found = rise_fall_rise(curve, ((0, 2), (7, 9), (15, 17)), chance=0.5)
    assert found.fall.value == pytest.approx(0.0)
    assert found.p == 1.0
    assert found.rise.value == pytest.approx(0.4)
