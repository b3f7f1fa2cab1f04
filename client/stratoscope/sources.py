"""Sources: servers as a collection sees them, each trusted as far as its answers allow."""

import logging
import random
import time
from collections.abc import Callable

from stratoscope.breaker import Breaker
from stratoscope.errors import APIError, APITimeoutError, ConflictError, RateLimitedError, StratoscopeError
from stratoscope.fetching import Fetched
from stratoscope.retries import is_retryable
from stratoscope_wire import ActivationsRequest

Fetch = Callable[[ActivationsRequest], Fetched]

JITTER_S = 1.0

logger = logging.getLogger(__name__)


class Source:
    """A server that requests are sent to. Everything but `fetch` is used from one thread.

    Parameters
    ----------
    name
        Its address, for people.
    fetch
        Fetches one request.
    breaker
        Decides when it is left alone.
    is_alone
        Whether there is no other. `fetch` has then waited and tried again already, and a busy server counts as a
        failing one; among several, a busy one is only given a while.
    clock
        Seconds.
    """

    def __init__(
        self,
        name: str,
        fetch: Fetch,
        breaker: Breaker,
        *,
        is_alone: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.fetch = fetch
        self.in_flight = 0
        self.error: StratoscopeError | None = None
        self._breaker = breaker
        self._is_alone = is_alone
        self._clock = clock
        self._not_before = 0.0
        self._is_busy = False

    @property
    def failures(self) -> int:
        """Requests that failed in a row."""
        return self._breaker.failures

    @property
    def is_out(self) -> bool:
        """Whether the last that was heard of it is that it fails, or is busy."""
        return self._is_busy or self._breaker.state(self._clock()) != "closed"

    def admits(self) -> bool:
        """Tell whether a request may be sent to it now."""
        now = self._clock()
        return now >= self._not_before and self._breaker.admits(now)

    def begin(self) -> None:
        """Count a request that is sent to it."""
        self.in_flight += 1
        self._breaker = self._breaker.sent(self._clock())

    def end(self, fetched: Fetched) -> None:
        """Learn from what came of a request."""
        self.in_flight -= 1
        error = fetched.error
        if error is None or fetched.batches or not is_retryable(error):
            self._succeed()
        else:
            self._fail(error)

    def _succeed(self) -> None:
        if self._breaker.state(self._clock()) != "closed":
            logger.warning("server %s is back", self.name, extra={"facts": {"server": self.name}})
        self._breaker = self._breaker.succeeded()
        self._is_busy = False
        self.error = None

    def _fail(self, error: StratoscopeError) -> None:
        now = self._clock()
        self.error = error
        asked_s = error.retry_after_s if isinstance(error, APIError) else None
        self._is_busy = not self._is_alone and isinstance(error, RateLimitedError | ConflictError)
        if not self._is_alone and asked_s is not None:
            self._not_before = now + asked_s + random.uniform(0, JITTER_S)  # noqa: S311
        if self._is_busy:
            return
        before = self._breaker.until
        # A server that hangs holds each request for a whole timeout: nobody else should be sent to find that out.
        is_grave = not self._is_alone and isinstance(error, APITimeoutError)
        self._breaker = self._breaker.failed(now, is_grave=is_grave)
        until = self._breaker.until
        if until is not None and until != before and not self._is_alone:
            facts = {"server": self.name, "seconds": until - now, "failures": self.failures, "error": str(error)}
            logger.warning(
                "server %s is set aside for %.0f s, the others go on: %s",
                self.name,
                until - now,
                error,
                extra={"facts": facts},
            )
