"""The benchmarks of store, fits, memory and growth run, and what they measure can be held against its limit."""

import math
from collections.abc import Callable, Sequence

import pytest
from throughput import fitting, memory, scaling, store
from throughput.figure import Figure, ratio

SMALL: dict[str, Callable[[], list[Figure]]] = {
    "store": lambda: store.measure(n_stimuli=12, d_model=64, n_layers=2, rounds=1, shard_bytes=2048),
    "fitting": lambda: fitting.measure(n_stimuli=60, d_model=16, n_layers=1, rounds=1),
    "memory": lambda: memory.measure(request_mib=1, shard_mib=1, times=1),
    "scaling": lambda: scaling.measure(
        texts=(2, 4, 8), tokens=(4, 8, 16), layers=(1, 2, 3), stimuli=(8, 16, 32), fit_n=(30, 40, 50),
        fit_d=(8, 12, 16), rounds=1,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("module", SMALL)
def test_figures_are_finite_and_limits_were_measured_in_the_same_rounds(module: str) -> None:
    figures = SMALL[module]()
    by_name = {figure.name: figure for figure in figures}
    assert len(by_name) == len(figures), "names are unique"
    held = [figure for figure in figures if figure.limit]
    assert held or module == "scaling"
    for figure in figures:
        assert figure.values
        assert all(map(math.isfinite, figure.values))
    for figure in held:
        assert ratio(figure, by_name[figure.limit]) > 0


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(power: float) -> None:
    sizes: Sequence[float] = (10, 20, 40, 80)
    exponent, low, high = scaling.fit_exponent(sizes, [3 * size**power for size in sizes])
    assert exponent == pytest.approx(power)
    assert low == pytest.approx(high)


def test_a_fault_of_growth_lies_outside_the_interval_of_a_straight_line() -> None:
    sizes: Sequence[float] = (10, 20, 40, 80, 160)
    noise = (1.02, 0.98, 1.01, 0.99, 1.0)
    _, low, high = scaling.fit_exponent(sizes, [size**1.5 * factor for size, factor in zip(sizes, noise, strict=True)])
    assert low > 1.0
    assert low < 1.5 < high
