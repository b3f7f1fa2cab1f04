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
    """Do every piece, the caller's thread too. What one leaves is done first, so that little is held at a time.

    Raises
    ------
    Exception
        What a piece raised; none is begun after it.
    """
    shared = _Shared(pieces)
    with ThreadPoolExecutor(THREADS - 1) as pool:
        others = [pool.submit(shared.work) for _ in range(THREADS - 1)]
        shared.work()
    for other in others:
        other.result()


class _Shared:
    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._later = iter(pieces)
        self._next: deque[Piece] = deque()
        self._n_busy = 0
        self._failed = False
        self._changed = Condition()

    def work(self) -> None:
        try:
            while (piece := self._take()) is not None:
                self._give(piece())
        except BaseException:
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            raise

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

    def _give(self, left: Sequence[Piece]) -> None:
        with self._changed:
            self._next.extend(left)
            self._n_busy -= 1
            self._changed.notify_all()
