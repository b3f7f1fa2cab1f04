"""An engine made of a blocking runner: packs a job into batches and runs them on a few threads of its own."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final, Protocol

from stratoscope_server.engines.packing import pack
from stratoscope_server.engines.protocol import DEFAULT_STALL_SECONDS, EngineError, EngineStatus, Job, Prompt, Tokenizer
from stratoscope_server.engines.sizes import Passes
from stratoscope_wire import Block, Column, ModelCard
from stratoscope_wire.request import Dtype

DEFAULT_BATCH_TOKENS: Final = 1024
"""For a CPU, where larger ones are no faster. A GPU wants more."""


LOOK_SECONDS: Final = 0.5


class Runner(Protocol):
    """Runs one batch. Called from as many threads at a time as its engine has lanes."""

    @property
    def card(self) -> ModelCard:
        """What model this is."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        """Return the rows of all prompts, in their order, in memory that is not used again.

        Raises
        ------
        EngineError
            If the batch cannot be captured.
        """
        ...


class BatchedEngine:
    """The `Engine` over a `Runner`.

    Each lane is a thread that runs one batch at a time. Batches of concurrent jobs take turns on them, and each job has
    a batch for every lane computing while its last one is being sent, never more: a slow reader holds at most one batch
    more than there are lanes.

    Parameters
    ----------
    runner
        What computes.
    max_batch_tokens
        Tokens per batch, at most, padding counted and a shared prefix once; one longer prompt runs alone. ``None``
        for `DEFAULT_BATCH_TOKENS`.
    stall_seconds
        A batch that runs longer will never end: the engine counts as dead.
    merge
        Whether the runner computes once what prompts share.
    lanes
        Batches computed at a time.
    enter_lane
        Called on a lane's thread before each batch, with the number of batches that are computed at a time: a batch
        that is alone need not leave room for others.
    """

    max_stimulus_bytes = None

    def __init__(
        self,
        runner: Runner,
        max_batch_tokens: int | None = None,
        stall_seconds: float = DEFAULT_STALL_SECONDS,
        *,
        merge: bool = True,
        lanes: int = 1,
        enter_lane: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._runner = runner
        self._max_batch_tokens = max_batch_tokens or DEFAULT_BATCH_TOKENS
        self._merge = merge
        self._passes = Passes()
        self._lanes = lanes
        self._enter_lane = enter_lane
        self._threads = ThreadPoolExecutor(max_workers=lanes, thread_name_prefix="engine")
        self._stall_seconds = stall_seconds
        self._n_unfinished = 0
        self._began_by_thread: dict[int, float] = {}
        self._lock = threading.Lock()

    @property
    def card(self) -> ModelCard:
        """What model this is."""
        return self._runner.card

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._runner.tokenizer

    @property
    def status(self) -> EngineStatus:
        """What can be measured now."""
        return EngineStatus(pass_prompts=self._passes.prompts.read(), pass_tokens=self._passes.tokens.read())

    def refuse(self, job: Job) -> None:
        """Return: whatever was admitted can be tried."""

    async def start(self) -> None:
        """Return: a runner is checked when it is loaded."""

    async def capture(self, job: Job) -> AsyncGenerator[Block, None]:
        """Yield one block per batch; see `Engine.capture`."""
        packed = pack(job.prompts, self._max_batch_tokens, merge=self._merge)
        at_once = min(self._lanes, len(packed))
        batches = iter(packed)
        running = deque(self._submit(batch, job, at_once) for batch in islice(batches, at_once))
        try:
            while running:
                block = await running[0]
                running.popleft()
                running.extend(self._submit(batch, job, at_once) for batch in islice(batches, 1))
                yield block
        finally:
            # Of several that failed the first is told of; asyncio would complain that nobody asked about the others.
            for future in running:
                future.cancel()

    async def check_ready(self) -> None:
        """Return unless a batch hangs; see `Engine.check_ready`."""
        if (stalled := self._stalled()) is not None:
            raise stalled

    async def wait_failed(self) -> EngineError:
        """Return once a batch hangs: whatever else a runner does wrong concerns one batch."""
        while (stalled := self._stalled()) is None:
            await asyncio.sleep(LOOK_SECONDS)
        return stalled

    async def close(self) -> None:
        """Let the running batches end, unless one hangs, and stop the threads."""
        await asyncio.to_thread(self._threads.shutdown, wait=self._stalled() is None, cancel_futures=True)

    def _submit(self, batch: Sequence[Prompt], job: Job, at_once: int) -> asyncio.Future[Block]:
        with self._lock:
            self._n_unfinished += 1
        future = self._threads.submit(self._run, batch, job, at_once)
        future.add_done_callback(self._count_finished)
        return asyncio.wrap_future(future)

    def _count_finished(self, _: Future[Block]) -> None:
        with self._lock:
            self._n_unfinished -= 1

    def _run(self, batch: Sequence[Prompt], job: Job, at_once: int) -> Block:
        thread = threading.get_ident()
        with self._lock:
            # Counted where it begins: a batch that was cancelled in the queue is no pass.
            self._passes.add(len(batch), sum(prompt.n_tokens for prompt in batch))
            self._began_by_thread[thread] = time.monotonic()
            at_once = min(self._lanes, max(at_once, self._n_unfinished))
        try:
            self._enter_lane(at_once)
            return self._runner.run(batch, job.columns, job.dtype)
        finally:
            with self._lock:
                del self._began_by_thread[thread]

    def _stalled(self) -> EngineError | None:
        with self._lock:
            began = min(self._began_by_thread.values(), default=None)
        if began is None or time.monotonic() - began <= self._stall_seconds:
            return None
        message = f"the engine is dead: a batch has been running for more than {self._stall_seconds:g} seconds"
        return EngineError("engine_dead", message, status=503, retryable=True)
