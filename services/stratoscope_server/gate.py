"""The gate: how many requests may run, wait, and hold how much; who is next; and how long the others should stay away.

A request enters, claims what it will cost, waits for its turn, runs, and leaves. All of it happens in the server's
event loop, so that nothing here needs a lock.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import anyio

from stratoscope_server.place import Place
from stratoscope_server.problems import ApiError
from stratoscope_server.settings import Settings
from stratoscope_server.throughput import Throughput

LONGEST_RETRY_SECONDS: Final = 120


class Gate:
    """Lets requests in.

    Parameters
    ----------
    settings
        The limits.
    n_keys
        Number of API keys among which the queue is shared.
    clock
        Seconds that only grow.
    """

    def __init__(self, settings: Settings, n_keys: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_running = settings.max_running
        self._max_queued = settings.max_queued
        self._max_queued_tokens = settings.max_queued_tokens
        self._max_bytes = settings.max_bytes_in_flight
        self._share = settings.queue_share(n_keys)
        self._places: set[Place] = set()
        self._lines: dict[str, deque[Place]] = {}
        self._throughput = Throughput()
        self._clock = clock
        self._measured = clock()
        self._empty = asyncio.Event()
        self._empty.set()
        self.is_draining = False

    @property
    def n_running(self) -> int:
        """Requests that have had their turn."""
        return sum(place.is_running for place in self._places)

    @property
    def n_queued(self) -> int:
        """Requests that have not had their turn yet."""
        return len(self._places) - self.n_running

    @property
    def queued_tokens(self) -> int:
        """Tokens of the requests that stand in line."""
        return sum(place.n_tokens for line in self._lines.values() for place in line)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of activations that are promised and have not left."""
        return sum(place.n_bytes - place.n_sent for place in self._places)

    def check_open(self) -> None:
        """Return if requests are let in; otherwise raise a 503."""
        if self.is_draining:
            raise self.draining()

    def enter(self, key: str, token: str | None) -> Place:
        """Reserve a place, before anything of the request is looked at.

        Raises
        ------
        ApiError
            429 if there is none, or none for this key; 409 if the same request is still being answered; 503 if the
            server stops.
        """
        self.check_open()
        if len(self._places) >= self._max_running + self._max_queued:
            message = f"{self._max_running} requests run and {self._max_queued} wait; send it again later"
            raise self.refusal(429, "too_busy", message, limit=self._max_queued)
        mine = [place for place in self._places if place.key == key]
        if len(mine) >= self._max_running + self._share:
            message = f"{self._share} requests of this API key wait already; send fewer at the same time"
            raise self.refusal(429, "too_busy", message, limit=self._share)
        if token is not None and any(place.token == token for place in mine):
            message = "a request with this Idempotency-Key is being answered; wait until it has ended"
            raise self.refusal(409, "already_running", message, field="Idempotency-Key")
        place = Place(self, key, token)
        self._places.add(place)
        self._empty.clear()
        return place

    def claim(self, place: Place, n_tokens: int, n_bytes: int) -> None:
        """Reserve what a request will cost; see `Place.claim`."""
        if self.bytes_in_flight + n_bytes > self._max_bytes:
            raise self.refusal(
                429,
                "too_busy",
                f"the answer has {n_bytes} bytes and answers of {self.bytes_in_flight} bytes are on their way; at most "
                f"{self._max_bytes} may be: send it again later",
                limit=self._max_bytes,
                value=n_bytes,
            )
        waits = self.n_running >= self._max_running
        if waits and self.queued_tokens + n_tokens > self._max_queued_tokens:
            message = (
                f"requests of {self.queued_tokens} tokens wait, at most {self._max_queued_tokens} may; send it later"
            )
            raise self.refusal(429, "too_busy", message, limit=self._max_queued_tokens, value=n_tokens)
        place.n_tokens, place.n_bytes = n_tokens, n_bytes
        self._lines.setdefault(place.key, deque()).append(place)
        self._let_run()

    def leave(self, place: Place) -> None:
        """Give back all that a request held."""
        self._places.remove(place)
        if place.is_running:
            self._measure(place)
        line = self._lines.get(place.key, deque())
        if place in line:
            line.remove(place)
        self._let_run()
        if not self._places:
            self._empty.set()

    async def drain(self, seconds: float) -> None:
        """Let nobody in any more, wait for those inside, and give up what is left after a time."""
        self.is_draining = True
        with anyio.move_on_after(seconds):
            await self._empty.wait()
        for place in self._places:
            place.end()

    def draining(self) -> ApiError:
        """Return what is answered while the server stops."""
        return self.refusal(503, "draining", "the server has been told to stop; ask it again once it is back")

    def refusal(self, status: int, code: str, message: str, **details: int | str) -> ApiError:
        """Return an error that says when to come back: once what waits now will have run."""
        seconds = math.ceil(self._throughput.seconds_for(sum(place.n_tokens for place in self._places)))
        headers = {"Retry-After": str(min(LONGEST_RETRY_SECONDS, max(1, seconds)))}
        return ApiError(status, code, message, headers=headers, retryable=True, **details)

    def _let_run(self) -> None:
        while self._lines and self.n_running < self._max_running:
            # The line whose turn it is goes to the end, so that a key with many requests does not go before others.
            key, line = next(iter(self._lines.items()))
            del self._lines[key]
            if line:
                if not self.n_running:
                    self._measured = self._clock()
                line.popleft().begin()
            if line:
                self._lines[key] = line

    def _measure(self, place: Place) -> None:
        now = self._clock()
        done = place.n_tokens * place.n_sent / place.n_bytes if place.n_bytes else 0.0
        self._throughput.add(done, now - self._measured)
        self._measured = now
