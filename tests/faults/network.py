"""F11: networks that are slow, silent, broken or closed; every stimulus comes all the same."""

import time
from collections.abc import Callable
from typing import Final

from stratoscope.client import Client
from stratoscope.errors import APITimeoutError
from stratoscope.retries import RetryPolicy
from tests.faults.fault import Fault, World
from tests.faults.processes import ServerProcess
from tests.faults.proxy import KIND, Conduct, Proxy
from tests.faults.scene import small_request
from tests.faults.site import Site
from tests.faults.tally import Tally, one

READ_TIMEOUT_S: Final = 2.0
N_STIMULI: Final = 48

Treatment = Callable[[World], Callable[[], Conduct]]


def collect_over_bad_networks(world: World) -> Tally:
    tally = Tally()
    with ServerProcess(world) as server, Proxy(server.port) as proxy:
        for name, treatment in TREATMENTS.items():
            for number in range(world.pick(1, 5)):
                proxy.treat(treatment(world))
                site = Site.make(world.folder / f"{name}-{number}", proxy.url, N_STIMULI)
                began = time.monotonic()
                status = site.collect("--timeout", str(READ_TIMEOUT_S), timeout_s=100)
                outcome, n_there = site.judge(whole=True)
                print(f"{name}: {time.monotonic() - began:.1f} s, {len(proxy.links)} connections", flush=True)
                assert proxy.links or name == "refused", "nothing went through the proxy"
                tally += outcome if status == 0 else Tally(1, 0, outcome.lost)
                assert n_there == N_STIMULI or status != 0
    return tally


def notice_silence(world: World) -> Tally:
    """A server that says nothing more, from the start or in the middle, is given up after the read timeout."""
    tally = Tally()
    request = small_request()
    with (
        ServerProcess(world) as server,
        Proxy(server.port) as proxy,
        Client(proxy.url, max_retries=RetryPolicy(0), timeout=READ_TIMEOUT_S) as client,
    ):
        client.model()
        for cut_after in (0, 1, 100, 1000, 2000)[: world.pick(3, 5)]:
            proxy.treat(Conduct(cut_after=cut_after, by="silence"))
            began = time.monotonic()
            error = client.try_fetch(request).error
            seconds = time.monotonic() - began
            causes = (error, error.__cause__ if error else None)
            told = any(isinstance(cause, APITimeoutError) for cause in causes)
            tally += one(told and seconds < READ_TIMEOUT_S + 5)
    return tally


def _steady(conduct: Conduct) -> Treatment:
    return lambda _: lambda: conduct


def _first(n_connections: int, conduct: Conduct) -> Treatment:
    """Treat the first connections so, and the others well."""

    def treatment(_: World) -> Callable[[], Conduct]:
        left = [conduct] * n_connections
        return lambda: left.pop() if left else KIND

    return treatment


def _late(world: World) -> Callable[[], Conduct]:
    return lambda: Conduct(latency_s=lambda: world.random.uniform(0.1, 0.9))


def _reset(world: World) -> Callable[[], Conduct]:
    return lambda: Conduct(cut_after=world.random.randrange(1500, 20_000), by="rst")


def _refused(world: World) -> Callable[[], Conduct]:
    # The bytes of a connection are few, so that there are many connections to refuse.
    return lambda: Conduct(refuse=True) if world.random.random() < 0.3 else Conduct(cut_after=9000, by="fin")


TREATMENTS: Final[dict[str, Treatment]] = {
    "late": _late,
    "byte by byte": _steady(Conduct(slice_bytes=1)),
    "narrow": _steady(Conduct(bytes_per_s=64_000, slice_bytes=1024)),
    "silent at first": _first(3, Conduct(cut_after=0, by="silence")),
    "half open": _first(3, Conduct(cut_after=4000, by="silence")),
    "reset": _reset,
    "refused": _refused,
}

FAULTS: Final = (
    Fault("F11", "late, narrow, silent, half-open, reset, refused", collect_over_bad_networks, 180, 1200),
    Fault("F11S", "silence is noticed", notice_silence),
)
