"""The `Engine` over vLLM: prompts go in as requests with tickets, rows come out of shared memory."""

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import AsyncGenerator

import numpy as np
from vllm.v1.engine.async_llm import AsyncLLM

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.pretrained.tokenizing import FastTokenizer
from stratoscope_server.engines.protocol import EngineError, EngineStatus, Job
from stratoscope_server.engines.selfcheck import check_same, check_sums, known_prompt, states_of
from stratoscope_server.engines.vllm.arena import Arena
from stratoscope_server.engines.vllm.channel import Listener, Note
from stratoscope_server.engines.vllm.group import Group, region_bytes, split_groups
from stratoscope_server.engines.vllm.layout import column_offsets
from stratoscope_server.engines.vllm.traffic import Traffic
from stratoscope_server.engines.vllm.watch import Watch
from stratoscope_server.selection import row_keys
from stratoscope_wire import Block, ModelCard
from stratoscope_wire.dtypes import NUMPY_TYPES, Values, is_finite, value_bytes
from stratoscope_wire.sites import SITES


class VllmEngine:
    """vLLM with capture in its workers.

    A request's prompts are split into groups; each group gets a region of the arena before its prompts are admitted,
    so that a slow reader delays requests that capture, and nothing else. One request holds at most half of the arena.

    Parameters
    ----------
    llm
        The running engine.
    card
        What it serves.
    tokenizer
        The model's.
    arena
        Shared memory for rows.
    listener
        Channel to the workers, all of which have said hello.
    stall_seconds
        How long work may wait without a sign of the engine.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        card: ModelCard,
        tokenizer: FastTokenizer,
        arena: Arena,
        listener: Listener,
        stall_seconds: float,
    ) -> None:
        self._llm = llm
        self._card = card
        self._tokenizer = tokenizer
        self._arena = arena
        self._listener = listener
        numbers = {column.name: number for number, column in enumerate(card.columns(list(SITES)))}
        self._traffic = Traffic(llm, arena, numbers, len(listener.workers))
        self._watch = Watch(llm, self._traffic, stall_seconds)

    @property
    def card(self) -> ModelCard:
        """What model this is."""
        return self._card

    @property
    def tokenizer(self) -> FastTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def status(self) -> EngineStatus:
        """What can be measured now."""
        return EngineStatus(
            requests=self._traffic.n_prompts,
            ring_bytes=self._arena.n_bytes,
            ring_used_bytes=self._arena.used_bytes,
            ring_wait_seconds=self._traffic.wait_seconds,
            pass_prompts=self._traffic.passes.prompts.read(),
            pass_tokens=self._traffic.passes.tokens.read(),
        )

    @property
    def max_stimulus_bytes(self) -> int:
        """Size of the ring."""
        return self._arena.n_bytes

    def refuse(self, job: Job) -> None:
        """Refuse a stimulus whose rows do not fit the ring; see `Engine.refuse`."""
        for prompt in job.prompts:
            size = region_bytes([prompt], job.columns, job.dtype)
            if size > self._arena.n_bytes:
                raise EngineError(
                    "stimulus_too_large",
                    f"stimulus {prompt.stimulus_id!r} gives {size} bytes of rows; at most {self._arena.n_bytes} fit "
                    "the ring: ask for fewer sites, layers or positions, or start the server with more --ring-bytes",
                    status=413,
                )

    async def start(self) -> None:
        """Listen to the workers, and check every site on every rank with a known text.

        Raises
        ------
        ModelRefusedError
            If a column is not what it should be, or differs between ranks.
        """
        loop = asyncio.get_running_loop()
        self._listener.subscribe(_Relay(loop, self))
        self._watch.open()
        columns = self._card.columns(list(SITES))
        job = Job("self-check", (known_prompt(self._tokenizer),), columns, "float32")
        reference = None
        # In as many rounds as there are ranks, each rank copies each column once.
        for rotation in range(len(self._listener.workers)):
            try:
                (states,) = [states_of(_copy(block), columns) async for block in self.capture(job, rotation)]
            except EngineError as error:
                raise ModelRefusedError(f"model {self._card.model!r} failed the check at start: {error}") from error
            check_sums(self._card, states)
            if reference is not None:
                check_same(self._card, reference, states, "tensor-parallel ranks")
            reference = states
        # Not before: the first steps may compile kernels, for minutes.
        self._watch.start()

    async def capture(self, job: Job, rotation: int = 0) -> AsyncGenerator[Block, None]:
        """Yield one block per group, as they are completed; see `Engine.capture`.

        Parameters
        ----------
        job
            The request.
        rotation
            Shifts which rank copies which column; see `stratoscope_server.engines.vllm.layout.Run.owned`.
        """
        groups = list(split_groups(job.prompts, job.columns, job.dtype))
        largest = max(region_bytes(group, job.columns, job.dtype) for group in groups)
        room = asyncio.Semaphore(max(1, self._arena.n_bytes // 2 // largest))
        admitted: set[Group] = set()
        completed: asyncio.Queue[Group | Exception] = asyncio.Queue()

        async def feed() -> None:
            try:
                for prompts in groups:
                    await room.acquire()
                    group = await self._traffic.admit(prompts, job, rotation)
                    admitted.add(group)
                    group.done.add_done_callback(functools.partial(_put, completed, group))
            except Exception as error:  # noqa: BLE001 - raised where the groups are waited for
                completed.put_nowait(error)

        feeder = asyncio.create_task(feed())
        try:
            for _ in groups:
                group = await self._watch.unless_failed(completed.get())
                if isinstance(group, Exception):
                    raise group
                await group.done
                yield self._block(job, group)
                admitted.remove(group)
                self._traffic.conclude(group)
                room.release()
        finally:
            feeder.cancel()
            for group in admitted:
                self._traffic.conclude(group)

    async def check_ready(self) -> None:
        """Return if the engine answers; see `Engine.check_ready`."""
        if self._watch.failure.done():
            raise self._watch.failure.result()

    async def wait_failed(self) -> EngineError:
        """Return once the engine cannot answer any more; see `Engine.wait_failed`."""
        return await asyncio.shield(self._watch.failure)

    async def close(self) -> None:
        """Stop vLLM's processes and give the memory back."""
        await self._watch.stop()
        self._listener.unsubscribe()
        if self._llm.output_handler is not None:
            # Otherwise it reports the end of the processes as a failure.
            self._llm.output_handler.cancel()
        if self._watch.failure.done():
            # What hangs does not stop when it is asked to.
            for _, pid in self._listener.workers.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(self._llm.shutdown)
        self._listener.close()
        self._arena.close()

    def _block(self, job: Job, group: Group) -> Block:
        prompts = list(group.prompts.values())
        n_rows = sum(prompt.n_rows for prompt in prompts)
        offsets = column_offsets(job.columns, n_rows, value_bytes(job.dtype))
        kind = NUMPY_TYPES[job.dtype]
        values: list[Values] = [
            self._arena.view(group.offset + offset, n_rows * column.width, kind).reshape(n_rows, column.width)
            for column, offset in zip(job.columns, offsets, strict=False)
        ]
        block = Block(*row_keys(prompts), values)
        if job.dtype == "float16":
            _refuse_overflow(job, block)
        return block


class _Relay:
    """Carries what workers tell from the channel's threads to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: VllmEngine) -> None:
        self._loop = loop
        self._engine = engine

    def on_note(self, exit: int, note: Note) -> None:  # noqa: A002
        self._call(self._engine._traffic.take_note, exit, note)

    def on_gone(self, exit: int) -> None:  # noqa: A002
        self._call(self._engine._watch.fail, f"the worker at rank {exit} is gone")

    def _call(self, function: "object", *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: the server has stopped
            self._loop.call_soon_threadsafe(function, *args)  # type: ignore[arg-type]


def _put(completed: asyncio.Queue[Group | Exception], group: Group, _done: asyncio.Future[None]) -> None:
    completed.put_nowait(group)


def _copy(block: Block) -> Block:
    return Block(
        block.stimulus_id, block.selector, block.position, block.token_id, [values.copy() for values in block.values]
    )


def _refuse_overflow(job: Job, block: Block) -> None:
    for column, values in zip(job.columns, block.values, strict=True):
        if not is_finite(values, job.dtype):
            row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
            raise EngineError(
                "float16_overflow",
                f"column {column.name!r} of stimulus {block.stimulus_id[row]!r} has a value beyond 65504, the largest "
                "of float16; ask for dtype float32",
                status=422,
            )
