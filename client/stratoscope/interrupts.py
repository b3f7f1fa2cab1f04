"""Putting an interrupt off until something short is done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def interrupts_put_off() -> Iterator[None]:
    """Let the first interrupt take effect at the end of the block; a second one takes effect at once.

    Only for signals that the program handles in Python, and only on the main thread, where they are handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[Handler, int, FrameType | None]] = []
    former: dict[int, Handler] = {}
    for one in SIGNALS:
        handler = signal.getsignal(one)
        if callable(handler):
            former[one] = handler

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def hold(number: int, frame: FrameType | None) -> None:
        restore()
        held.append((former[number], number, frame))

    for number in former:
        signal.signal(number, hold)
    try:
        yield
    finally:
        restore()
        for answer, number, frame in held:
            answer(number, frame)
