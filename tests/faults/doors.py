"""Keys and doors: only `/healthz` opens without a key, a key cannot be guessed by its timing, and it shows nowhere."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Final

import httpx2
import numpy as np
import psutil
from fastapi import Request
from fastapi.routing import APIRoute
from scipy.stats import spearmanr
from starlette.routing import BaseRoute

from stratoscope_server.app import create_app
from stratoscope_server.auth import KeyRing
from stratoscope_server.engines.synthetic import load_engine
from stratoscope_server.problems import ApiError
from stratoscope_server.settings import Settings
from stratoscope_server.station import Station
from tests.faults import raw
from tests.faults.fault import Fault, World
from tests.faults.keys import AUTHORIZED, GOOD_KEY, KeyedServer, write_keys
from tests.faults.processes import environment, free_port
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND")
BODY: Final = json.dumps({"stimuli": [{"id": "s", "text": "A church"}]}).encode()
ALIVE: Final = b'{"status":"alive"}'
HOSTS: Final = ("0.0.0.0", "::", "0", "example.org", "::0", "0.0.0.0.", "192.0.2.1", "127.0.0.1.example.org", "", "*")
N_WRONG_KEYS: Final = 2000
MAX_CORRELATION: Final = 0.1

Disguise = Callable[[str, str], bytes]
"""From a method and a path to a request."""


def _plain(*headers: str, host: str = "127.0.0.1") -> Disguise:
    return lambda method, path: raw.request(method, path, *headers, host=host, body=BODY if method == "POST" else b"")


def _path(change: Callable[[str], str]) -> Disguise:
    return lambda method, path: raw.request(method, change(path), body=BODY if method == "POST" else b"")


DISGUISES: Final[dict[str, Disguise]] = {
    "no key": _plain(),
    "an empty key": _plain("Authorization: Bearer "),
    "a wrong key": _plain(f"Authorization: Bearer {GOOD_KEY[:-1]}x"),
    "the start of the key": _plain(f"Authorization: Bearer {GOOD_KEY[:-1]}"),
    "a comment of the key file": _plain("Authorization: Bearer # keys of the campaign"),
    "another scheme": _plain(f"Authorization: Basic {GOOD_KEY}"),
    "the key without a scheme": _plain(f"Authorization: {GOOD_KEY}"),
    "the key in another header": _plain(f"X-Api-Key: {GOOD_KEY}"),
    "the key in a cookie": _plain(f"Cookie: Authorization=Bearer {GOOD_KEY}"),
    "the key in the address": _path(lambda path: f"{path}?api_key={GOOD_KEY}&authorization=Bearer%20{GOOD_KEY}"),
    "a host that is a path": _plain(host="127.0.0.1/healthz?"),
    "a host that is a fragment": _plain(host="127.0.0.1/healthz#"),
    "an open path in a header": _plain("X-Original-URL: /healthz", "X-Rewrite-URL: /healthz", "X-Forwarded-Prefix: /h"),
    "a method in a header": _plain("X-HTTP-Method-Override: GET", "X-Method-Override: HEAD"),
    "a forwarded loopback": _plain("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1"),
    "a doubled slash": _path(lambda path: f"/{path}"),
    "a slash at the end": _path(lambda path: f"{path}/"),
    "dots": _path(lambda path: f"/healthz/..{path}"),
    "encoded dots": _path(lambda path: f"/healthz/%2e%2e{path}"),
    "an encoded slash": _path(lambda path: f"/healthz%2f..{path}"),
    "an encoded letter": _path(lambda path: f"/%{ord(path[1]):02x}{path[2:]}"),
    "upper case": _path(str.upper),
    "a parameter": _path(lambda path: f"{path};/healthz"),
    "a query that is a path": _path(lambda path: f"{path}?/healthz"),
    "an absolute address": _path(lambda path: f"http://127.0.0.1/healthz{path}"),
    "an absolute address of the path": _path(lambda path: f"http://healthz{path}"),
    "a NUL": _path(lambda path: f"{path}%00/healthz"),
}  # fmt: skip


def only_one_door_is_open(world: World) -> Tally:
    verdicts = Verdicts()
    paths = _paths()
    assert {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/model", "/v1/activations"} <= set(paths)
    with KeyedServer(world) as server:
        let_in = raw.send(server.url, raw.request("GET", "/v1/model", f"Authorization: Bearer {GOOD_KEY}"))
        assert let_in.status == 200
        for name, method, path, data in _attempts(paths):
            reply = raw.send(server.url, data)
            verdicts.judge(_is_closed(reply, method), f"{method} {path} with {name}: {reply}")
    return verdicts.tally


def _paths() -> list[str]:
    """Every path of the app, found in the app itself."""
    app = create_app(Station(load_engine, lambda: None), Settings(engine="synthetic", port=0))
    return sorted({route.path for route in _routes(app.routes) if isinstance(route, APIRoute)})


def _routes(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    for route in routes:
        included = getattr(route, "original_router", None)
        yield from _routes(included.routes) if included else [route]


def _attempts(paths: list[str]) -> Iterator[tuple[str, str, str, bytes]]:
    for name, disguise in DISGUISES.items():
        for method in METHODS:
            yield from ((name, method, path, disguise(method, path)) for path in paths)


def _is_closed(reply: raw.Reply, method: str) -> bool:
    """Whether nothing was given away: a refusal, or the one open answer."""
    if reply.status == 0 or 300 <= reply.status < 500:
        return GOOD_KEY.encode() not in reply.body
    return reply.status == 200 and method == "GET" and reply.body == ALIVE


def keys_cannot_be_guessed_or_read(world: World) -> Tally:
    verdicts = Verdicts()
    wrong = _wrong_keys(world)
    ring = KeyRing(write_keys(world.folder))
    leaky = _correlation(_Leaky(GOOD_KEY), wrong, world)
    assert leaky > MAX_CORRELATION, f"a comparison that leaks is not found out: {leaky}"
    found = min(_correlation(lambda key: _refused(ring, key), wrong, world) for _ in range(3))
    sys.stderr.write(f"rank correlation of time and shared bytes {found:.4f}, of a leaky comparison {leaky:.4f}\n")
    verdicts.tally += Tally(injected=len(wrong), survived=len(wrong) if found < MAX_CORRELATION else 0)
    _judge_that_keys_show_nowhere(world, wrong[: world.pick(100, 2000)], verdicts)
    return verdicts.tally


class _Leaky:
    """Compares byte by byte and stops at the first that differs."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, key: str) -> None:
        for mine, its in zip(self._key, key, strict=True):
            if mine != its:
                return


def _wrong_keys(world: World) -> list[str]:
    """Keys that share 0 to 31 leading bytes with the good one, equally often, in random order."""
    keys = []
    for index in range(N_WRONG_KEYS):
        n_shared = index % len(GOOD_KEY)
        other = "".join(world.random.choices("ghijklmnopqrstuvwxyz", k=len(GOOD_KEY) - n_shared))
        keys.append(GOOD_KEY[:n_shared] + other)
    world.random.shuffle(keys)
    return keys


def _refused(ring: KeyRing, key: str) -> None:
    headers = [(b"authorization", f"Bearer {key}".encode())]
    work = ring(Request({"type": "http", "headers": headers, "state": {}}))
    try:
        work.send(None)
    except ApiError:
        return
    raise AssertionError("a wrong key was let in")


def _correlation(check: Callable[[str], object], keys: list[str], world: World) -> float:
    """Absolute rank correlation between how much of a key is right and the median time to refuse it."""
    n_shared = [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(key, GOOD_KEY, strict=True))) for key in keys
    ]
    times: list[list[int]] = [[] for _ in keys]
    for _ in range(world.pick(15, 51)):
        # In another order each time, so that whatever else the machine does falls on all alike.
        for index in world.random.sample(range(len(keys)), len(keys)):
            began = time.perf_counter_ns()
            check(keys[index])
            times[index].append(time.perf_counter_ns() - began)
    medians = [statistics.median(of_key) for of_key in times]
    return abs(float(np.asarray(spearmanr(n_shared, medians).statistic)))


def _judge_that_keys_show_nowhere(world: World, wrong: list[str], verdicts: Verdicts) -> None:
    with KeyedServer(world) as server:
        answers: list[httpx2.Response] = []
        with httpx2.Client(base_url=server.url) as client:
            answers += [client.get("/v1/model", headers={"Authorization": f"Bearer {key}"}) for key in wrong]
            for route in ("/v1/model", "/v1/none", "/metrics", "/v1/plan", "/openapi.json"):
                answers += [client.request(method, route, headers=AUTHORIZED) for method in ("GET", "POST")]
        told = b"\n".join(str(answer.headers).encode() + answer.content for answer in answers)
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        shown = b"\n".join(
            Path(f"/proc/{process.pid}/{file}").read_bytes() for process in processes for file in ("cmdline", "environ")
        )
    places = {"answers": told, "command lines": shown, "the log": server.log.read_bytes()}
    for place, content in places.items():
        found = [key for key in (GOOD_KEY, *wrong) if key.encode() in content]
        verdicts.judge(not found, f"{place} hold {found[:3]}")


def no_key_no_network(world: World) -> Tally:
    verdicts = Verdicts()
    for host in HOSTS[: world.pick(4, len(HOSTS))]:
        for how in ("flag", "variable"):
            ended, port = _serve_on(host, how, world)
            refused = ended is not None and ended.returncode == 2 and not ended.stdout and _says_why(ended.stderr)
            verdicts.judge(refused, f"host {host!r} by {how}: {ended}, port {port}")
    return verdicts.tally


def _serve_on(host: str, how: str, world: World) -> tuple[subprocess.CompletedProcess[str] | None, int]:
    port = free_port()
    flags = ["--host", host] if how == "flag" else []
    variables = {"STRATOSCOPE_HOST": host} if how == "variable" else {}
    command = [sys.executable, "-m", "stratoscope_server", "--engine", "synthetic", "--port", str(port), *flags]
    try:
        ended = subprocess.run(
            command, env=environment(**variables), cwd=world.folder, capture_output=True, text=True, timeout=30,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, port
    return ended, port


def _says_why(message: str) -> bool:
    return "--host" in message or "--api-key-file" in message


FAULTS: Final = (
    Fault("S7", "keys guessed by timing, looked for in logs and answers", keys_cannot_be_guessed_or_read, small_s=90),
    Fault("S8", "every route, method and disguise without a key", only_one_door_is_open, small_s=120),
    Fault("S15", "a server on the network without a key", no_key_no_network, small_s=120),
)
