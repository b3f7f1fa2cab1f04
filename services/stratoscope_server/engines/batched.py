"""An engine made of a blocking runner: packs a job into batches and runs one batch after another on one thread."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """Runs one batch. Called from one thread at a time."""

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

    Batches of concurrent jobs take turns on the one thread, and each job has the next batch computing while its last
    one is being sent, never more: a slow reader holds at most two batches.

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
    """

    max_stimulus_bytes = None

    def __init__(
        self,
        runner: Runner,
        max_batch_tokens: int | None = None,
        stall_seconds: float = DEFAULT_STALL_SECONDS,
        *,
        merge: bool = True,
    ) -> None:
        self._runner = runner
        self._max_batch_tokens = max_batch_tokens or DEFAULT_BATCH_TOKENS
        self._merge = merge
        self._passes = Passes()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._stall_seconds = stall_seconds
        self._batch_began: float | None = None

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
        batches = iter(pack(job.prompts, self._max_batch_tokens, merge=self._merge))
        running = self._submit(next(batches), job)
        try:
            for batch in batches:
                block = await running
                running = self._submit(batch, job)
                yield block
            yield await running
        finally:
            running.cancel()

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
        """Let the running batch end, unless it hangs, and stop the thread."""
        await asyncio.to_thread(self._thread.shutdown, wait=self._stalled() is None, cancel_futures=True)

    def _submit(self, batch: Sequence[Prompt], job: Job) -> asyncio.Future[Block]:
        return asyncio.wrap_future(self._thread.submit(self._run, batch, job))

    def _run(self, batch: Sequence[Prompt], job: Job) -> Block:
        # Counted where it begins: a batch that was cancelled in the queue is no pass.
        self._passes.add(len(batch), sum(prompt.n_tokens for prompt in batch))
        self._batch_began = time.monotonic()
        try:
            return self._runner.run(batch, job.columns, job.dtype)
        finally:
            self._batch_began = None

    def _stalled(self) -> EngineError | None:
        began = self._batch_began
        if began is None or time.monotonic() - began <= self._stall_seconds:
            return None
        message = f"the engine is dead: a batch has been running for more than {self._stall_seconds:g} seconds"
        return EngineError("engine_dead", message, status=503, retryable=True)
