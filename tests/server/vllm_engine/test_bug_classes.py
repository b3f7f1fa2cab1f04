"""What other systems got wrong, provoked here; and again with each guard taken out, to see that these tests can fail.

The model is tiny and every step small, so that prompts come in chunks, are preempted and run side by side.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratoscope_server.engines.protocol import EngineError, Prompt
from stratoscope_server.engines.vllm import traffic as traffic_module

Running = Any
Compare = Callable[..., float]
WORDS = [
    "church",
    "organ",
    "town",
    "day",
    "play",
    "listen",
    "old",
    "every",
    "the",
    "and",
    "a",
    "in",
    "of",
    "one",
    "two",
]
BOUND = 1e-4
"""For one column of one prompt, which may be one row; `test_parity` holds each layer to 1e-5 over all prompts."""


@pytest.fixture(scope="module")
def folder(vllm_folder: Callable[[str], Path]) -> Path:
    return vllm_folder("llama")


@pytest.fixture(scope="module")
def engine(folder: Path, start_engine: Callable[..., Any]) -> Iterator[Running]:
    overrides = {
        "worker_cls": "stratoscope_test_workers.WatchedWorker",
        "block_size": 32,
        # Four blocks hold the longest prompt; with 16 tokens of each prompt a step, several grow at once, and collide.
        "num_gpu_blocks_override": 11,
        "long_prefill_token_threshold": 16,
        "long_prefill_token_threshold_adaptive": False,
    }
    with start_engine(folder, overrides=overrides) as running:
        running.report()
        yield running


@pytest.fixture
def broken(engine: Running) -> Iterator[Callable[[str], None]]:
    """Take a guard out, until the test is over."""
    yield lambda name: engine.tell("sabotage", name)
    engine.tell("sabotage", "none")


@pytest.fixture(scope="module")
def worst(folder: Path, reference: Callable[..., Any], distance: Callable[..., float]) -> Compare:
    """The largest relative L2 error of any column of any prompt against Hugging Face."""

    def compare(prompts: Sequence[Prompt], found: dict[str, Any]) -> float:
        errors = []
        for prompt in prompts:
            states = reference(folder, prompt)
            for column, rows in found[prompt.stimulus_id].items():
                expected = [
                    states[column][spec.positions].astype(np.float64).mean(axis=0, keepdims=True)
                    if spec.pooled
                    else states[column][spec.positions]
                    for spec in prompt.rows
                ]
                errors.append(distance(rows, np.concatenate(expected)))
        return max(errors)

    return compare


def mixed_texts(n_texts: int, seed: int = 0, longest: int = 40) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, longest))) for _ in range(n_texts)]


def long_prompts(running: Running, n_prompts: int, seed: int, select: Sequence[Any] = ("all",)) -> list[Prompt]:
    """Prompts that need several steps and most of what the cache can hold."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS, 78)) for _ in range(12 * n_prompts)]
    chosen = [p for p in running.prompts(texts, select) if 97 <= p.n_tokens <= 126][:n_prompts]
    assert len(chosen) == n_prompts
    return chosen


def test_64_concurrent_prompts_of_mixed_lengths_each_get_their_own_rows(engine: Running, worst: Compare) -> None:
    prompts = engine.prompts(mixed_texts(64))
    found = engine.capture(prompts)
    steps = engine.report()["steps"]
    assert max(len(step) for step in steps) >= 4, "no step held several prompts"
    assert worst(prompts, found) <= BOUND


def test_rows_taken_in_another_order_than_the_runners_are_noticed(
    engine: Running, broken: Callable[[str], None]
) -> None:
    broken("order")
    with pytest.raises(EngineError, match="does not hold the prompt's tokens"):
        engine.capture(engine.prompts(mixed_texts(16, seed=1)))


def test_without_that_check_swapped_rows_would_be_wrong_ones(
    engine: Running, broken: Callable[[str], None], worst: Compare
) -> None:
    broken("order_unchecked")
    # Of one length, so that nothing else could give the swap away.
    by_length: dict[int, list[Prompt]] = {}
    for prompt in engine.prompts(mixed_texts(60, seed=2, longest=12)):
        by_length.setdefault(prompt.n_tokens, []).append(prompt)
    prompts = max((group for length, group in by_length.items() if length < 16), key=len)[:3]
    assert len(prompts) == 3
    found = engine.capture(prompts)
    assert max(len(step) for step in engine.report()["steps"]) >= 2
    assert worst(prompts, found) > 0.1


def test_a_prompt_in_chunks_gives_every_position_once_and_one_last_row(engine: Running, worst: Compare) -> None:
    (prompt,) = long_prompts(engine, 1, 13, ["all", "last", "mean"])
    engine.report()
    found = engine.capture([prompt])
    chunks = [(start, count) for step in engine.report()["steps"] for _, start, count in step]
    assert len(chunks) > 1
    assert [start for start, _ in chunks[1:]] == [start + count for start, count in chunks[:-1]]
    assert all(len(rows) == prompt.n_tokens + 2 for rows in found[prompt.stimulus_id].values())
    assert worst([prompt], found) <= BOUND


def test_every_step_of_a_long_prompt_is_a_sign_of_life(engine: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    (prompt,) = long_prompts(engine, 1, 14, ["last"])
    traffic = engine.engine._traffic
    notes: list[Any] = []
    take = traffic.take_note

    def take_and_keep(exit_: int, note: Any) -> None:
        notes.append(note)
        take(exit_, note)

    monkeypatch.setattr(traffic, "take_note", take_and_keep)
    engine.report()
    engine.capture([prompt])
    n_steps = len(engine.report()["steps"])
    assert n_steps > 1
    assert sum(not note.released for note in notes) == n_steps


@pytest.mark.parametrize("select", ["all", "mean", "last"])
def test_preempted_prompts_give_every_row_once(select: str, engine: Running, worst: Compare) -> None:
    prompts = long_prompts(engine, 12, 3, [select])
    engine.report()
    found = engine.capture(prompts)
    assert engine.report()["resumed"] > 0, "nothing was preempted"
    assert worst(prompts, found) <= BOUND


def test_without_memory_of_what_was_taken_a_preempted_mean_would_be_wrong(
    engine: Running, broken: Callable[[str], None], worst: Compare
) -> None:
    broken("memory")
    prompts = long_prompts(engine, 12, 3, ["mean"])
    engine.report()
    found = engine.capture(prompts)
    assert engine.report()["resumed"] > 0
    assert worst(prompts, found) > 1e-3


def shared_prefix(engine: Running, select: Sequence[Any], seed: int) -> list[Prompt]:
    prefix = " ".join(np.random.default_rng(seed).choice(WORDS, 75))
    prompts: list[Prompt] = engine.prompts([f"{prefix} {end}" for end in ("church", "organ and town")], select)
    assert all(prompt.n_tokens <= 127 for prompt in prompts)
    same = [a == b for a, b in zip(prompts[0].token_ids, prompts[1].token_ids, strict=False)]
    assert same.index(False) >= 64, "the prompts do not share two blocks"
    return prompts


def first_starts(engine: Running) -> list[int]:
    """Where each prompt that ran began, in the order in which they came."""
    starts: dict[str, int] = {}
    for step in engine.report()["steps"]:
        for request_id, start, _ in step:
            starts.setdefault(request_id, start)
    return list(starts.values())


def test_last_reads_the_prefix_cache_and_is_still_right(engine: Running, worst: Compare) -> None:
    prompts = shared_prefix(engine, ["last"], seed=4)
    engine.report()
    found: dict[str, Any] = {}
    for prompt in prompts:
        found |= engine.capture([prompt])
    starts = first_starts(engine)
    assert starts[0] == 0
    assert starts[1] >= 64, "the second prompt did not read the cache"
    assert worst(prompts, found) <= BOUND


@pytest.mark.parametrize("select", [["all"], ["mean"], [0, "last"]])
def test_selections_of_cached_positions_bypass_the_cache(select: list[Any], engine: Running, worst: Compare) -> None:
    prompts = shared_prefix(engine, ["last"], seed=5)
    engine.capture(prompts[:1])
    prompts = shared_prefix(engine, select, seed=5)
    engine.report()
    found = engine.capture(prompts)
    assert first_starts(engine) == [0, 0]
    assert worst(prompts, found) <= BOUND


def test_a_cached_position_that_is_wanted_fails_its_request_and_no_other(
    engine: Running, monkeypatch: pytest.MonkeyPatch, worst: Compare
) -> None:
    engine.capture(shared_prefix(engine, ["last"], seed=6)[:1])
    monkeypatch.setattr(traffic_module, "needs_last_only", lambda _: True)
    prompts = shared_prefix(engine, ["all"], seed=6)
    with pytest.raises(EngineError, match="stimulus 's1': position 0 was never computed"):
        engine.capture(prompts[1:])
    good = engine.prompts(["A town and an organ"], ["last"])
    assert worst(good, engine.capture(good)) <= BOUND


def test_without_that_check_missing_rows_are_still_refused(
    engine: Running, broken: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.capture(shared_prefix(engine, ["last"], seed=7)[:1])
    broken("contiguity")
    monkeypatch.setattr(traffic_module, "needs_last_only", lambda _: True)
    prompts = shared_prefix(engine, ["all"], seed=7)
    found = engine.capture(prompts[1:])
    # What nobody wrote is no number, so that the encoder refuses to send it.
    assert np.isnan(found["s1"]["resid_post.0"][:64]).all()


@pytest.mark.parametrize(("guard", "site"), [("residual", "resid_post"), ("last_layer", "resid_post")])
def test_without_a_guard_the_rows_would_be_wrong(
    guard: str, site: str, engine: Running, broken: Callable[[str], None], worst: Compare
) -> None:
    prompts = engine.prompts(mixed_texts(8, seed=8))
    assert worst(prompts, engine.capture(prompts)) <= BOUND
    broken(guard)
    found = engine.capture(prompts)
    wrong = {stimulus: {c: s for c, s in rows.items() if c.startswith(site)} for stimulus, rows in found.items()}
    assert worst(prompts, wrong) > 1e-2


def test_cancelled_neighbours_leave_the_others_right_and_their_room_free(engine: Running, worst: Compare) -> None:
    staying = engine.prompts(mixed_texts(20, seed=9))
    leaving = engine.prompts(mixed_texts(40, seed=10))

    async def leave_early() -> None:
        async with aclosing(engine.engine.capture(engine.job(leaving))) as blocks:
            async for _ in blocks:
                return

    async def both() -> dict[str, Any]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(leave_early())
            stayed = tasks.create_task(engine.capture_async(engine.job(staying)))
            tasks.create_task(leave_early())
        async with asyncio.timeout(10):
            while engine.engine.status.ring_used_bytes:
                await asyncio.sleep(0.05)
        result: dict[str, Any] = stayed.result()
        return result

    assert worst(staying, engine.do(both())) <= BOUND
    assert engine.engine.status.requests == 0


def test_rows_of_every_type_are_those_of_float32_rounded(engine: Running) -> None:
    prompts = engine.prompts(mixed_texts(6, seed=11))
    exact = engine.capture(prompts)
    half = engine.capture(prompts, dtype="float16")
    brain = engine.capture(prompts, dtype="bfloat16")
    for stimulus, rows in exact.items():
        for column, states in rows.items():
            np.testing.assert_allclose(half[stimulus][column].astype(np.float32), states, rtol=2e-3, atol=1e-3)
            widened = (brain[stimulus][column].astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_allclose(widened, states, rtol=1e-2, atol=1e-3)


def test_positions_computed_in_order_are_what_the_steps_say(engine: Running) -> None:
    prompts = long_prompts(engine, 6, 12)
    engine.report()
    engine.capture(prompts)
    by_request: dict[str, list[tuple[int, int]]] = {}
    for step in engine.report()["steps"]:
        for request_id, start, count in step:
            by_request.setdefault(request_id, []).append((start, start + count))
    assert len(by_request) == 6
    for spans in by_request.values():
        assert all(later[0] in (earlier[1], 0) for earlier, later in pairwise(spans))


def test_a_tap_that_misses_a_column_ends_the_engine_and_every_stream_with_an_error(
    folder: Path, start_engine: Callable[..., Any]
) -> None:
    with start_engine(folder, overrides={"worker_cls": "stratoscope_test_workers.WatchedWorker"}) as running:
        prompts = running.prompts(["A church and organ"])
        running.capture(prompts)
        running.tell("sabotage", "hook")
        with pytest.raises(EngineError, match="the engine is dead"):
            running.capture(prompts)
        with pytest.raises(EngineError, match="the engine is dead"):
            running.do(running.engine.check_ready())
