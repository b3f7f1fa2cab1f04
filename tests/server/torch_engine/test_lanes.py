"""Batches that a model computes at the same time: each gives what it gives alone, and only what it was asked for."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Job
from stratoscope_server.engines.torch.lanes import lanes_on
from stratoscope_wire import Block
from tests.server.architectures import ARCHITECTURES
from tests.server.torch_engine.conftest import LoadTiny, ask

WAIT_SECONDS = 30.0
TEXTS = [f"A church and organ number {index} play" for index in range(8)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_jobs_that_run_at_the_same_time_get_their_own_columns_and_the_numbers_they_get_alone(
    load_tiny: LoadTiny, architecture: str
) -> None:
    runner = load_tiny(architecture)
    met = threading.Barrier(2)
    together = BatchedEngine(runner, 16, lanes=2, enter_lane=lambda _: _wait(met))
    alone = BatchedEngine(runner, 16)
    jobs = [
        Job("a", tuple(ask(runner, TEXTS)), runner.card.columns(["resid_post", "heads"], [0]), "float32"),
        Job("b", tuple(ask(runner, TEXTS)), runner.card.columns(["embed", "mlp_out"]), "float32"),
    ]

    async def collect(engine: BatchedEngine, *wanted: Job) -> list[list[Block]]:
        found = await asyncio.gather(*(_drain(engine, job) for job in wanted))
        return list(found)

    expected = [asyncio.run(collect(alone, job))[0] for job in jobs]
    assert all(len(blocks) > 2 for blocks in expected), "the texts must not fit one batch"
    for found, blocks in zip(asyncio.run(collect(together, *jobs)), expected, strict=True):
        assert [block.stimulus_id for block in found] == [block.stimulus_id for block in blocks]
        for block, other in zip(found, blocks, strict=True):
            for values, others in zip(block.values, other.values, strict=True):
                np.testing.assert_allclose(values, others, rtol=1e-5, atol=1e-6)
    for engine in (together, alone):
        asyncio.run(engine.close())


def test_two_lanes_on_a_processor_share_its_threads_and_a_lone_batch_has_all(load_tiny: LoadTiny) -> None:
    before = torch.get_num_threads()
    assert before >= 2, "needs two threads"
    lanes = lanes_on(load_tiny("llama").device)
    assert lanes.count == 2
    seen: list[int] = []

    def work() -> None:
        for at_once in (1, 2):
            lanes.enter(at_once)
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, before // 2]
    # Of other threads, those which ran before keep theirs.
    assert torch.get_num_threads() == before
    lanes.enter(1)


async def _drain(engine: BatchedEngine, job: Job) -> list[Block]:
    return [block async for block in engine.capture(job)]


def _wait(met: threading.Barrier) -> None:
    # Two jobs have an even number of batches between them: each finds another.
    met.wait(WAIT_SECONDS)
