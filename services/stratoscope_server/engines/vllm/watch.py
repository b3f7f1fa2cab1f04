"""The watch: notices that the engine is dead or hangs, once and for good."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

import numpy as np
from vllm.v1.engine.async_llm import AsyncLLM

from stratoscope_server.engines.protocol import EngineError
from stratoscope_server.engines.vllm.launch import prefill, tokens
from stratoscope_server.engines.vllm.traffic import Traffic

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_LOOK_SECONDS: Final = 1.0
_QUIET_SECONDS: Final = 20.0
"""After so long without a sign, an idle engine is asked for one."""


class Watch:
    """Watches one engine.

    Parameters
    ----------
    llm
        The engine.
    traffic
        Where its signs are taken in.
    stall_seconds
        How long work may wait without a sign.
    """

    def __init__(self, llm: AsyncLLM, traffic: Traffic, stall_seconds: float) -> None:
        self._llm = llm
        self._traffic = traffic
        self._stall_seconds = stall_seconds
        self._canaries = itertools.count()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Take in failures from now on, in the running event loop."""
        self.failure: asyncio.Future[EngineError] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Begin to look for signs."""
        self._traffic.last_sign = time.monotonic()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def fail(self, cause: str) -> None:
        """Declare the engine dead: everything on its way fails, and nothing is accepted any more."""
        if not self.failure.done():
            logger.critical("the engine is dead: %s", cause)
            error = EngineError("engine_dead", f"the engine is dead: {cause}", status=503, retryable=True)
            self.failure.set_result(error)
            self._traffic.fail(error)

    async def unless_failed(self, work: Awaitable[_T]) -> _T:
        """Await something that only a living engine brings about.

        Raises
        ------
        EngineError
            As soon as the engine is dead.
        """
        task = asyncio.ensure_future(work)
        try:
            waited: set[asyncio.Future[Any]] = {task, self.failure}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self.failure.result()
            return task.result()
        finally:
            task.cancel()

    async def _run(self) -> None:
        while not self.failure.done():
            await asyncio.sleep(_LOOK_SECONDS)
            quiet = time.monotonic() - self._traffic.last_sign
            if self._llm.errored:
                self.fail("vLLM's core process ended")
            elif self._traffic.n_running and quiet > self._stall_seconds:
                self.fail(f"it has had work and given no sign for {quiet:.0f} seconds")
            elif not self._traffic.n_running and quiet > min(_QUIET_SECONDS, self._stall_seconds):
                await self._ask_for_a_sign()

    async def _ask_for_a_sign(self) -> None:
        params = prefill(None, may_read_cache=False)
        request_id = f"canary-{next(self._canaries)}"
        try:
            async with asyncio.timeout(self._stall_seconds):
                async for _ in self._llm.generate(tokens(np.zeros(1, np.int32)), params, request_id):
                    self._traffic.last_sign = time.monotonic()
        except TimeoutError:
            self.fail(f"it did not answer a prompt of one token in {self._stall_seconds:.0f} seconds")
        except Exception as error:  # noqa: BLE001 - whatever it raises, it did not answer
            self.fail(f"it did not answer a prompt of one token: {error!r}")
