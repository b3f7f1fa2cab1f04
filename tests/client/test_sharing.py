"""Sharing work between threads: everything is done, in an order that holds little, and a failure ends it."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from stratoscope.store.sharing import THREADS, Piece, share


def test_every_piece_and_everything_that_pieces_leave_is_done_once() -> None:
    done: list[tuple[int, int]] = []

    def first(number: int) -> list[Piece]:
        return [partial(second, number, part) for part in range(number % 4)]

    def second(number: int, part: int) -> list[Piece]:
        done.append((number, part))
        return []

    share(partial(first, number) for number in range(40))
    assert sorted(done) == [(number, part) for number in range(40) for part in range(number % 4)]


def test_pieces_of_one_are_shared_by_all_threads() -> None:
    meeting = threading.Barrier(THREADS, timeout=30)

    def part() -> list[Piece]:
        meeting.wait()
        return []

    share([lambda: [part] * THREADS])


def test_no_piece_is_made_before_a_thread_is_free_for_it() -> None:
    n_made = n_done = 0
    lock = threading.Lock()

    def piece() -> list[Piece]:
        nonlocal n_done
        with lock:
            assert n_made - n_done <= THREADS
            n_done += 1
        return []

    def make() -> Iterator[Piece]:
        nonlocal n_made
        for _ in range(50):
            n_made += 1
            yield piece

    share(make())
    assert n_done == 50


def test_what_a_piece_raises_is_raised_and_nothing_is_begun_after_it() -> None:
    n_begun = 0

    def piece(number: int) -> list[Piece]:
        nonlocal n_begun
        n_begun += 1
        if number == 3:
            raise OSError("the disk fails")
        return []

    with pytest.raises(OSError, match="the disk fails"):
        share(partial(piece, number) for number in range(1_000_000))
    assert n_begun < 1_000_000


def test_an_interrupted_caller_leaves_nothing_to_the_other_threads() -> None:
    begun = threading.Event()
    n_begun = 0

    def piece() -> list[Piece]:
        nonlocal n_begun
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(30)
            raise KeyboardInterrupt
        n_begun += 1
        begun.set()
        return []

    with pytest.raises(KeyboardInterrupt):
        share(piece for _ in range(1_000_000))
    assert 0 < n_begun < 1_000_000
