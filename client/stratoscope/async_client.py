"""The asynchronous client."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx2
import pyarrow as pa

from stratoscope.activations import Activations
from stratoscope.async_direct import async_direct_transport
from stratoscope.captures import Layers
from stratoscope.connection import Connection
from stratoscope.conversation import Conversation, Spans
from stratoscope.fetching import Fetched, Pause, Steps
from stratoscope.link import CompressionSetting, Link
from stratoscope.retries import RetryPolicy
from stratoscope.transport import Answer, Call, exchange_async
from stratoscope_wire import ActivationsRequest, Limits, ModelCard, Plan, Selector, Stimulus
from stratoscope_wire.memory import MessageMemory
from stratoscope_wire.request import Dtype

T = TypeVar("T")


class AsyncClient:
    """Talks to a Stratoscope server, like `stratoscope.Client`, without blocking the event loop.

    Parameters are those of `stratoscope.Client`; `sleep` is awaited.

    Raises
    ------
    ConfigurationError
        If address or key cannot be used.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | httpx2.Timeout | None = None,
        max_retries: int | RetryPolicy = 7,
        compression: CompressionSetting = "auto",
        transport: httpx2.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._connection = Connection.of(base_url, api_key, timeout)
        policy = max_retries if isinstance(max_retries, RetryPolicy) else RetryPolicy(max_retries)
        self._talk = Conversation(policy, Link(compression, is_loopback=self._connection.is_loopback))
        self._http = httpx2.AsyncClient(
            timeout=self._connection.timeout,
            transport=transport or async_direct_transport(self._connection),
            trust_env=self._connection.uses_proxies,
            verify=self._connection.trust,
        )
        self._memory = MessageMemory()
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.base_url!r})"

    @property
    def base_url(self) -> str:
        """Address of the server."""
        return self._connection.base_url

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def model(self) -> ModelCard:
        """Return the model card; it is asked for once."""
        return await self._hold(self._talk.model())

    async def limits(self) -> Limits:
        """Return the server's limits; they are asked for once."""
        return await self._hold(self._talk.limits())

    async def ready(self) -> None:
        """Return once the model is loaded and the engine answers.

        Raises
        ------
        ServerUnavailableError
            If that takes longer than the attempts do.
        """
        await self._hold(self._talk.ready())

    async def plan(self, request: ActivationsRequest) -> Plan:
        """Return what a request would cost; the model is not run."""
        return await self._hold(self._talk.plan(request))

    async def fetch(self, request: ActivationsRequest) -> list[pa.RecordBatch]:
        """Fetch one request as verified record batches, in the request's dtype.

        Raises
        ------
        StratoscopeError
            If any stimulus did not come; use `try_fetch` to keep the others.
        """
        fetched = await self.try_fetch(request)
        if fetched.error is not None:
            raise fetched.error
        return fetched.batches

    async def try_fetch(self, request: ActivationsRequest, *, policy: RetryPolicy | None = None) -> Fetched:
        """Fetch one request; return the complete stimuli that came, and why others did not.

        Parameters
        ----------
        policy
            When to try again, if not as the client does.
        """
        return await self._hold(self._talk.fetch(request, policy))

    async def activations(
        self,
        texts: Sequence[str | Stimulus],
        *,
        sites: Sequence[str] = ("resid_post",),
        layers: Layers = "all",
        select: Sequence[Selector | str] = ("last",),
        dtype: Dtype = "float32",
        add_special_tokens: bool = True,
        spans: Sequence[Spans] | None = None,
    ) -> Activations:
        """Fetch activations of any number of texts, in their order, and hold them in memory.

        Parameters are those of `stratoscope.Client.activations`.

        Raises
        ------
        StratoscopeError
            If the activations of any text could not be had.
        """
        steps = self._talk.activations(
            texts,
            sites=sites,
            layers=layers,
            select=select,
            dtype=dtype,
            add_special_tokens=add_special_tokens,
            spans=spans,
        )
        return await self._hold(steps)

    async def _hold(self, steps: Steps[T]) -> T:
        answer: Answer | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = await self._perform(step)

    async def _perform(self, step: Call | Pause) -> Answer | None:
        if isinstance(step, Call):
            return await exchange_async(self._http, self._connection, step, self._memory)
        await self._sleep(step.seconds)
        return None
