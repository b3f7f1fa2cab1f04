"""What is tried again, when, and what is raised instead."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope import errors
from stratoscope.client import Client
from stratoscope.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    CorruptAnswerError,
    RateLimitedError,
    ServerUnavailableError,
)
from stratoscope.faults import retry_after
from stratoscope.retries import RetryPolicy
from stratoscope_wire import ActivationsRequest, Capture, Stimulus

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

TEXTS = ["A church and organ", "a cat", "Zürich and its lake", "x", "the end"]
REQUEST = ActivationsRequest(
    stimuli=[Stimulus(id=f"s{number}", text=text) for number, text in enumerate(TEXTS)],
    capture=Capture(layers=[0, 2], select=["last", "all"]),
)
IDS = [stimulus.id for stimulus in REQUEST.stimuli]


def stimuli_in(batches: list[pa.RecordBatch]) -> list[str]:
    return [stimulus_id for batch in batches for stimulus_id in batch.column(0).unique().to_pylist()]


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_status_that_says_later_is_tried_again(
    client: Client, server: "FaultServer", pauses: list[float], status: int
) -> None:
    server.faults.extend([server.status(status)] * 2)
    assert sorted(stimuli_in(client.fetch(REQUEST))) == IDS
    assert (len(server.posts), len(pauses)) == (3, 2)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequestError),
        (401, errors.AuthenticationError),
        (403, errors.AuthenticationError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (413, errors.TooLargeError),
        (418, errors.APIError),
        (422, errors.UnprocessableRequestError),
        (500, errors.ServerError),
        (505, errors.ServerError),
    ],
)
def test_any_other_status_is_raised_at_once_with_its_type(
    client: Client, server: "FaultServer", pauses: list[float], status: int, kind: type[APIError]
) -> None:
    server.faults.append(server.status(status, "a_code", stimulus="s1", limit=3, value=4))
    with pytest.raises(kind, match=f"the server says {status}") as caught:
        client.fetch(REQUEST)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.request_id) == (status, "a_code", "r-1")
    assert (error.stimulus, error.limit, error.value) == ("s1", 3, 4)
    assert (len(server.posts), pauses) == (1, [])


@pytest.mark.parametrize("status", [400, 409, 500])
def test_a_server_may_say_that_a_damaged_body_a_conflict_or_failure_is_worth_another_attempt(
    client: Client, server: "FaultServer", status: int
) -> None:
    server.faults.append(server.status(status, retryable=True))
    assert sorted(stimuli_in(client.fetch(REQUEST))) == IDS
    assert len(server.posts) == 2


def test_attempts_end_with_the_last_failure(client: Client, server: "FaultServer", pauses: list[float]) -> None:
    server.always = server.status(503)
    with pytest.raises(ServerUnavailableError):
        client.fetch(REQUEST)
    assert (len(server.posts), len(pauses)) == (5, 4)


def test_retry_after_is_honoured(client: Client, server: "FaultServer", pauses: list[float]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    for value in ("7", later):
        server.faults.append(server.status(429, headers={"Retry-After": value}))
    client.fetch(REQUEST)
    assert 7 <= pauses[0] <= 2 * 7
    assert 28 <= pauses[1] <= 2 * 30


def test_a_server_that_is_busy_is_asked_more_often_than_one_that_fails(
    client: Client, server: "FaultServer", pauses: list[float]
) -> None:
    server.faults.extend([server.status(429, headers={"Retry-After": "2"})] * 40)
    assert sorted(stimuli_in(client.fetch(REQUEST))) == IDS
    assert len(pauses) == 40
    assert max(pauses) <= 4
    server.faults.extend([server.status(503, headers={"Retry-After": "2"})] * 40)
    with pytest.raises(ServerUnavailableError):
        client.fetch(REQUEST)
    assert len(pauses) < 60


def test_a_server_that_asks_for_an_hour_is_given_up(client: Client, server: "FaultServer", pauses: list[float]) -> None:
    server.faults.append(server.status(429, headers={"Retry-After": "3600"}))
    with pytest.raises(RateLimitedError) as caught:
        client.fetch(REQUEST)
    assert (caught.value.retry_after_s, pauses) == (3600, [])


def test_silence_ends_in_a_timeout_that_is_tried_again(server: "FaultServer", pauses: list[float]) -> None:
    server.faults.extend([server.hang(), server.hang()])
    with Client(server.url, timeout=0.2, max_retries=1, sleep=pauses.append) as client:
        client.model()
        began = time.monotonic()
        with pytest.raises(APITimeoutError, match="silent for too long"):
            client.fetch(REQUEST)
        assert 0.4 <= time.monotonic() - began < 3
        assert sorted(stimuli_in(client.fetch(REQUEST))) == IDS


def test_a_slow_answer_is_no_timeout_while_bytes_come(server: "FaultServer") -> None:
    server.faults.append(server.slow(0.1, 8))
    with Client(server.url, timeout=0.4, max_retries=0) as client:
        began = time.monotonic()
        assert sorted(stimuli_in(client.fetch(REQUEST))) == IDS
        assert time.monotonic() - began > 0.4


def test_a_server_that_is_not_there_is_named(pauses: list[float]) -> None:
    with (
        Client("http://127.0.0.1:9", max_retries=2, sleep=pauses.append) as client,
        pytest.raises(APIConnectionError, match=r"no server answers at http://127\.0\.0\.1:9/v1/model"),
    ):
        client.model()
    assert len(pauses) == 2


def test_card_and_limits_are_asked_for_once(client: Client, server: "FaultServer") -> None:
    for _ in range(2):
        assert client.model() == server.card
        assert client.limits() == server.limits
    assert [received.path for received in server.received] == ["/v1/model", "/v1/limits"]


def test_a_card_that_contradicts_its_fingerprint_is_refused(client: Client, server: "FaultServer") -> None:
    server.card = server.card.model_copy(update={"d_model": 9})
    with pytest.raises(CorruptAnswerError, match="does not match its own fingerprint"):
        client.model()


def test_json_that_is_not_a_card_is_refused(client: Client, server: "FaultServer") -> None:
    server.get_faults.append(lambda handler, _: handler.send(200, "application/json", b'{"hello": 1}'))
    with pytest.raises(CorruptAnswerError, match="did not answer with a ModelCard"):
        client.model()


def test_an_error_page_of_a_proxy_is_quoted(client: Client, server: "FaultServer") -> None:
    page = b"<html>Bad Gateway by proxy</html>"
    server.get_faults.append(lambda handler, _: handler.send(404, "text/html", page))
    with pytest.raises(errors.NotFoundError, match="Bad Gateway by proxy"):
        client.model()


@given(failures=st.integers(1, 40), asked=st.none() | st.floats(0, 120))
def test_waits_grow_are_jittered_and_never_shorter_than_asked_for(failures: int, asked: float | None) -> None:
    policy = RetryPolicy(max_retries=40)
    wait = policy.wait_s(ServerUnavailableError("", status=503, retryable=True, retry_after_s=asked), failures)
    assert wait is not None
    assert (asked or 0) <= wait <= (asked or 0) + min(60, 0.5 * 2 ** (failures - 1))


@given(st.text(max_size=40))
def test_a_senseless_retry_after_is_ignored(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or seconds >= 0
