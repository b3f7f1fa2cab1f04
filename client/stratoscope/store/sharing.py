"""Sharing: pieces of work done by a few threads, of which each may turn out to be many."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import Any, Final

THREADS: Final = 2

Piece = Callable[[], Sequence[Callable[[], Any]]]
"""What a thread does at once; it returns what is then left to do, as pieces again."""


def share(pieces: Iterable[Piece]) -> None:
    """Do every piece. What one leaves is done before another one is begun, so that little is held at a time.

    Raises
    ------
    Exception
        What a piece raised; none is begun after it.
    """
    shared = _Shared(pieces)
    with ThreadPoolExecutor(THREADS) as pool:
        for worker in [pool.submit(shared.work) for _ in range(THREADS)]:
            worker.result()


class _Shared:
    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._later = iter(pieces)
        self._next: deque[Piece] = deque()
        self._n_busy = 0
        self._failed = False
        self._changed = Condition()

    def work(self) -> None:
        while (piece := self._take()) is not None:
            left: Sequence[Piece] = ()
            failed = True
            try:
                left = piece()
                failed = False
            finally:
                self._give(left, failed=failed)

    def _take(self) -> Piece | None:
        with self._changed:
            while not self._failed:
                piece = self._next.popleft() if self._next else next(self._later, None)
                if piece is not None:
                    self._n_busy += 1
                    return piece
                if self._n_busy == 0:
                    return None
                self._changed.wait()
            return None

    def _give(self, left: Sequence[Piece], *, failed: bool) -> None:
        with self._changed:
            self._next.extend(left)
            self._failed |= failed
            self._n_busy -= 1
            self._changed.notify_all()
