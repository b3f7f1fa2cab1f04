"""The gate alone: who is let in, who is next, and what the others are told."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope_server.gate import LONGEST_RETRY_SECONDS, Gate
from stratoscope_server.place import Place
from stratoscope_server.problems import ApiError
from stratoscope_server.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_gate(n_keys: int = 1, clock: Clock | None = None, **settings: object) -> Gate:
    return Gate(Settings.model_validate({"engine": "synthetic", **settings}), n_keys, clock or Clock())


def refused(call: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    assert int((caught.value.headers or {})["Retry-After"]) >= 1
    return caught.value


def in_loop(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 10))


def enter(gate: Gate, key: str = "anonymous", n_tokens: int = 1, n_bytes: int = 1) -> Place:
    place = gate.enter(key, None)
    place.claim(n_tokens, n_bytes)
    return place


def test_so_many_run_so_many_wait_and_one_more_is_refused() -> None:
    gate = make_gate(max_running=2, max_queued=3)
    places = [enter(gate) for _ in range(5)]
    assert (gate.n_running, gate.n_queued) == (2, 3)
    error = refused(lambda: gate.enter("anonymous", None))
    assert (error.status, error.code, error.details["limit"]) == (429, "too_busy", 3)
    gate.leave(places[0])
    assert [place.is_running for place in places[1:]] == [True, True, False, False]
    gate.enter("anonymous", None)


def test_one_of_several_keys_gets_half_of_the_queue_and_a_single_one_all_of_it() -> None:
    alone, shared = make_gate(1, max_running=1, max_queued=4), make_gate(2, max_running=1, max_queued=4)
    for _ in range(5):
        enter(alone, "key-1")
    for _ in range(3):
        enter(shared, "key-1")
    error = refused(lambda: shared.enter("key-1", None))
    assert (error.status, error.details["limit"]) == (429, 2)
    enter(shared, "key-2")
    assert shared.n_queued == 3


def test_a_share_of_the_queue_can_be_set() -> None:
    gate = make_gate(2, max_running=1, max_queued=4, max_queued_per_key=1)
    enter(gate, "key-1")
    enter(gate, "key-1")
    assert refused(lambda: gate.enter("key-1", None)).details["limit"] == 1


def test_keys_take_turns_however_many_requests_one_of_them_has() -> None:
    gate = make_gate(2, max_running=1, max_queued=8)
    first = enter(gate, "key-1")
    many = [enter(gate, "key-1") for _ in range(3)]
    few = [enter(gate, "key-2") for _ in range(2)]
    order, running = [], first
    for _ in range(5):
        gate.leave(running)
        (running,) = (place for place in [*many, *few] if place.is_running)
        order.append(running.key)
        (many if running in many else few).remove(running)
    assert order == ["key-1", "key-2", "key-1", "key-2", "key-1"]


def test_tokens_that_wait_are_bounded_but_one_request_can_always_run() -> None:
    gate = make_gate(max_running=1, max_queued_tokens=10)
    running = enter(gate, n_tokens=11)
    assert running.is_running
    enter(gate, n_tokens=10)
    place = gate.enter("anonymous", None)
    error = refused(lambda: place.claim(1, 1))
    assert (error.status, error.details["limit"]) == (429, 10)


def test_bytes_in_flight_are_bounded_and_freed_as_they_leave() -> None:
    gate = make_gate(max_bytes_in_flight=100)
    first = enter(gate, n_bytes=60)
    enter(gate, n_bytes=40)
    place = gate.enter("anonymous", None)
    error = refused(lambda: place.claim(1, 1))
    assert (error.status, error.details["limit"], error.details["value"]) == (429, 100, 1)
    first.n_sent = 30
    place.claim(1, 30)
    assert gate.bytes_in_flight == 100


def test_the_wait_that_is_asked_for_is_that_of_what_is_inside_at_the_speed_measured() -> None:
    clock = Clock()
    gate = make_gate(clock=clock, max_running=1, max_queued=1)
    done = enter(gate, n_tokens=1000, n_bytes=8)
    clock.now, done.n_sent = 10.0, 8
    gate.leave(done)
    enter(gate, n_tokens=500)
    enter(gate, n_tokens=300)
    error = refused(lambda: gate.enter("anonymous", None))
    assert (error.headers or {})["Retry-After"] == "8"


def test_nobody_is_sent_away_for_longer_than_clients_are_ready_to_wait() -> None:
    clock = Clock()
    gate = make_gate(clock=clock, max_running=1, max_queued=1)
    done = enter(gate, n_tokens=10, n_bytes=8)
    clock.now, done.n_sent = 10_000.0, 8
    gate.leave(done)
    enter(gate, n_tokens=500)
    enter(gate, n_tokens=300)
    error = refused(lambda: gate.enter("anonymous", None))
    assert (error.headers or {})["Retry-After"] == str(LONGEST_RETRY_SECONDS)


def test_the_same_request_is_not_answered_twice_at_once_but_again_afterwards() -> None:
    gate = make_gate()
    place = gate.enter("key-1", "same")
    error = refused(lambda: gate.enter("key-1", "same"))
    assert (error.status, error.code, error.details["field"]) == (409, "already_running", "Idempotency-Key")
    gate.enter("key-2", "same")
    gate.enter("key-1", "other")
    gate.leave(place)
    gate.enter("key-1", "same")


def test_a_turn_that_does_not_come_in_time_is_a_503() -> None:
    async def body() -> None:
        gate = make_gate(max_running=1)
        enter(gate)
        with gate.enter("anonymous", None) as place:
            place.claim(1, 1)
            with pytest.raises(ApiError) as caught:
                await place.turn(0.05)
        assert (caught.value.status, caught.value.code) == (503, "queue_timeout")
        assert gate.n_queued == 0

    in_loop(body)


def test_a_draining_gate_lets_nobody_in_and_gives_up_the_rest_when_the_time_is_up() -> None:
    async def body() -> None:
        gate = make_gate(max_running=1)
        running, waiting = enter(gate), enter(gate)
        turn = asyncio.create_task(waiting.turn(60))
        draining = asyncio.create_task(gate.drain(0.1))
        await asyncio.sleep(0.02)
        assert refused(lambda: gate.enter("anonymous", None)).code == "draining"
        assert not draining.done()
        await draining
        with pytest.raises(ApiError, match="told to stop"):
            await turn
        assert running.is_over
        with running.patience(60) as scope:
            await asyncio.sleep(5)
        assert scope.cancelled_caught

    in_loop(body)


def test_a_gate_has_drained_as_soon_as_the_last_request_has_left() -> None:
    async def body() -> None:
        gate = make_gate()
        place = enter(gate)
        draining = asyncio.create_task(gate.drain(60))
        await asyncio.sleep(0.02)
        assert not draining.done()
        gate.leave(place)
        await draining
        assert not place.is_over

    in_loop(body)


def entered(gate: Gate, key: str, cost: int) -> list[Place]:
    """Enter if that is allowed, and leave again if the cost is too high."""
    place = None
    with suppress(ApiError):
        place = gate.enter(key, None)
        place.claim(cost, cost)
        return [place]
    if place is not None:
        gate.leave(place)
    return []


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "send"]), st.integers(0, 30), st.sampled_from("ab"))))
def test_whatever_happens_nothing_exceeds_its_bound_and_all_is_given_back(steps: list[tuple[str, int, str]]) -> None:
    gate = make_gate(2, max_running=2, max_queued=3, max_queued_tokens=40, max_bytes_in_flight=60)
    inside: list[Place] = []
    for what, number, key in steps:
        if what == "enter":
            inside += entered(gate, key, number)
        elif inside and what == "leave":
            gate.leave(inside.pop(number % len(inside)))
        elif inside:
            inside[number % len(inside)].n_sent = inside[number % len(inside)].n_bytes
        assert gate.n_running <= 2
        assert gate.n_queued <= 3
        assert gate.queued_tokens <= 40
        assert 0 <= gate.bytes_in_flight <= 60
        assert gate.n_running == min(2, len(inside)), "nobody waits while there is a turn to be had"
    for place in inside:
        gate.leave(place)
    assert (gate.n_running, gate.n_queued, gate.queued_tokens, gate.bytes_in_flight) == (0, 0, 0, 0)
