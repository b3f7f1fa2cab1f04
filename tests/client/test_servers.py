"""Several servers share one collection, and any of them may fail, be busy, die or come back."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import numpy as np
import polars as pl
import pytest

from stratoscope.breaker import Breaker
from stratoscope.client import Client
from stratoscope.collection import CollectSettings, Progress, collect
from stratoscope.errors import (
    APIConnectionError,
    ConfigurationError,
    ModelChangedError,
    RateLimitedError,
    ServerLostError,
    ServersDifferError,
    ServerUnavailableError,
)
from stratoscope.fetching import Fetched
from stratoscope.servers import smallest_limits
from stratoscope.sources import Source
from stratoscope.store.run import Run
from stratoscope_wire import ActivationsRequest, Stimulus
from tests.client.tables import SMALL, N, make_table

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

REQUEST = ActivationsRequest(stimuli=[Stimulus(id="s", text="text")])


@pytest.fixture
def clients(server: "FaultServer", second_server: "FaultServer") -> Iterator[tuple[Client, Client]]:
    with Client(server.url, timeout=5) as first, Client(second_server.url, timeout=5) as second:
        yield first, second


def test_servers_share_the_work_and_no_stimulus_is_asked_for_twice(
    clients: tuple[Client, Client], server: "FaultServer", second_server: "FaultServer", tmp_path: Path
) -> None:
    counts = collect(make_table(), tmp_path, clients, settings=SMALL)
    assert counts.is_complete
    assert server.posts
    assert second_server.posts
    asked = [name for one in (server, second_server) for post in one.posts for name in post.ids]
    assert sorted(asked) == sorted(make_table().ids)
    server.check_run(tmp_path, make_table())


def test_requests_fit_the_smaller_of_the_servers_limits(
    clients: tuple[Client, Client], server: "FaultServer", second_server: "FaultServer", tmp_path: Path
) -> None:
    server.limits = server.default_limits(max_stimuli=7, max_tokens_per_request=900)
    second_server.limits = server.default_limits(max_stimuli=20, max_tokens_per_request=100)
    limits = smallest_limits(clients)
    assert (limits.max_stimuli, limits.max_tokens_per_request) == (7, 100)
    collect(make_table(), tmp_path, clients)
    server.check_run(tmp_path, make_table())
    assert all(len(post.ids) <= 7 for one in (server, second_server) for post in one.posts)
    assert not [one for one in (server, second_server) if any(one.problem(post.request) for post in one.posts)]


def test_servers_of_different_models_are_refused_by_name_before_anything_is_made(
    clients: tuple[Client, Client], server: "FaultServer", second_server: "FaultServer", tmp_path: Path
) -> None:
    second_server.card = server.make_card(revision="1")
    with pytest.raises(ServersDifferError) as caught:
        collect(make_table(), tmp_path / "run", clients)
    for one in (server, second_server):
        assert f"{one.url} serves tiny with fingerprint {one.card.fingerprint}" in str(caught.value)
        assert one.posts == []
    assert not (tmp_path / "run").exists()


def test_a_collection_needs_a_server_and_each_only_once(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no client"):
        collect(make_table(), tmp_path, [])
    with pytest.raises(ConfigurationError, match="named twice"):
        collect(make_table(), tmp_path, [client, client])


def test_a_failing_server_is_set_aside_and_the_others_do_its_work(
    clients: tuple[Client, Client], server: "FaultServer", tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.always = server.status(500, retryable=True)
    with caplog.at_level(logging.WARNING, "stratoscope"):
        counts = collect(make_table(), tmp_path, clients, settings=SMALL)
    assert counts.is_complete
    assert 3 <= len(server.posts) <= 4, "three failures in a row, and one that may have been under way"
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"server {server.url} is set aside for 5 s"
    ]
    server.check_run(tmp_path, make_table())


def test_a_server_that_hangs_is_set_aside_after_one_timeout_of_each_thread(
    server: "FaultServer", second_server: "FaultServer", tmp_path: Path
) -> None:
    server.always = server.hang()
    with Client(server.url, timeout=0.5) as hanging, Client(second_server.url, timeout=5) as good:
        counts = collect(make_table(), tmp_path, [hanging, good], settings=SMALL, concurrency=2)
    assert counts.is_complete
    assert len(server.posts) == 2
    second_server.check_run(tmp_path, make_table())


def test_a_model_that_changes_on_one_server_stops_everything(
    clients: tuple[Client, Client], second_server: "FaultServer", tmp_path: Path
) -> None:
    second_server.always = second_server.status(409, "fingerprint_mismatch")
    with pytest.raises(ModelChangedError):
        collect(make_table(), tmp_path, clients, settings=SMALL)
    assert len(second_server.posts) <= 2
    assert Run.open(tmp_path, allow_incomplete=True).verify() == []
    assert Run.open(tmp_path, allow_incomplete=True).missing


def test_what_one_server_refuses_for_good_is_not_offered_to_another(
    clients: tuple[Client, Client], server: "FaultServer", second_server: "FaultServer", tmp_path: Path
) -> None:
    settings = CollectSettings(request_bytes=150, shard_bytes=600, on_refusal="skip")
    counts = collect(make_table(s7="REFUSED text"), tmp_path, clients, settings=settings)
    assert (counts.fetched, counts.failed) == (N - 1, 1)
    assert sum("s7" in post.ids for one in (server, second_server) for post in one.posts) == 1


def test_when_all_servers_fail_for_too_long_collection_stops_and_names_each(
    clients: tuple[Client, Client], server: "FaultServer", second_server: "FaultServer", tmp_path: Path
) -> None:
    server.always = second_server.always = server.status(503)
    settings = CollectSettings(lost_seconds=1.5)
    began = time.monotonic()
    with pytest.raises(ServerLostError, match="no server has answered well for") as caught:
        collect(make_table(), tmp_path, clients, settings=settings)
    assert time.monotonic() - began >= 1.5
    assert f"{server.url}: the server says 503" in str(caught.value)
    assert f"{second_server.url}: the server says 503" in str(caught.value)
    server.always = None
    with Client(server.url) as client:
        assert collect(make_table(), tmp_path, client).is_complete
    server.check_run(tmp_path, make_table())


def test_a_cut_answer_of_one_server_is_finished_by_any_and_what_came_of_it_is_kept(
    clients: tuple[Client, Client], server: "FaultServer", second_server: "FaultServer", tmp_path: Path
) -> None:
    server.always = server.cut_after(1)
    counts = collect(make_table(), tmp_path, clients, settings=SMALL)
    assert counts.is_complete
    n_asked = sum(len(post.ids) for one in (server, second_server) for post in one.posts)
    n_lost = sum(len(post.ids) - 1 for post in server.posts)
    assert n_asked == N + n_lost
    server.check_run(tmp_path, make_table())


def source(clock: list[float], *, is_alone: bool = False) -> Source:
    return Source("server", lambda _: came(), Breaker(max_failures=2), is_alone=is_alone, clock=lambda: clock[0])


def came(error: Exception | None = None) -> Fetched:
    assert error is None or isinstance(error, APIConnectionError | RateLimitedError | ServerUnavailableError)
    return Fetched(REQUEST, [], () if error is None else ("s",), error, 1)


def test_a_busy_server_is_given_the_time_it_asks_for_and_is_not_set_aside() -> None:
    clock = [0.0]
    one = source(clock)
    for _ in range(5):
        one.begin()
        one.end(came(RateLimitedError("busy", status=429, retryable=True, retry_after_s=7)))
        assert one.is_out
        assert not one.admits()
        clock[0] += 6.9
        assert not one.admits()
        clock[0] += 1.2
        assert one.admits()
    assert one.failures == 0
    one.begin()
    one.end(came())
    assert not one.is_out


def test_the_only_server_counts_as_failing_when_it_is_busy_since_its_client_has_waited_already() -> None:
    one = source([0.0], is_alone=True)
    for _ in range(2):
        assert not one.is_out
        one.begin()
        one.end(came(RateLimitedError("busy", status=429, retryable=True, retry_after_s=7)))
    assert (one.failures, one.is_out) == (2, True)


def test_a_server_that_answers_after_its_rest_is_back(caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    one = source(clock)
    with caplog.at_level(logging.WARNING, "stratoscope"):
        for _ in range(2):
            one.begin()
            one.end(came(APIConnectionError("gone")))
        outs, admissions = [one.is_out], [one.admits()]
        clock[0] += 5
        admissions.append(one.admits())
        one.begin()
        admissions.append(one.admits())
        one.end(came())
        outs.append(one.is_out)
    assert outs == [True, False]
    assert admissions == [False, True, False], "after the rest one request is a trial enough"
    assert [record.getMessage() for record in caplog.records] == [
        "server server is set aside for 5 s, the others go on: gone",
        "server server is back",
    ]


@contextmanager
def server_process(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the real command's server; it is killed at the end if it still lives."""
    command = [sys.executable, "-m", "stratoscope_server", "--engine", "synthetic", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not is_ready(port):
                assert process.poll() is None, "the server did not start"
                assert time.monotonic() < deadline, "the server did not get ready in a minute"
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def is_ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def test_a_server_that_is_killed_in_the_middle_costs_nothing_and_is_used_again_when_it_is_back(
    tmp_path: Path, free_port: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    ports = [free_port(), free_port()]
    table = make_table(400)
    with (
        ExitStack() as stack,
        Client(f"http://127.0.0.1:{ports[0]}") as first,
        Client(f"http://127.0.0.1:{ports[1]}") as second,
        caplog.at_level(logging.WARNING, "stratoscope"),
    ):
        doomed = [stack.enter_context(server_process(port)) for port in ports][1]

        def kill_and_restart(progress: Progress) -> None:
            if progress.fetched >= 40 and doomed.poll() is None:
                doomed.kill()
                doomed.wait(10)
            if progress.fetched >= 120 and not is_ready(ports[1]):
                stack.enter_context(server_process(ports[1]))
                time.sleep(5.1)  # the rest of a server that was set aside

        settings = CollectSettings(request_bytes=2_000, shard_bytes=20_000)
        counts = collect(table, tmp_path, [first, second], layers=[3], settings=settings, progress=kill_and_restart)
        assert doomed.poll() == -signal.SIGKILL
        assert counts.is_complete
        said = [record.getMessage() for record in caplog.records]
        assert said[0].startswith(f"server {second.base_url} is set aside for 5 s")
        assert said[-1] == f"server {second.base_url} is back"
        assert "stratoscope_stimuli_total 0" not in httpx2.get(f"{second.base_url}/metrics").text
        direct = first.activations(table.stimuli, layers=[3])
    run = Run.open(tmp_path)
    assert run.verify() == []
    rows = pl.concat([pl.read_parquet(path, columns=["stimulus_id"]) for path in run.shard_paths])
    assert sorted(rows["stimulus_id"]) == sorted(table.ids)
    np.testing.assert_allclose(run.activations()["resid_post", 3], direct["resid_post", 3], rtol=1e-5, atol=1e-6)
