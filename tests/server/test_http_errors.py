import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import pytest

from stratoscope_wire import Limits

StartServer = Callable[..., AbstractContextManager[str]]

GOOD = {"stimuli": [{"id": "s1", "text": "A church and organ"}]}


@pytest.fixture(scope="module")
def url(start_server: StartServer) -> Iterator[str]:
    limits = {
        "max_body_bytes": 4000,
        "max_stimuli": 3,
        "max_characters_per_text": 60,
        "max_tokens_per_text": 8,
        "max_tokens_per_request": 16,
        "max_response_bytes": 12 * 64 * 4 * 3,
        "max_headers": 20,
        "max_header_bytes": 2000,
        "max_url_bytes": 300,
        "max_json_depth": 5,
        "max_json_values": 40,
        "max_bytes_in_flight": 1 << 20,
    }
    with start_server(**limits) as base:
        yield base


def post(
    url: str, body: object = None, *, content: bytes | None = None, route: str = "/v1/activations"
) -> httpx2.Response:
    with httpx2.Client(base_url=url) as client:
        return client.post(route, content=content) if content is not None else client.post(route, json=body)


def text_stimuli(*texts: str) -> dict[str, object]:
    return {"stimuli": [{"id": f"s{index}", "text": text} for index, text in enumerate(texts)]}


BAD: dict[str, tuple[object, int, str, str | None, str]] = {
    "unknown field": ({**GOOD, "capture": {"site": ["embed"]}}, 422, "invalid_request", "capture.site", "'sites'"),
    "unknown field of a stimulus": (
        {"stimuli": [{"id": "s1", "text": "A", "txt": "A"}]},
        422,
        "invalid_request",
        "stimuli[0].txt",
        "did you mean 'text'",
    ),
    "unknown site": ({**GOOD, "capture": {"sites": ["resid"]}}, 422, "invalid_request", "capture.sites", "resid_post"),
    "unknown layer": ({**GOOD, "capture": {"layers": [12]}}, 422, "invalid_request", "capture.layers", "12 layers"),
    "unknown selector": (
        {**GOOD, "capture": {"select": ["lst"]}},
        422,
        "invalid_request",
        "capture.select[0]",
        "'last'",
    ),
    "a word for a boolean": (
        {**GOOD, "add_special_tokens": "no"},
        422,
        "invalid_request",
        "add_special_tokens",
        "boolean",
    ),
    "missing position": ({**GOOD, "capture": {"select": [5]}}, 422, "invalid_selection", "stimuli[0]", "5 tokens"),
    "empty text": ({**text_stimuli(""), "add_special_tokens": False}, 422, "no_tokens", "stimuli[0]", "no tokens"),
    "unknown token": (
        {"stimuli": [{"id": "s1", "token_ids": [50_000]}]},
        422,
        "unknown_token",
        "stimuli[0].token_ids",
        "49999",
    ),
    "not an object": ([], 422, "invalid_request", None, "object"),
}


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("route", ["/v1/activations", "/v1/plan"])
def test_a_bad_request_gets_its_status_and_a_message_that_names_the_fault(url: str, fault: str, route: str) -> None:
    body, status, code, field, words = BAD[fault]
    answer = post(url, body, route=route)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error.get("field")) == (status, code, field)
    assert words in error["message"]
    assert error["request_id"] == answer.headers["X-Request-Id"]
    assert post(url, GOOD).status_code == 200


LIMITS: dict[str, tuple[object, object, int, str, int]] = {
    "stimuli": (text_stimuli("A", "B", "C"), text_stimuli("A", "B", "C", "D"), 422, "too_many_stimuli", 3),
    "characters": (text_stimuli("x" * 60), text_stimuli("x" * 61), 422, "text_too_long", 60),
    "tokens per text": (text_stimuli("a " * 7), text_stimuli("a " * 8), 422, "text_too_long", 8),
    "tokens": (
        text_stimuli("a " * 7, "a " * 7),
        text_stimuli("a " * 7, "a " * 7, "b"),
        413,
        "too_many_tokens",
        16,
    ),
    "response bytes": (
        {**text_stimuli("a b"), "capture": {"select": ["all"]}},
        {**text_stimuli("a b c"), "capture": {"select": ["all"]}},
        413,
        "response_too_large",
        12 * 64 * 4 * 3,
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_request_at_a_limit_is_answered_and_one_beyond_it_refused(url: str, limit: str) -> None:
    accepted, refused, status, code, number = LIMITS[limit]
    assert post(url, accepted).status_code == 200
    answer = post(url, refused)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["limit"]) == (status, code, number)
    assert str(number) in error["message"]


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_refused_declared_or_not(url: str) -> None:
    body = b'{"stimuli":[{"id":"s1","text":"A church"}]}'
    assert post(url, content=body.ljust(4000)).status_code == 200

    def chunks() -> Iterator[bytes]:
        yield body.ljust(4000)
        yield b" "

    declared = post(url, content=body.ljust(4001))
    with httpx2.Client(base_url=url) as client:
        undeclared = client.post("/v1/activations", content=chunks())
    for answer in (declared, undeclared):
        assert answer.status_code == 413
        assert answer.json()["error"]["limit"] == 4000


def raw_headers(url: str, headers: list[tuple[str, str]], path: str = "/healthz") -> httpx2.Response:
    """Send exactly these headers."""
    address = httpx2.URL(url)
    request = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        connection.sendall(request.encode())
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        return httpx2.Response(reply.status, content=reply.read())


def test_headers_at_their_limits_are_read_and_more_are_refused(url: str) -> None:
    host = ("host", "x")
    many = [host, *((f"x-{number}", "1") for number in range(19))]
    # A header counts with its colon, space and line end.
    large = [host, ("x-large", "1" * (2000 - len("host: x\r\n") - len("x-large: \r\n")))]
    for accepted, refused, code in (
        (many, [*many, ("x-one-more", "1")], "too_many_headers"),
        (large, [host, ("x-large", large[1][1] + "1")], "headers_too_large"),
    ):
        assert raw_headers(url, accepted).status_code == 200
        answer = raw_headers(url, refused)
        assert (answer.status_code, answer.json()["error"]["code"]) == (431, code)


def test_an_address_at_its_limit_is_read_and_a_longer_one_is_refused(url: str) -> None:
    assert raw_headers(url, [("host", "x")], "/healthz?".ljust(301, "a")).status_code == 200
    answer = raw_headers(url, [("host", "x")], "/healthz?".ljust(302, "a"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (414, "url_too_long")


def test_json_at_its_depth_is_read_and_deeper_json_is_refused_whatever_its_strings_hold(url: str) -> None:
    deepest = {"stimuli": [{"id": "]}[{", "text": "a [[[ b", "spans": {"first": [0, 1]}}]}
    assert post(url, deepest).status_code == 200
    answer = post(url, {"stimuli": [{"id": "s1", "text": "a", "spans": {"first": [0, {}]}}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "too_deep")
    answer = post(url, content=b"[" * 3000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "too_deep")


def test_as_many_values_as_allowed_are_read_and_one_more_is_refused_whatever_its_strings_hold(url: str) -> None:
    def layers(n: int) -> bytes:
        return b'{"stimuli":[{"id":"\\",[","text":",,,,,,,,"}],"capture":{"layers":[%s]}}' % b",".join([b"1"] * n)

    # The other values: a body, its stimuli, one of them with two fields, the capture and its layers.
    answer = post(url, content=layers(40 - 7))
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "capture.layers")
    answer = post(url, content=layers(40 - 7 + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_values")
    assert answer.json()["error"]["limit"] == 40


def test_a_body_of_faults_is_told_how_many_and_not_each(start_server: StartServer) -> None:
    with start_server() as url:
        answer = post(url, content=b'{"stimuli":[%s]}' % b",".join([b"1"] * 2000))
    assert answer.status_code == 422
    assert "2000 faults" in answer.json()["error"]["message"]


def test_the_response_limit_names_what_would_fit(url: str) -> None:
    body = {**text_stimuli("a b", "c d"), "capture": {"select": ["all"]}}
    message = post(url, body).json()["error"]["message"]
    assert f"{6 * 12 * 64 * 4} bytes" in message
    assert "first 1 stimuli would fit" in message


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b'{"stimuli":[{"id":"s1","text":"A \xff"}]}', "invalid_utf8", "byte 33"),
        (b'{"stimuli":', "invalid_json", "EOF"),
        (b"", "invalid_json", "EOF"),
        (b'{"stimuli":[{"id":"s1","text":"\\ud800"}]}', "invalid_json", "escape"),
    ],
)
def test_what_is_not_json_in_utf8_gets_a_400(url: str, content: bytes, code: str, words: str) -> None:
    answer = post(url, content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert words in answer.json()["error"]["message"]


def test_the_limits_in_force_are_published(url: str) -> None:
    published = httpx2.get(f"{url}/v1/limits").json()
    assert published.keys() == Limits.model_fields.keys()
    assert published == {
        "max_header_bytes": 2000,
        "max_headers": 20,
        "max_url_bytes": 300,
        "max_json_depth": 5,
        "max_json_values": 40,
        "max_stimulus_bytes": None,
        "max_bytes_in_flight": 1 << 20,
        "max_running": 4,
        "max_queued": 16,
        "max_queued_per_key": 16,
        "max_queued_tokens": 262_144,
        "max_connections": 64,
        "receive_seconds": 15,
        "keep_alive_seconds": 75,
        "queue_seconds": 120,
        "first_batch_seconds": 120,
        "between_batches_seconds": 60,
        "write_stall_seconds": 60,
        "request_seconds": 1800,
        "drain_seconds": 60,
        "max_body_bytes": 4000,
        "max_stimuli": 3,
        "max_characters_per_text": 60,
        "max_tokens_per_text": 8,
        "max_tokens_per_request": 16,
        "max_response_bytes": 9216,
    }


def test_an_unknown_route_and_a_wrong_method_answer_in_the_same_form(url: str) -> None:
    for answer, status in ((httpx2.get(f"{url}/v2"), 404), (httpx2.get(f"{url}/v1/activations"), 405)):
        assert answer.status_code == status
        assert answer.json()["error"]["request_id"] == answer.headers["X-Request-Id"]


def test_an_expected_fingerprint_that_differs_is_a_conflict(url: str) -> None:
    fingerprint = httpx2.get(f"{url}/v1/model").json()["fingerprint"]
    for expected, status in ((fingerprint, 200), ("0" * 32, 409)):
        answer = httpx2.post(f"{url}/v1/activations", json=GOOD, headers={"X-Fingerprint": expected})
        assert answer.status_code == status


def test_a_request_id_is_taken_over_if_harmless_and_replaced_otherwise(url: str) -> None:
    for given, taken in (("run-7.a_1", True), ("x" * 65, False), ("a b", False)):
        answer = httpx2.get(f"{url}/healthz", headers={"X-Request-Id": given})
        assert (answer.headers["X-Request-Id"] == given) is taken


def test_without_a_known_key_every_route_but_healthz_is_closed(start_server: StartServer, key_file: Path) -> None:
    with start_server(api_key_file=key_file) as url:
        spec = httpx2.get(f"{url}/openapi.json", headers={"Authorization": "Bearer first-key-0123456789"})
        routes = [(m, p) for p, methods in spec.json()["paths"].items() for m in methods] + [
            ("get", "/docs"),
            ("get", "/openapi.json"),
        ]
        assert {path for _, path in routes} >= {"/v1/activations", "/v1/plan", "/v1/model", "/v1/limits", "/readyz"}
        for method, path in routes:
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first-key-0123456789"}):
                status = httpx2.request(method, url + path, headers=header).status_code
                assert status == (200 if path == "/healthz" else 401), (method, path, header)
        for key in ("first-key-0123456789", "second-key-0123456789"):
            authorized = {"Authorization": f"bearer {key}"}
            assert httpx2.get(f"{url}/v1/model", headers=authorized).status_code == 200
        refused = httpx2.get(f"{url}/v1/model", headers={"Authorization": "Bearer # keys of the lab"})
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
