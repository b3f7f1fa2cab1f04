"""Several requests in flight, on threads, to one server or to several that share them."""

import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from stratoscope.fetching import Fetched
from stratoscope.sources import Source
from stratoscope_wire import ActivationsRequest

TICK_S: Final = 1.0

Given = queue.SimpleQueue[ActivationsRequest | None]


class Fetchers:
    """Threads that fetch requests while the caller works on what has come; use it as a context manager.

    There is one queue, and whichever server has a thread free and is trusted gets the next request. No more answers are
    held than there are threads. The threads are daemons: an interrupted program ends at once and does not wait for
    answers that it would throw away.

    Parameters
    ----------
    sources
        The servers.
    requests
        What to fetch, in order.
    concurrency
        Number of threads per server.
    """

    def __init__(self, sources: Sequence[Source], requests: Iterable[ActivationsRequest], concurrency: int) -> None:
        self.sources = tuple(sources)
        self._waiting = deque(requests)
        self._concurrency = concurrency
        self._given: dict[str, Given] = {source.name: queue.SimpleQueue() for source in self.sources}
        self._came: queue.SimpleQueue[tuple[Source, Fetched | BaseException]] = queue.SimpleQueue()
        self._last_good = time.monotonic()

    def __enter__(self) -> Self:
        for source in self.sources:
            for _ in range(self._concurrency):
                # Each thread belongs to whatever trace the caller is in.
                run = contextvars.copy_context().run
                threading.Thread(target=run, args=(self._work, source, self._given[source.name]), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for given in self._given.values():
            for _ in range(self._concurrency):
                given.put(None)

    def __iter__(self) -> Iterator[Fetched | None]:
        """Yield answers as they come, and ``None`` whenever none came for a while."""
        while self._waiting or any(source.in_flight for source in self.sources):
            self._give()
            try:
                source, came = self._came.get(timeout=TICK_S)
            except queue.Empty:
                yield None
                continue
            if isinstance(came, BaseException):
                raise came
            source.end(came)
            if not source.is_out:
                self._last_good = time.monotonic()
            yield came

    @property
    def stranded_s(self) -> float | None:
        """Seconds since anything good was heard, while every server fails or is busy; ``None`` while one does not."""
        if not all(source.is_out for source in self.sources):
            return None
        return time.monotonic() - self._last_good

    def add(self, requests: Iterable[ActivationsRequest]) -> None:
        """Fetch more, after everything else."""
        self._waiting.extend(requests)

    def _give(self) -> None:
        while self._waiting:
            free = [s for s in self.sources if s.in_flight < self._concurrency and s.admits()]
            if not free:
                return
            source = min(free, key=lambda source: source.in_flight)
            source.begin()
            self._given[source.name].put(self._waiting.popleft())

    def _work(self, source: Source, given: Given) -> None:
        while (request := given.get()) is not None:
            try:
                self._came.put((source, source.fetch(request)))
            except BaseException as error:  # noqa: BLE001 - it is raised again where the answer is awaited
                self._came.put((source, error))
