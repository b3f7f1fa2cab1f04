"""Turns between neighbouring layers: found where they are, not found in what only looks like them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stratoscope.study.coordination import detrending, exchanged, take_turns, trade_off

Floats = NDArray[np.float64]
ALPHA = 0.05


def bump(n_layers: int) -> Floats:
    depth = np.linspace(0, 1, n_layers)
    return np.asarray(0.5 + 0.3 * np.exp(-(((depth - 0.4) / 0.25) ** 2)))


def halves(signals: list[Floats], rng: np.random.Generator, n_splits: int = 3) -> Floats:
    """Curves of both halves: the signal, and noise that neighbouring layers share, as stimuli make it."""
    n_layers = len(signals[0])
    curves = np.empty((len(signals), n_splits, 2, n_layers))
    for target, signal in enumerate(signals):
        for split, half in np.ndindex(n_splits, 2):
            steps = rng.normal(0, 0.01, n_layers)
            curves[target, split, half] = bump(n_layers) + signal + np.cumsum(steps) / 3 + rng.normal(0, 0.01, n_layers)
    return curves


def rate(found: list[bool]) -> float:
    return sum(found) / len(found)


def most_by_chance(n: int) -> float:
    """A rate of 0.05 over n simulations stays below this in 99.9 % of cases."""
    return ALPHA + 3.1 * float(np.sqrt(ALPHA * (1 - ALPHA) / n))


@pytest.mark.parametrize("n_layers", [28, 80])
def test_planted_turns_are_found(n_layers: int) -> None:
    rng = np.random.default_rng(1)
    turns = np.where(np.arange(n_layers) % 2, 0.02, -0.02)
    for _ in range(10):
        found = take_turns(halves([turns, -turns], rng), n_draws=400)
        assert found.reliability_p <= ALPHA
        assert found.lag1_p <= ALPHA
        assert found.lag1 < found.null_low


@pytest.mark.parametrize("n_layers", [28, 80])
def test_a_smooth_curve_with_noise_has_no_turns(n_layers: int) -> None:
    rng = np.random.default_rng(2)
    verdicts = []
    for _ in range(100):
        found = take_turns(halves([np.zeros(n_layers)] * 2, rng), n_draws=200)
        verdicts.append(found.reliability_p <= ALPHA and found.lag1_p <= ALPHA)
    assert rate(verdicts) <= most_by_chance(100)


def test_reliable_deviations_in_no_order_are_not_taken_for_turns() -> None:
    """White deviations that both halves share zig-zag in two thirds of the layers; that is what the null must hold."""
    rng = np.random.default_rng(3)
    verdicts, reliable, zigzag = [], [], []
    for _ in range(100):
        signal = rng.normal(0, 0.03, 60)
        steps = np.diff(signal)
        zigzag.append(float(np.mean(steps[1:] * steps[:-1] < 0)))
        found = take_turns(halves([signal], rng), n_draws=200)
        verdicts.append(found.lag1_p <= ALPHA)
        reliable.append(found.reliability_p <= ALPHA)
    assert np.mean(zigzag) > 0.62  # the precondition: there is a zig-zag to be fooled by
    assert rate(reliable) > 0.95
    assert rate(verdicts) <= most_by_chance(100)


def test_targets_that_are_up_in_different_layers_trade_off_and_unrelated_ones_do_not() -> None:
    rng = np.random.default_rng(4)
    signal = rng.normal(0, 0.03, 60)
    against, unrelated = halves([signal, -signal], rng), []
    found = trade_off(against[0], against[1], n_draws=400)
    assert found.correlation < -0.5
    assert found.p <= ALPHA
    for _ in range(100):
        a, b = halves([rng.normal(0, 0.03, 60), rng.normal(0, 0.03, 60)], rng)
        unrelated.append(trade_off(a, b, n_draws=200).p <= ALPHA)
    assert rate(unrelated) <= most_by_chance(100)


def test_detrending_takes_every_parabola_away_and_leaves_turns() -> None:
    layers = np.arange(30.0)
    matrix = detrending(30, 8)
    assert np.abs(matrix @ (0.2 + 0.1 * layers - 0.01 * layers**2)).max() < 1e-10
    turns = np.where(layers % 2, 1.0, -1.0)
    assert np.corrcoef(matrix @ turns, turns)[0, 1] > 0.95


def test_layers_are_exchanged_near_by_and_each_once() -> None:
    orders = exchanged(40, 8, 300, seed=0)
    assert (np.sort(orders, axis=1) == np.arange(40)).all()
    assert np.abs(orders - np.arange(40)).max() < 8
    assert len(np.unique(orders, axis=0)) == 300
