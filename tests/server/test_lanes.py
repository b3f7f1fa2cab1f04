"""An engine of several lanes: as many batches at a time, no more waiting, every prompt once."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import EngineError, Job, Prompt, RowSpec
from stratoscope_server.engines.synthetic import SyntheticRunner
from stratoscope_wire import Block, Column
from stratoscope_wire.request import Dtype

WAIT_SECONDS = 10.0


class CountingRunner(SyntheticRunner):
    """Counts its batches, and fails those of some prompts after a while."""

    def __init__(self, failing: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.begun: list[str] = []
        self._failing = failing or {}

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        """Run one batch."""
        self.begun.append(prompts[0].stimulus_id)
        if prompts[0].stimulus_id in self._failing:
            time.sleep(self._failing[prompts[0].stimulus_id])
            raise EngineError("broken", f"{prompts[0].stimulus_id} cannot be computed")
        return super().run(prompts, columns, dtype)


def job_of(n_prompts: int, runner: SyntheticRunner) -> Job:
    rows = (RowSpec("last", np.array([2], np.int32), pooled=False),)
    prompts = tuple(Prompt(f"s{index}", np.array([index, 1, 2], np.int32), rows) for index in range(n_prompts))
    return Job("r", prompts, runner.card.columns(["resid_post"], [0]), "float32")


def test_two_lanes_compute_two_batches_of_a_job_at_the_same_time() -> None:
    met = threading.Barrier(2)
    at_once: list[int] = []

    def enter(count: int) -> None:
        at_once.append(count)
        # Breaks, and fails the batch, unless another one is there too.
        met.wait(WAIT_SECONDS)

    runner = CountingRunner()
    engine = BatchedEngine(runner, 3, lanes=2, enter_lane=enter)

    async def names() -> list[str]:
        found = [name async for block in engine.capture(job_of(6, runner)) for name in block.stimulus_id]
        await engine.close()
        return found

    assert asyncio.run(names()) == [f"s{index}" for index in range(6)]
    assert at_once == [2] * 6
    assert engine.status.pass_prompts is not None
    assert engine.status.pass_prompts.n_passes == 6


def test_a_job_of_one_batch_is_told_that_it_is_alone_each_time() -> None:
    at_once: list[int] = []
    runner = CountingRunner()
    engine = BatchedEngine(runner, 1024, lanes=2, enter_lane=at_once.append)

    async def drain() -> None:
        for _ in range(3):
            assert [block async for block in engine.capture(job_of(6, runner))]
        await engine.close()

    asyncio.run(drain())
    assert at_once == [1, 1, 1]


def test_jobs_of_one_batch_that_meet_are_told_of_one_another() -> None:
    at_once: list[int] = []
    met = threading.Barrier(2)
    entered = threading.Event()

    def enter(count: int) -> None:
        at_once.append(count)
        entered.set()
        met.wait(WAIT_SECONDS)

    runner = CountingRunner()
    engine = BatchedEngine(runner, 1024, lanes=2, enter_lane=enter)

    async def drain() -> None:
        assert [block async for block in engine.capture(job_of(2, runner))]

    async def meet() -> None:
        first = asyncio.create_task(drain())
        assert await asyncio.to_thread(entered.wait, WAIT_SECONDS)
        await asyncio.gather(first, drain())
        await engine.close()

    asyncio.run(meet())
    assert at_once == [1, 2]


def test_a_slow_reader_holds_one_batch_more_than_there_are_lanes() -> None:
    runner = CountingRunner()
    engine = BatchedEngine(runner, 3, lanes=2)

    async def read_slowly() -> list[int]:
        begun = []
        async for _ in engine.capture(job_of(8, runner)):
            # Long enough for every batch that was handed out to begin.
            await asyncio.sleep(0.2)
            begun.append(len(runner.begun))
        await engine.close()
        return begun

    assert asyncio.run(read_slowly()) == [3, 4, 5, 6, 7, 8, 8, 8]


def test_when_batches_fail_together_the_first_is_told_of_and_nobody_complains(caplog: pytest.LogCaptureFixture) -> None:
    runner = CountingRunner(failing={"s0": 0.3, "s1": 0.0})
    engine = BatchedEngine(runner, 3, lanes=2)

    async def fail() -> None:
        with pytest.raises(EngineError, match="s0 cannot be computed"):
            _ = [block async for block in engine.capture(job_of(4, runner))]
        await engine.close()
        gc.collect()

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        asyncio.run(fail())
    assert runner.begun[:2] == ["s0", "s1"]
    assert not caplog.records
