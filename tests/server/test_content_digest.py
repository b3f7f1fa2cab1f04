"""A request that was damaged on its way is not answered as if it were another one."""

import base64
import hashlib
import json

import httpx2
import pytest

from stratoscope_wire.digest import content_digest

BODY = json.dumps({"stimuli": [{"id": "s1", "text": "A church and organ"}]}).encode()
DAMAGED = BODY.replace(b"organ", b"orgao")


def post(url: str, body: bytes, digest: str, route: str = "/v1/activations") -> httpx2.Response:
    return httpx2.post(f"{url}{route}", content=body, headers={"Content-Digest": digest})


def test_the_digest_is_what_rfc_9530_says() -> None:
    expected = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    assert content_digest(BODY) == f"sha-256=:{expected}:"


@pytest.mark.parametrize("route", ["/v1/activations", "/v1/plan"])
def test_a_body_that_differs_from_its_digest_is_refused(synthetic_url: str, route: str) -> None:
    assert post(synthetic_url, BODY, content_digest(BODY), route).status_code == 200
    answer = post(synthetic_url, DAMAGED, content_digest(BODY), route)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "body_damaged"
    assert answer.json()["error"]["field"] == "Content-Digest"
    assert answer.json()["error"]["retryable"] is True


def test_a_digest_among_others_counts_and_others_alone_say_nothing(synthetic_url: str) -> None:
    other = "sha-512=:AAAA:"
    assert post(synthetic_url, DAMAGED, f"{other}, {content_digest(BODY)}").status_code == 400
    assert post(synthetic_url, BODY, f"{other}, {content_digest(BODY)}").status_code == 200
    assert post(synthetic_url, BODY, other).status_code == 200


def test_a_request_without_a_digest_is_answered(synthetic_url: str) -> None:
    assert httpx2.post(f"{synthetic_url}/v1/activations", content=BODY).status_code == 200
