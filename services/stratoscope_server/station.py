"""The station: holds the engine from loading to closing, and says whether it can answer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal

from stratoscope_server.engines.protocol import Engine, EngineError, EngineStatus
from stratoscope_server.problems import ApiError

logger = logging.getLogger(__name__)

EngineState = Literal["loading", "ready", "failed"]

LINGER_SECONDS: Final = 3.0
"""Time between the failure of an engine and the end of the server, in which it answers 503."""


class Station:
    """Loads an engine while the server already listens.

    Parameters
    ----------
    load
        Builds the engine; called once, on a thread.
    on_failure
        Called if loading fails, or the engine fails for good later; is expected to end the server.
    """

    def __init__(self, load: Callable[[], Engine], on_failure: Callable[[], None]) -> None:
        self._load = load
        self._on_failure = on_failure
        self._loaded: Engine | None = None
        self._engine: Engine | None = None
        self.failure: Exception | None = None

    @property
    def engine(self) -> Engine:
        """The loaded engine.

        Raises
        ------
        ApiError
            503 as long as there is none.
        """
        if self.failure is not None:
            raise _unavailable(f"the engine has failed: {self.failure}", retry_after=5)
        if self._engine is None:
            raise _unavailable("the model is still being loaded", retry_after=5)
        return self._engine

    @property
    def state(self) -> EngineState:
        """Where the engine is on its way from loading to the end."""
        if self.failure is not None:
            return "failed"
        return "loading" if self._engine is None else "ready"

    @property
    def status(self) -> EngineStatus | None:
        """What can be measured of the engine; ``None`` while none is ready or after it has failed."""
        return None if self._engine is None or self.failure is not None else self._engine.status

    async def check_ready(self) -> None:
        """Return if the engine answers; otherwise raise a 503."""
        try:
            await self.engine.check_ready()
        except EngineError as error:
            raise _unavailable(str(error), retry_after=5) from None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load on entry, in the background; close on exit."""
        loading = asyncio.create_task(self._run_load())
        watching = asyncio.create_task(self._watch(loading))
        try:
            yield
        finally:
            await asyncio.wait([loading])
            watching.cancel()
            if self._loaded is not None:
                await self._loaded.close()

    async def _run_load(self) -> None:
        try:
            self._loaded = await asyncio.to_thread(self._load)
            await self._loaded.start()
        except Exception as error:  # noqa: BLE001 - kept whole, and ends the process with its message
            self.failure = error
            self._on_failure()
        else:
            self._engine = self._loaded
            logger.info("ready: %s, fingerprint %s", self._engine.card.model, self._engine.card.fingerprint)

    async def _watch(self, loading: asyncio.Task[None]) -> None:
        await loading
        if self._engine is not None:
            self.failure = await self._engine.wait_failed()
            # Long enough for health checks and waiting clients to be told, instead of finding nobody.
            await asyncio.sleep(LINGER_SECONDS)
            self._on_failure()


def _unavailable(message: str, *, retry_after: int) -> ApiError:
    return ApiError(503, "not_ready", message, headers={"Retry-After": str(retry_after)}, retryable=True)
