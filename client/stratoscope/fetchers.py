"""Several requests in flight, on threads."""

import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Final, Self

from stratoscope.fetching import Fetched
from stratoscope_wire import ActivationsRequest

TICK_S: Final = 1.0


class Fetchers:
    """Threads that fetch requests while the caller works on what has come; use it as a context manager.

    No more answers are held than there are threads. The threads are daemons: an interrupted program ends at once and
    does not wait for answers that it would throw away.

    Parameters
    ----------
    fetch
        Fetches one request; called on the threads.
    requests
        What to fetch, in order.
    concurrency
        Number of threads.
    """

    def __init__(
        self, fetch: Callable[[ActivationsRequest], Fetched], requests: Iterable[ActivationsRequest], concurrency: int
    ) -> None:
        self._fetch = fetch
        self._waiting = deque(requests)
        self._given: queue.SimpleQueue[ActivationsRequest | None] = queue.SimpleQueue()
        self._came: queue.SimpleQueue[Fetched | BaseException] = queue.SimpleQueue()
        self._in_flight = 0
        # Each thread belongs to whatever trace the caller is in.
        self._threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._work,), daemon=True)
            for _ in range(concurrency)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._given.put(None)

    def __iter__(self) -> Iterator[Fetched | None]:
        """Yield answers as they come, and ``None`` whenever none came for a while."""
        while self._waiting or self._in_flight:
            while self._waiting and self._in_flight < len(self._threads):
                self._given.put(self._waiting.popleft())
                self._in_flight += 1
            try:
                came = self._came.get(timeout=TICK_S)
            except queue.Empty:
                yield None
                continue
            self._in_flight -= 1
            if isinstance(came, BaseException):
                raise came
            yield came

    def add(self, requests: Iterable[ActivationsRequest]) -> None:
        """Fetch more, after everything else."""
        self._waiting.extend(requests)

    def _work(self) -> None:
        while (request := self._given.get()) is not None:
            try:
                self._came.put(self._fetch(request))
            except BaseException as error:  # noqa: BLE001 - it is raised again where the answer is awaited
                self._came.put(error)
