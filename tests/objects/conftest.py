"""A server that knows the truth, an object store, and a table to collect."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from stratoscope.client import Client
from stratoscope.stimuli import StimulusTable
from tests.client.conftest import FaultServer, fault_server
from tests.objects.store import KEY, SECRET, Store, object_store

N = 60


@pytest.fixture(scope="session")
def _shared_store() -> Iterator[Store]:
    with object_store() as store:
        yield store


@pytest.fixture
def store(_shared_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    _shared_store.failing = _shared_store.cutting = ""
    _shared_store.sent.clear()
    return _shared_store


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with fault_server() as server:
        yield server


@pytest.fixture
def client(server: FaultServer) -> Iterator[Client]:
    with Client(server.url, timeout=5) as client:
        yield client


@pytest.fixture
def table(tmp_path: Path) -> StimulusTable:
    frame = pl.DataFrame(
        [{"id": f"s{k}", "text": f"stimulus number {k}", "label": k % 2, "group": f"g{k // 2}"} for k in range(N)]
    )
    frame.write_csv(tmp_path / "table.csv")
    return StimulusTable.from_frame(frame)
