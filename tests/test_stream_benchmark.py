"""The benchmark of the stream runs, and every figure can be held against its limit."""

import math

from throughput.figure import ratio
from throughput.stream import measure


def test_every_stage_is_measured_beside_the_socket_in_the_same_rounds() -> None:
    figures = {figure.name: figure for figure in measure(n_texts=2, n_tokens=8, rounds=2, memory_factor=4)}
    held = [figure for figure in figures.values() if figure.limit]
    assert {figure.stage for figure in figures.values()} == {"limit", "wire", "receive", "write", "memory"}
    assert len(held) == 6
    for figure in figures.values():
        assert all(math.isfinite(value) and value > 0 for value in figure.values), figure.name
    assert all(ratio(figure, figures[figure.limit]) > 0 for figure in held)
