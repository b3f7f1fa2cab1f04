"""What guards a run: nothing in it is lost, doubled or mixed."""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from stratoscope.client import Client
from stratoscope.collection import CollectSettings, Progress, collect
from stratoscope.errors import (
    CaptureChangedError,
    FingerprintChangedError,
    ModelChangedError,
    RunError,
    RunLockedError,
    ShardDamagedError,
    StimulusChangedError,
)
from stratoscope.retries import RetryPolicy
from stratoscope.stimuli import StimulusTable
from stratoscope.store import database, ledger
from stratoscope.store.filesystem import filesystem_type
from stratoscope.store.measurement import Measurement
from stratoscope.store.run import Run
from stratoscope.store.writer import RunWriter

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

N = 30
SMALL = CollectSettings(request_bytes=150, shard_bytes=600)
"""Sizes at which a few stimuli make a request and a few requests make a shard."""


def make_table(n: int = N, **changes: str) -> StimulusTable:
    rows = [{"id": f"s{k}", "text": f"stimulus number {k}", "label": k % 2, "group": f"g{k % 5}"} for k in range(n)]
    return StimulusTable.from_frame(
        pl.DataFrame([row | {"text": changes.get(str(row["id"]), row["text"])} for row in rows])
    )


def test_a_run_refuses_another_model(server: "FaultServer", tmp_path: Path) -> None:
    with Client(server.url) as client:
        collect(make_table(5), tmp_path, client)
    old, server.card = server.card, server.make_card(revision="1")
    server.received.clear()
    with Client(server.url) as client, pytest.raises(FingerprintChangedError) as caught:
        collect(make_table(), tmp_path, client)
    message = str(caught.value)
    assert old.fingerprint in message
    assert server.card.fingerprint in message
    assert "revision: 0 in the run, 1 now" in message
    assert server.posts == []


def test_a_model_that_changes_under_way_stops_collection_before_anything_is_mixed(
    server: "FaultServer", tmp_path: Path
) -> None:
    with Client(server.url) as client:

        def change(handler: Any, body: bytes) -> None:
            handler.send_stream(body)
            server.card = server.make_card(revision="1")

        server.faults.append(change)
        old = server.card
        with pytest.raises(ModelChangedError):
            collect(make_table(), tmp_path, client, settings=SMALL, concurrency=1)
    assert len(server.posts) == 2
    run = Run.open(tmp_path, allow_incomplete=True)
    assert 0 < len(run.stimuli()) < N
    assert run.card == old
    assert run.verify() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [0]}, "columns: .* in the run, .* now"),
        ({"sites": ["mlp_out"]}, "columns: .*mlp_out"),
        ({"select": ["last", "all"]}, "select: "),
        ({"add_special_tokens": False}, "add_special_tokens: true in the run, false now"),
    ],
)
def test_a_run_refuses_another_capture(
    client: Client, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    begin: Callable[..., Progress] = collect
    begin(make_table(3), tmp_path, client)
    with pytest.raises(CaptureChangedError, match=message):
        begin(make_table(3), tmp_path, client, **changes)


def test_a_capture_written_differently_is_the_same(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    collect(make_table(3), tmp_path, client, sites=["resid_post"], layers="all")
    server.received.clear()
    collect(make_table(3), tmp_path, client, sites=["resid_post"], layers=[2, -2, 0])
    collect(make_table(3), tmp_path, client, sites=["resid_post"], layers="0:3")
    assert server.posts == []


def test_a_run_refuses_an_id_with_other_content(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    collect(make_table(), tmp_path, client)
    with pytest.raises(StimulusChangedError, match=r"1 stimuli have other content .* the first is 's4'"):
        collect(make_table(s4="other words"), tmp_path, client)
    server.check_run(tmp_path, make_table())


def test_a_run_refuses_a_table_that_lacks_its_stimuli(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    collect(make_table(), tmp_path, client)
    with pytest.raises(StimulusChangedError, match="10 stimuli that the table lacks, the first is 's20'"):
        collect(make_table(20), tmp_path, client)
    server.check_run(tmp_path, make_table())


def test_a_second_writer_is_told_at_once(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    server.faults.append(server.hang())
    first = threading.Thread(target=collect, args=(make_table(), tmp_path, client))
    first.start()
    while not server.posts:
        assert first.is_alive()
    n_posts = len(server.posts)
    with Client(server.url) as other, pytest.raises(RunLockedError, match=f"pid {os.getpid()}"):
        collect(make_table(), tmp_path, other)
    assert len(server.posts) == n_posts
    server.closing.set()
    first.join(20)
    server.check_run(tmp_path, make_table())


def test_a_shard_is_made_durable_before_the_ledger_knows_of_it(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noted(owner: object, name: str, describe: Callable[..., str]) -> None:
        works = getattr(owner, name)

        def call(*arguments: object) -> object:
            events.append(f"{name} {describe(*arguments)}".strip())
            return works(*arguments)

        monkeypatch.setattr(owner, name, call)

    def kind(path: object) -> str:
        return "shards" if Path(str(path)).name == "shards" else Path(str(path)).suffix or "folder"

    noted(os, "fsync", lambda descriptor: kind(Path(f"/proc/self/fd/{descriptor}").readlink()))
    noted(os, "replace", lambda _, target: kind(target))
    noted(ledger.Ledger, "commit_shard", lambda *_: "")
    collect(make_table(3), tmp_path, client)
    commit = events.index("commit_shard")
    assert events[commit - 3 : commit] == ["fsync .tmp", "replace .parquet", "fsync shards"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failing_disk_leaves_no_half_written_shard(
    client: Client, server: "FaultServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    collect(make_table(5), tmp_path, client)
    before = sorted((tmp_path / "shards").iterdir())
    works = getattr(os, broken)
    n_calls = 0

    def fail(*arguments: object) -> None:
        nonlocal n_calls
        n_calls += 1
        path = Path(f"/proc/self/fd/{arguments[0]}").readlink() if broken == "fsync" else arguments[0]
        if "shards" in str(path):
            raise OSError(28, "No space left on device")
        works(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(OSError, match="No space left"):
            collect(make_table(), tmp_path, client)
    assert n_calls
    assert sorted((tmp_path / "shards").iterdir()) == before
    assert len(Run.open(tmp_path).missing) == N - 5
    collect(make_table(), tmp_path, client)
    server.check_run(tmp_path, make_table())


def test_what_a_crash_leaves_behind_is_swept_and_never_read(
    client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    collect(make_table(10), tmp_path, client)
    shards = tmp_path / "shards"
    committed = next(shards.glob("*.parquet"))
    (shards / ".abc.tmp").write_bytes(b"half")
    (shards / ("0" * 24 + ".parquet")).write_bytes(committed.read_bytes())
    server.check_run(tmp_path, make_table(10))
    collect(make_table(), tmp_path, client)
    assert not (shards / ".abc.tmp").exists()
    assert [path.name for path in (shards / "orphans").iterdir()] == ["0" * 24 + ".parquet"]
    server.check_run(tmp_path, make_table())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [_truncate, Path.unlink], ids=["truncated", "deleted"])
def test_a_damaged_shard_is_named_and_stops_everything(
    client: Client, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    collect(make_table(), tmp_path, client)
    shard = next((tmp_path / "shards").glob("*.parquet"))
    damage(shard)
    with pytest.raises(ShardDamagedError, match=shard.name):
        Run.open(tmp_path)
    with pytest.raises(ShardDamagedError, match=shard.name):
        collect(make_table(), tmp_path, client)


def test_a_flipped_bit_in_a_shard_is_found(client: Client, tmp_path: Path) -> None:
    collect(make_table(), tmp_path, client)
    run = Run.open(tmp_path)
    [shard] = run.shard_paths
    content = bytearray(shard.read_bytes())
    column = pq.ParquetFile(shard).metadata.row_group(0).column(4)
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    shard.write_bytes(bytes(content))
    assert [fault for fault in run.verify() if shard.name in fault and "altered" in fault]
    with pytest.raises(ShardDamagedError, match=shard.name):
        dict(run.activations())


def test_a_file_in_the_place_of_the_folder_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file"):
        collect(make_table(), tmp_path / "run", client)


def test_a_stimulus_is_never_committed_twice(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    collect(make_table(5), tmp_path, client)
    run = Run.open(tmp_path)
    measurement = Measurement(run.card, run.capture, run.columns, add_special_tokens=True)
    request = server.posts[0].request
    request = request.model_copy(update={"stimuli": request.stimuli[1:4]})
    with RunWriter(tmp_path, measurement) as writer:
        with pytest.raises(RunError, match="3 stimuli, of which 0 were still missing"):
            writer.commit([(batch, request.dtype) for batch in client.fetch(request)])
        with pytest.raises(RunError, match="came twice"):
            writer.commit([(batch, request.dtype) for batch in 2 * client.fetch(request)])
    server.check_run(tmp_path, make_table(5))


def test_network_file_systems_are_told_from_local_ones() -> None:
    mounts = (
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        "40 22 0:30 / /home rw - nfs4 host:/home rw\n"
        "41 22 0:31 / /home/me/my\\040disk rw - ext4 /dev/sdb rw\n"
    )
    found = [filesystem_type(Path(path), mounts) for path in ("/tmp/a", "/home/me", "/home/me/my disk/run", "/homes")]
    assert found == ["ext4", "nfs4", "ext4", "ext4"]


def test_on_a_network_file_system_the_ledger_does_without_a_write_ahead_log(
    client: Client, server: "FaultServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    for name, is_network in (("local", False), ("shared", True)):
        monkeypatch.setattr(database, "is_on_network", lambda _, answer=is_network: answer)
        collect(make_table(3), tmp_path / name, client)
        server.check_run(tmp_path / name, make_table(3))
        with closing(sqlite3.connect(tmp_path / name / "ledger.sqlite")) as connection:
            modes += connection.execute("PRAGMA journal_mode").fetchone()
    assert modes == ["wal", "delete"]


def test_the_lock_is_free_after_an_error(server: "FaultServer", tmp_path: Path) -> None:
    with Client(server.url, max_retries=RetryPolicy(0)) as client:
        server.faults.append(server.status(400))
        with pytest.raises(Exception, match="says 400"):
            collect(make_table(), tmp_path, client)
    with (tmp_path / "run.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
