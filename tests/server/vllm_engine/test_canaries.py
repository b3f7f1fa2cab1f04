"""Staging and ring are used again and again: what one request left there never reaches another."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratoscope_server.engines.vllm import arena

Running = Any
CANARY = 0x7F
TEXTS = ["A church and an organ", "one", "The town listens to the organ every day and every day", "two words"]
SELECT = ("last", "all", "mean", 0)


@pytest.fixture(scope="module")
def engine(vllm_folder: Callable[[str], Path], start_engine: Callable[..., Any]) -> Iterator[Running]:
    overrides = {"worker_cls": "stratoscope_test_workers.WatchedWorker"}
    with start_engine(vllm_folder("llama"), overrides=overrides, ring_bytes=1 << 20) as running:
        yield running


def holds_canary(states: dict[str, dict[str, Any]]) -> bool:
    return any(bytes([CANARY]) * 8 in rows.tobytes() for columns in states.values() for rows in columns.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_memory_full_of_canaries_gives_the_same_rows_and_no_canary(
    dtype: str, engine: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = engine.prompts(TEXTS, SELECT)
    before = engine.capture(prompts, dtype=dtype)
    monkeypatch.setattr(arena, "_UNWRITTEN", CANARY)
    engine.tell("sabotage", "canaries")
    try:
        for _ in range(5):
            after = engine.capture(prompts, dtype=dtype)
            assert not holds_canary(after)
            for stimulus, columns in before.items():
                for column, rows in columns.items():
                    assert np.array_equal(after[stimulus][column], rows), (stimulus, column)
    finally:
        engine.tell("sabotage", "none")


def test_a_tap_that_misses_a_column_lets_a_canary_out_where_the_guard_against_it_is_gone(
    engine: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the test above can fail."""
    monkeypatch.setattr(arena, "_UNWRITTEN", CANARY)
    engine.tell("sabotage", "canaries_unwritten")
    try:
        assert holds_canary(engine.capture(engine.prompts(TEXTS, SELECT)))
    finally:
        engine.tell("sabotage", "none")
