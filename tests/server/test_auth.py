"""Keys: who is let in, who asked, which routes are open, and that no key is ever told."""

import asyncio
import hmac
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.applications import Starlette

from stratoscope_server.app import create_app
from stratoscope_server.auth import KeyRing
from stratoscope_server.engines.synthetic import load_engine
from stratoscope_server.problems import ApiError
from stratoscope_server.routes import OPEN, asks_for_key, refuse_open_routes, routes_of, table
from stratoscope_server.settings import Settings, SettingsError
from stratoscope_server.station import Station

StartServer = Callable[..., AbstractContextManager[str]]

FIRST = "first-key-0123456789"
SECOND = "second-key-0123456789"
ROOT = Path(__file__).parents[2]


def app_with(**settings: object) -> FastAPI:
    chosen = Settings.model_validate({"engine": "synthetic", **settings})
    return create_app(Station(lambda: load_engine(None), lambda: None), chosen)


def request_with(*headers: tuple[bytes, bytes]) -> Request:
    return Request({"type": "http", "headers": list(headers), "state": {}})


def asked(ring: KeyRing, *headers: tuple[bytes, bytes]) -> str:
    request = request_with(*headers)
    try:
        asyncio.run(ring(request))
    except ApiError:
        assert not hasattr(request.state, "key"), "who was refused is nobody"
        raise
    return str(request.state.key)


def bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", f"Bearer {key}".encode()


def test_the_number_of_the_key_is_known_and_neither_the_key_nor_its_digest(key_file: Path) -> None:
    ring = KeyRing(key_file)
    assert [asked(ring, bearer(key)) for key in (FIRST, SECOND)] == ["key-1", "key-2"]
    assert asked(KeyRing(None)) == "anonymous"


def test_a_request_that_is_refused_is_nobodys(key_file: Path) -> None:
    for headers in ([], [bearer("wrong")], [(b"authorization", f"Basic {FIRST}".encode())]):
        with pytest.raises(ApiError, match="API key"):
            asked(KeyRing(key_file), *headers)


def test_every_digest_is_compared_whichever_matches(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bool] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append(compare(one, other))
        return compared[-1]

    monkeypatch.setattr(hmac, "compare_digest", counted)
    ring = KeyRing(key_file)
    asked(ring, bearer(FIRST))
    assert compared == [True, False]
    compared.clear()
    with pytest.raises(ApiError):
        asked(ring)
    assert compared == [False, False]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# a remark\n\ntoo-short\n", "line 3 of .* has 9 characters; at least 16"),
        (f"{FIRST} {SECOND}\n", "line 1 of .* no header can carry"),
        ("schl\u00fcssel-0123456789\n", "line 1 of .* no header can carry"),
        ("   # an indented remark\n", "holds no key"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused_by_its_line_and_not_shown(
    content: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words) as refusal:
        KeyRing(path)
    for secret in ("too-short", FIRST, "0123456789"):
        assert secret not in str(refusal.value)


def test_a_key_file_that_is_not_utf8_is_refused_without_showing_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"very-secret-key-\xff\xfe")
    with pytest.raises(ValueError, match="byte 16 is not UTF-8") as refusal:
        KeyRing(path)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o660, True)])
def test_a_key_file_that_others_can_read_is_warned_about(
    mode: int, warned: bool, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key_file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        KeyRing(key_file)
    assert ("others can read or change a secret: chmod 600" in caplog.text) is warned
    assert FIRST not in caplog.text


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "0", "192.0.2.1", "::ffff:0.0.0.0", "localhost.example.org", "a-host", "*"]
)
def test_beyond_loopback_the_server_does_not_start_without_a_key(host: str, key_file: Path) -> None:
    with pytest.raises(SettingsError, match="can be reached from other machines: give --api-key-file"):
        Settings.from_args(["--host", host], {})
    assert Settings.from_args(["--host", host, "--api-key-file", str(key_file)], {}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    assert Settings.from_args(["--host", host], {}).api_key_file is None


def test_a_route_that_asks_for_no_key_stops_the_server_unless_it_is_named_open() -> None:
    app = app_with()
    refuse_open_routes(app)

    @app.get("/forgotten")
    def forgotten() -> None: ...

    with pytest.raises(RuntimeError, match="route /forgotten asks for no key: put it on the guarded router"):
        refuse_open_routes(app)


def test_a_mounted_app_counts_as_open() -> None:
    app = app_with()
    app.mount("/below", Starlette())
    with pytest.raises(RuntimeError, match="route /below asks for no key"):
        refuse_open_routes(app)


def add_route(app: FastAPI) -> None:
    """Add a route to the router that has most of them, as somebody would who knows nothing of keys."""
    routers: list[APIRouter] = [route.original_router for route in app.routes if hasattr(route, "original_router")]
    largest = max(routers, key=lambda router: len(router.routes))

    @largest.get("/added")
    async def added() -> str:
        return "let in"


def test_a_route_added_to_the_guarded_router_asks_for_a_key_without_being_told(key_file: Path) -> None:
    app = app_with(api_key_file=key_file)
    add_route(app)
    refuse_open_routes(app)

    async def get(*headers: tuple[str, str]) -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://scope") as client:
            return await client.get("/added", headers=dict(headers))

    assert asyncio.run(get()).status_code == 401
    assert asyncio.run(get(("Authorization", f"Bearer {FIRST}"))).json() == "let in"


def raw(url: str, method: str, target: str, *headers: str) -> bytes:
    """Send a request line that no client library would, and return the status line of the answer."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        lines = [f"{method} {target} HTTP/1.1", "Connection: close", "Content-Length: 0", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        return connection.makefile("rb").readline()


FORGED = {
    "nothing": (),
    "a wrong key": ("Host: scope", "Authorization: Bearer wrong-key-0123456789"),
    "a wrong scheme": ("Host: scope", f"Authorization: Basic {FIRST}"),
    "a forged host": ("Host: scope/healthz?#",),
    "a forged path": ("Host: scope", "X-Original-URL: /healthz", "X-Forwarded-Prefix: /healthz"),
}


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED)
def test_no_route_of_the_app_is_open_to_any_method_or_spelling_but_healthz(
    start_server: StartServer, key_file: Path, headers: tuple[str, ...]
) -> None:
    headers = headers or ("Host: scope",)
    paths = {str(getattr(route, "path", "")) for route in routes_of(app_with().routes)}
    assert paths > {"/v1/activations", "/v1/plan", "/metrics", "/docs", "/openapi.json", *OPEN}
    with start_server(api_key_file=key_file) as url:
        good = ("Host: scope", f"Authorization: Bearer {FIRST}")
        assert b" 200 " in raw(url, "GET", "/v1/model", *good)
        for path in sorted(paths - OPEN):
            for target in (
                path,
                f"/{path}",
                path.upper(),
                path + "/",
                path.replace("/", "/%2e/"),
                f"/healthz/..{path}",
            ):
                for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
                    status = raw(url, method, target, *headers).split()[1]
                    assert status in (b"400", b"401", b"404", b"405", b"307"), (method, target, status)


def test_security_md_holds_exactly_the_routes_of_the_app() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    made = table(app_with())
    assert made.count("\n") >= 11
    assert made in text
    assert text.count("| method | path |") == 1


def test_every_route_but_the_open_ones_asks_for_a_key() -> None:
    found = {str(getattr(route, "path", "")): asks_for_key(route) for route in routes_of(app_with().routes)}
    assert {path for path, asks in found.items() if not asks} == OPEN


def wait_until_alive(client: httpx2.Client, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            client.get("/healthz")
        except httpx2.ConnectError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server did not start")


def test_no_key_is_in_the_log_the_settings_or_the_arguments(key_file: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "stratoscope_server", "--engine", "synthetic", "--port", str(port)]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")}
    with subprocess.Popen(
        [*command, "--api-key-file", str(key_file)], stderr=subprocess.PIPE, text=True, env=environ
    ) as process:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until_alive(client, process)
            good = {"Authorization": f"Bearer {FIRST}"}
            assert client.get("/v1/model", headers=good).status_code in (200, 503)
            assert client.get(f"/v1/model?key={SECOND}", headers={"Authorization": "Bearer wrong"}).status_code == 401
            arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.terminate()
        log = process.communicate(timeout=30)[1]
    assert "GET /v1/model" in log
    assert "key=key-1" in log
    for told in (log, arguments.decode(), repr(Settings(api_key_file=key_file)), repr(vars(KeyRing(key_file)))):
        assert FIRST not in told
        assert SECOND not in told
