"""Shared memory is handed out in turn and without overlap, what is unwritten is no number, and nothing has a name."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope_server.engines.vllm.arena import Arena


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), max_size=60))
def test_regions_never_overlap_and_all_room_comes_back(actions: list[tuple[bool, int]]) -> None:
    async def run() -> None:
        arena = Arena(4096)
        held: list[tuple[int, int]] = []
        for give_back, size in actions:
            if give_back and held:
                arena.release(held.pop(size % len(held))[0])
            else:
                try:
                    offset = await asyncio.wait_for(arena.reserve(size), 0.001)
                except TimeoutError:
                    continue
                assert offset % 64 == 0
                assert offset + size <= arena.n_bytes
                assert all(offset + size <= begin or begin + length <= offset for begin, length in held)
                held.append((offset, size))
        for offset, _ in held:
            arena.release(offset)
        assert arena.used_bytes == 0
        assert await asyncio.wait_for(arena.reserve(4096), 1) == 0
        arena.close()

    asyncio.run(run())


def test_who_waits_is_served_in_turn_once_there_is_room() -> None:
    async def run() -> None:
        arena = Arena(1024)
        first = await arena.reserve(1024)
        waiting = [asyncio.create_task(arena.reserve(size)) for size in (1024, 64)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting), "the smaller one does not overtake"
        arena.release(first)
        await asyncio.sleep(0.01)
        assert [task.done() for task in waiting] == [True, False]
        arena.release(waiting[0].result())
        await asyncio.sleep(0.01)
        assert waiting[1].done()
        arena.close()

    asyncio.run(run())


def test_who_stops_waiting_leaves_no_hole() -> None:
    async def run() -> None:
        arena = Arena(1024)
        first = await arena.reserve(1024)
        impatient, late, patient = (asyncio.create_task(arena.reserve(size)) for size in (1024, 960, 64))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait({impatient})
        # Served and cancelled in the same moment: the region comes back.
        arena.release(first)
        late.cancel()
        await asyncio.wait({late, patient})
        assert late.cancelled()
        assert arena.used_bytes == 64
        arena.close()

    asyncio.run(run())


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_what_nobody_wrote_is_not_a_number(kind: type[np.generic]) -> None:
    async def run() -> None:
        arena = Arena(4096)
        offset = await arena.reserve(256)
        arena.view(offset, 16, kind)[:] = 1
        arena.release(offset)
        assert await arena.reserve(256) == offset
        assert np.isnan(arena.view(offset, 16, kind)).all(), "another request's values"
        arena.close()

    asyncio.run(run())


def test_more_than_the_arena_is_refused_at_once() -> None:
    async def run() -> None:
        arena = Arena(1024)
        with pytest.raises(ValueError, match="1088 bytes were asked of an arena of 1024"):
            await arena.reserve(1025)
        arena.close()

    asyncio.run(run())


def test_the_memory_has_no_name_in_any_file_system() -> None:
    before = set(Path("/dev/shm").iterdir())
    arena = Arena(1 << 20)
    assert set(Path("/dev/shm").iterdir()) == before
    assert str(Path(f"/proc/self/fd/{arena.fd}").readlink()).startswith("/memfd:")
    arena.close()
