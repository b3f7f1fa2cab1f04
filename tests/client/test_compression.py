"""When answers are compressed: as the user says, or behind a slow link; and what is stored is the same."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope.async_client import AsyncClient
from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.errors import ConfigurationError, UnprocessableRequestError
from stratoscope.link import MEASURED_BYTES, OFF_ABOVE, ON_BELOW, CompressionSetting, Link, Transfer, pays
from stratoscope.stimuli import StimulusTable
from stratoscope.store.run import Run
from stratoscope_wire import ActivationsRequest, Capture, Stimulus
from tests.faults.proxy import Conduct, Proxy

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

MB = 1_000_000
SLOW = Conduct(bytes_per_s=30 * MB)
StartServer = Callable[..., AbstractContextManager[str]]


def took(n_bytes: int, rate: float) -> Transfer:
    return Transfer(n_bytes, n_bytes / rate)


def test_compression_pays_below_a_rate_and_goes_on_a_little_above_it() -> None:
    assert [pays(took(MB, rate), is_on=False) for rate in (ON_BELOW - MB, ON_BELOW + MB)] == [True, False]
    assert [pays(took(MB, rate), is_on=True) for rate in (OFF_ABOVE - MB, OFF_ABOVE + MB)] == [True, False]


@given(n_bytes=st.integers(1, 1 << 40), rate=st.floats(1e3, 1e11), is_on=st.booleans())
def test_a_faster_link_never_turns_compression_on(n_bytes: int, rate: float, is_on: bool) -> None:
    if not pays(took(n_bytes, rate), is_on=is_on):
        assert not pays(took(n_bytes, 2 * rate), is_on=is_on)
    if pays(took(n_bytes, rate), is_on=False):
        assert pays(took(n_bytes, rate), is_on=True), "what is off at this rate would flip to and fro"


def test_nothing_is_decided_before_enough_has_come() -> None:
    link, decided = Link("auto", is_loopback=False), []
    for transfer in (took(MEASURED_BYTES - 1, MB), took(1, MB), took(MEASURED_BYTES, 10 * OFF_ABOVE)):
        link.learn(transfer, "zstd")
        decided.append(link.compression)
    assert decided == [None, "zstd", None]


@pytest.mark.parametrize("offered", ["", "lz4", "lz4, brotli"])
def test_what_a_server_does_not_offer_is_never_asked_of_it(offered: str) -> None:
    link = Link("auto", is_loopback=False)
    link.learn(took(MEASURED_BYTES, MB), offered)
    assert link.compression is None


@pytest.mark.parametrize(
    ("setting", "is_loopback", "asked"),
    [
        ("auto", True, None),
        ("none", False, None),
        ("none", True, None),
        ("zstd", False, "zstd"),
        ("zstd", True, "zstd"),
    ],
)
def test_what_the_user_says_and_loopback_come_before_any_measurement(
    setting: CompressionSetting, is_loopback: bool, asked: str | None
) -> None:
    link = Link(setting, is_loopback=is_loopback)
    for rate in (MB, 100 * OFF_ABOVE, MB):
        assert link.compression == asked
        link.learn(took(MEASURED_BYTES, rate), "zstd")
    assert link.compression == asked


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="compression is 'lz4'; give one of auto, none, zstd"):
        Client(compression=cast("CompressionSetting", "lz4"))


def big_request(n_stimuli: int = 6) -> ActivationsRequest:
    """More than a megabyte a stimulus."""
    stimuli = [Stimulus(id=f"s{number}", text=f"{number} " + "word " * 400) for number in range(n_stimuli)]
    return ActivationsRequest(stimuli=stimuli, capture=Capture(sites=["resid_post"], select=["all"]))


@contextmanager
def slowed(url: str) -> Iterator[str]:
    """Give an address of a server behind a slow link that does not look like this machine's own."""
    with Proxy(int(url.rpartition(":")[2])) as proxy:
        proxy.treat(SLOW)
        yield f"http://0.0.0.0:{proxy.port}"


def compressions(caplog: pytest.LogCaptureFixture) -> list[str | None]:
    """How each answer that came was packed."""
    facts = [record.facts for record in caplog.records if record.name == "stratoscope.transport"]  # type: ignore[attr-defined]
    return [fact["compression"] for fact in facts if fact["url"].endswith("/v1/activations")]


def tables(client: Client, n_answers: int) -> list[pa.Table]:
    return [pa.Table.from_batches(client.fetch(big_request())).replace_schema_metadata(None) for _ in range(n_answers)]


def test_auto_turns_compression_on_behind_a_slow_link_and_never_on_loopback(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="stratoscope.transport")
    with start_server() as url:
        with slowed(url) as slow_url, Client(slow_url, timeout=30) as client:
            slowly = tables(client, 4)
        behind_slow_link = compressions(caplog)
        caplog.clear()
        with Client(url) as client:
            quickly = tables(client, 4)
        on_loopback = compressions(caplog)
    assert behind_slow_link[0] is None, "nothing is known of the link before the first answer"
    assert behind_slow_link[-1] == "zstd"
    assert on_loopback == [None] * 4
    assert slowly == quickly


def test_a_slow_proxy_on_this_machine_is_loopback_all_the_same(start_server: StartServer) -> None:
    """The same slow link by an address of this machine: only the address tells."""
    with (
        start_server() as url,
        slowed(url) as slow_url,
        Client(slow_url.replace("0.0.0.0", "127.0.0.1"), timeout=30) as client,
    ):
        tables(client, 2)
        assert client._talk._link.compression is None


@pytest.mark.parametrize("setting", ["none", "zstd", "auto"])
def test_a_run_holds_the_same_values_however_they_came(
    setting: CompressionSetting, start_server: StartServer, tmp_path: Path
) -> None:
    texts = ["word " * (3 + number) for number in range(5)]
    table = StimulusTable.from_frame(pl.DataFrame({"id": [f"s{number}" for number in range(5)], "text": texts}))
    with start_server() as url:
        runs: list[Run] = []
        settings: list[CompressionSetting] = ["none", setting]
        for name in settings:
            with Client(url, compression=name) as client:
                collect(table, tmp_path / f"{name}-{len(runs)}", client, select=["all", "last"])
            runs.append(Run.open(tmp_path / f"{name}-{len(runs)}"))
    first, second = (run.activations("last") for run in runs)
    assert [*first] == [*second]
    assert all(first[key].tobytes() == second[key].tobytes() for key in first)


def test_both_clients_ask_for_compression(start_server: StartServer) -> None:
    async def fetched(url: str) -> list[pa.RecordBatch]:
        async with AsyncClient(url, compression="zstd") as client:
            return await client.fetch(big_request(2))

    with start_server() as url:
        with Client(url, compression="zstd") as client:
            blocking = client.fetch(big_request(2))
        assert asyncio.run(fetched(url)) == blocking


def test_an_older_server_is_asked_for_nothing_it_does_not_know_unless_the_user_insists(
    server: "FaultServer", client: Client
) -> None:
    client.activations(["a"])
    assert "compression" not in json.loads(server.posts[0].body)
    unknown = "compression: Extra inputs are not permitted"
    server.faults.append(lambda handler, _: handler.send_problem(422, "invalid_request", unknown, field="compression"))
    with (
        Client(server.url, compression="zstd") as insisting,
        pytest.raises(UnprocessableRequestError, match="compression"),
    ):
        insisting.activations(["a"])
    assert json.loads(server.posts[1].body)["compression"] == "zstd"
