"""Errors, keys and addresses: the edges of both clients."""

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx2
import pyarrow as pa
import pytest

from stratoscope import errors
from stratoscope.async_client import AsyncClient
from stratoscope.client import Client
from stratoscope.errors import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    CorruptAnswerError,
    IncompleteAnswerError,
    StratoscopeError,
)
from stratoscope.faults import NETWORK_ERRORS, network_error, wire_error
from stratoscope.retries import is_retryable
from stratoscope_wire import ActivationsRequest, Capture, Stimulus, WireError
from stratoscope_wire import errors as wire_errors

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

TEXTS = ["A church and organ", "a cat", "Zürich and its lake", "x", "the end"]
REQUEST = ActivationsRequest(
    stimuli=[Stimulus(id=f"s{number}", text=text) for number, text in enumerate(TEXTS)],
    capture=Capture(layers=[0, 2], select=["last", "all"]),
)


def stimuli_in(batches: list[pa.RecordBatch]) -> list[str]:
    return [stimulus_id for batch in batches for stimulus_id in batch.column(0).unique().to_pylist()]


def _exchange_all(server: "FaultServer", call: Callable[[], StratoscopeError | int]) -> list[object]:
    """Meet one fault after the other; return what each ends in, with the number of requests."""
    faults = [
        server.cut(400),
        server.cut_after(3),
        server.record(2, retryable=True),
        server.record(2, retryable=False),
        server.altered(lambda body: body[:-1]),
        server.altered(lambda body: body + b"more"),
        server.status(503),
        server.status(422, stimulus="s1"),
        server.hang(),
    ]
    outcomes: list[object] = []
    for fault in faults:
        server.received.clear()
        server.faults.append(fault)
        result = call()
        outcomes.append((type(result), str(result), [post.ids for post in server.posts]))
    return outcomes


def test_both_clients_decide_alike_about_every_fault(server: "FaultServer") -> None:
    async def no_wait(_: float) -> None:
        """Do not wait."""

    async def fetch() -> StratoscopeError | int:
        async with AsyncClient(server.url, timeout=0.3, max_retries=2, sleep=no_wait) as client:
            fetched = await client.try_fetch(REQUEST)
            return fetched.error or len(stimuli_in(fetched.batches))

    def fetch_blocking() -> StratoscopeError | int:
        with Client(server.url, timeout=0.3, max_retries=2, sleep=lambda _: None) as client:
            fetched = client.try_fetch(REQUEST)
            return fetched.error or len(stimuli_in(fetched.batches))

    blocking = _exchange_all(server, fetch_blocking)
    assert {outcome[0] for outcome in blocking} > {int, IncompleteAnswerError}  # type: ignore[index]
    assert _exchange_all(server, lambda: asyncio.run(fetch())) == blocking


def test_both_clients_offer_the_same() -> None:
    def offered(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    assert "activations" in offered(Client)
    assert offered(Client) == offered(AsyncClient)
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)


def _leaves(kind: type[BaseException]) -> set[type[BaseException]]:
    below = kind.__subclasses__()
    return {kind}.union(*(_leaves(child) for child in below))


def test_every_exception_of_the_http_library_is_translated() -> None:
    public = [getattr(httpx2, name) for name in httpx2.__all__]
    raised = [item for item in public if isinstance(item, type) and issubclass(item, Exception)]
    assert len(raised) > 25
    # SSEError belongs to server-sent events, which are not used here.
    for kind in raised:
        if kind is httpx2.SSEError:
            continue
        assert issubclass(kind, NETWORK_ERRORS), kind
        error = network_error(kind.__new__(kind), "http://somewhere")
        assert isinstance(error, APIConnectionError)
        assert isinstance(error, APITimeoutError) == issubclass(kind, httpx2.TimeoutException)
        assert kind.__name__ in str(error)


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [
        (httpx2.ConnectError, True),
        (httpx2.ReadTimeout, True),
        (httpx2.RemoteProtocolError, True),
        (httpx2.ReadError, True),
        (httpx2.UnsupportedProtocol, False),
        (httpx2.LocalProtocolError, False),
        (httpx2.TooManyRedirects, False),
    ],
)
def test_only_passing_network_errors_are_tried_again(kind: type[httpx2.RequestError], retryable: bool) -> None:
    assert is_retryable(network_error(kind("why"), "http://somewhere")) is retryable


def test_every_error_of_the_wire_is_translated() -> None:
    kinds = {kind for kind in _leaves(WireError) if kind.__module__ == wire_errors.__name__}
    assert len(kinds) >= 6
    for kind in kinds:
        arguments = {"code": "c", "retryable": True} if kind is wire_errors.RemoteStreamError else {}
        error = wire_error(kind("why", **arguments), "r-1")  # type: ignore[arg-type]
        assert isinstance(error, errors.AnswerError), kind
        assert is_retryable(error) == (not isinstance(error, CorruptAnswerError)), kind


def test_every_error_has_its_place_in_the_drawn_tree() -> None:
    drawn = errors.__doc__ or ""
    kinds = {kind for kind in _leaves(StratoscopeError) if kind.__module__ == errors.__name__}
    assert len(kinds) > 25
    assert {kind.__name__ for kind in kinds if kind.__name__ not in drawn} == set()


def test_the_key_is_sent_in_the_header_only(server: "FaultServer") -> None:
    key = "sk-very-secret-0123456789"
    with Client(server.url, key, max_retries=0) as client:
        client.model()
        server.always = server.status(401)
        with pytest.raises(errors.AuthenticationError) as caught:
            client.fetch(REQUEST)
        shown = [repr(client), repr(client._connection), str(caught.value), repr(caught.value)]
    assert server.posts[0].headers["authorization"] == f"Bearer {key}"
    assert all(key not in text for text in shown)
    assert all(key.encode() not in received.body and key not in received.path for received in server.received)


def test_address_and_key_come_from_the_environment(server: "FaultServer", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATOSCOPE_BASE_URL", f"{server.url}/")
    monkeypatch.setenv("STRATOSCOPE_API_KEY", "from-outside")
    with Client() as client:
        client.model()
        assert client.base_url == server.url
    assert server.received[0].headers["authorization"] == "Bearer from-outside"
    assert server.received[0].path == "/v1/model"


@pytest.mark.parametrize(
    ("address", "key", "message"),
    [
        ("127.0.0.1:8000", None, "not a server's address|not a URL"),
        ("ftp://somewhere", None, "not a server's address"),
        ("http://me:secret@somewhere", None, "holds a password"),
        ("http://somewhere/?key=1", None, "not a server's address"),
        ("http://127.0.0.1", "two\nlines", "characters that no header may carry"),
    ],
)
def test_an_unusable_address_or_key_is_refused_without_showing_secrets(
    address: str, key: str | None, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        Client(address, key)
    assert "secret" not in str(caught.value)
    assert "two" not in str(caught.value)


def test_a_proxy_is_never_asked_for_this_very_machine(server: "FaultServer", monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert httpx2.Client()._mounts, "the proxy was to be seen"
    with Client(server.url, max_retries=0) as client:
        assert client.model() == server.card


def test_a_key_on_an_open_network_is_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"travels unencrypted to gpu\.example\.org"):
        Client("http://gpu.example.org", "key").close()


def test_a_plan_is_asked_for_without_running_anything(client: Client, server: "FaultServer") -> None:
    plan = {
        "stimuli": [{"id": "s0", "n_tokens": 19, "n_rows": 20}],
        "columns": ["resid_post.0"],
        "n_tokens": 19,
        "n_rows": 20,
        "bytes": 640,
        "fingerprint": server.card.fingerprint,
    }
    server.always = lambda handler, _: handler.send(200, "application/json", json.dumps(plan).encode())
    assert client.plan(REQUEST).bytes == 640
    assert server.received[-1].path == "/v1/plan"
