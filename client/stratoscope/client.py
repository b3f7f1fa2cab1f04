"""The blocking client."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx2
import pyarrow as pa

from stratoscope.activations import Activations
from stratoscope.captures import Layers
from stratoscope.connection import Connection
from stratoscope.conversation import Conversation, Spans
from stratoscope.direct import direct_transport
from stratoscope.fetching import Fetched, Pause, Steps
from stratoscope.link import CompressionSetting, Link
from stratoscope.retries import RetryPolicy
from stratoscope.transport import Answer, Call, exchange
from stratoscope_wire import ActivationsRequest, Limits, ModelCard, Plan, Selector, Stimulus
from stratoscope_wire.memory import MessageMemory
from stratoscope_wire.request import Dtype

T = TypeVar("T")


class Client:
    """Talks to a Stratoscope server. Safe to share between threads.

    Parameters
    ----------
    base_url
        Address of the server; by default ``STRATOSCOPE_BASE_URL``, else ``http://127.0.0.1:8000``.
    api_key
        Sent as a bearer token; by default ``STRATOSCOPE_API_KEY``. It appears in no message and no `repr`.
    timeout
        Longest silence between two bytes in seconds (default 120; connecting may take 10), or an `httpx2.Timeout`.
    max_retries
        Further attempts after a failed one, or a full `RetryPolicy`.
    compression
        Whether answers are compressed on the way, which changes no value: ``"none"``, ``"zstd"``, or ``"auto"``: on
        links that were measured to be slow, never on this very machine.
    transport
        Replaces the network, for tests and unusual networks.
    sleep
        Waits between attempts.

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
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = Connection.of(base_url, api_key, timeout)
        policy = max_retries if isinstance(max_retries, RetryPolicy) else RetryPolicy(max_retries)
        self._talk = Conversation(policy, Link(compression, is_loopback=self._connection.is_loopback))
        self._http = httpx2.Client(
            timeout=self._connection.timeout,
            transport=transport or direct_transport(self._connection),
            trust_env=self._connection.uses_proxies,
            verify=self._connection.trust,
        )
        self._memory = MessageMemory()
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.base_url!r})"

    @property
    def base_url(self) -> str:
        """Address of the server."""
        return self._connection.base_url

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def model(self) -> ModelCard:
        """Return the model card; it is asked for once."""
        return self._hold(self._talk.model())

    def limits(self) -> Limits:
        """Return the server's limits; they are asked for once."""
        return self._hold(self._talk.limits())

    def ready(self) -> None:
        """Return once the model is loaded and the engine answers.

        Raises
        ------
        ServerUnavailableError
            If that takes longer than the attempts do.
        """
        self._hold(self._talk.ready())

    def plan(self, request: ActivationsRequest) -> Plan:
        """Return what a request would cost; the model is not run."""
        return self._hold(self._talk.plan(request))

    def fetch(self, request: ActivationsRequest) -> list[pa.RecordBatch]:
        """Fetch one request as verified record batches, in the request's dtype.

        Raises
        ------
        StratoscopeError
            If any stimulus did not come; use `try_fetch` to keep the others.
        """
        fetched = self.try_fetch(request)
        if fetched.error is not None:
            raise fetched.error
        return fetched.batches

    def try_fetch(self, request: ActivationsRequest, *, policy: RetryPolicy | None = None) -> Fetched:
        """Fetch one request; return the complete stimuli that came, and why others did not.

        Parameters
        ----------
        policy
            When to try again, if not as the client does.
        """
        return self._hold(self._talk.fetch(request, policy))

    def activations(
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

        Parameters
        ----------
        texts
            Texts, or stimuli with ids of their own.
        sites, layers, select
            What to read; see `stratoscope.captures.make_capture`.
        dtype
            Type of the values on the wire; results are float32 in any case.
        add_special_tokens
            Whether texts are tokenised with the model's special tokens.
        spans
            Per text, named ``(start, end)`` ranges of characters.

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
        return self._hold(steps)

    def _hold(self, steps: Steps[T]) -> T:
        answer: Answer | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            answer = self._perform(step)

    def _perform(self, step: Call | Pause) -> Answer | None:
        if isinstance(step, Call):
            return exchange(self._http, self._connection, step, self._memory)
        self._sleep(step.seconds)
        return None
