"""The circuit breaker: a state machine that needs neither a clock nor a server."""

from hypothesis import given
from hypothesis import strategies as st

from stratoscope.breaker import Breaker

EVENTS = st.lists(st.tuples(st.sampled_from(["send", "succeed", "fail"]), st.floats(0, 40)), max_size=60)


def failed_times(breaker: Breaker, n_times: int, now: float = 0.0) -> Breaker:
    for _ in range(n_times):
        breaker = breaker.failed(now)
    return breaker


@given(max_failures=st.integers(1, 8), n_failures=st.integers(0, 10))
def test_it_opens_after_so_many_failures_in_a_row_and_not_before(max_failures: int, n_failures: int) -> None:
    breaker = failed_times(Breaker(max_failures=max_failures), n_failures)
    assert breaker.failures == n_failures
    assert (breaker.state(0) == "open") == (n_failures >= max_failures)
    assert breaker.admits(0) == (n_failures < max_failures)


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = failed_times(failed_times(Breaker(max_failures=3), 2).succeeded(), 2)
    assert breaker.state(0) == "closed"
    assert breaker.failed(0).state(0) == "open"


def test_after_its_rest_one_request_passes_as_a_trial() -> None:
    breaker = failed_times(Breaker(max_failures=1, rest_s=5), 1)
    assert [breaker.admits(now) for now in (0, 4.9, 5)] == [False, False, True]
    trial = breaker.sent(5)
    assert trial.state(5) == "half-open"
    assert not trial.admits(5)
    assert trial.succeeded().state(5) == "closed"
    assert trial.failed(6).state(6) == "open"


def test_each_failed_trial_doubles_the_rest_up_to_the_longest() -> None:
    breaker = failed_times(Breaker(max_failures=1, rest_s=5, longest_rest_s=30), 1)
    now, rests = 0.0, []
    for _ in range(5):
        assert breaker.until is not None
        rests.append(breaker.until - now)
        now = breaker.until
        breaker = breaker.sent(now).failed(now)
    assert rests == [5, 10, 20, 30, 30]


def test_a_grave_failure_opens_it_at_once() -> None:
    assert Breaker(max_failures=3).failed(0).state(0) == "closed"
    assert Breaker(max_failures=3).failed(0, is_grave=True).state(0) == "open"


def test_a_failure_that_was_under_way_when_it_opened_is_no_news() -> None:
    breaker = failed_times(Breaker(max_failures=1), 1)
    assert breaker.failed(1).until == breaker.until


@given(EVENTS)
def test_whatever_happens_it_never_passes_more_than_one_request_unless_closed(events: list[tuple[str, float]]) -> None:
    breaker, now, passed = Breaker(max_failures=2), 0.0, 0
    for event, seconds in events:
        now += seconds
        if event == "send" and breaker.admits(now):
            passed = 0 if breaker.state(now) == "closed" else passed + 1
            breaker = breaker.sent(now)
            assert passed <= 1
        elif event != "send":
            breaker = breaker.succeeded() if event == "succeed" else breaker.failed(now)
            passed = 0
        state = breaker.state(now)
        assert breaker.admits(now) == (state == "closed" or (state == "half-open" and not breaker.on_trial))
        assert state == "closed" or breaker.failures >= 2
        assert breaker.until is None or breaker.until <= now + breaker.longest_rest_s


@given(EVENTS)
def test_whatever_happened_a_server_that_answers_again_is_trusted_again(events: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(max_failures=1), 0.0
    for event, seconds in events:
        now += seconds
        if event == "fail":
            breaker = breaker.failed(now)
        elif event == "send" and breaker.admits(now):
            breaker = breaker.sent(now)
    if breaker.state(now) != "closed" and not breaker.on_trial:
        now += breaker.longest_rest_s
        assert breaker.admits(now), "a rest has an end"
        breaker = breaker.sent(now)
    assert breaker.succeeded() == Breaker(max_failures=1)
