"""Runs in an object store: collected, killed, taken over, read by columns, and refused when altered."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pyarrow.fs import FileSelector, FileType

from stratoscope import verify
from stratoscope.client import Client
from stratoscope.collection import CollectSettings, Progress, collect
from stratoscope.errors import (
    ConfigurationError,
    LedgerDamagedError,
    RunError,
    RunLockedError,
    ShardDamagedError,
    StorageError,
)
from stratoscope.probing import ProbeSettings, probe_run
from stratoscope.stimuli import StimulusTable
from stratoscope.store import desk as desks
from stratoscope.store import writer as writers
from stratoscope.store.ledger import Ledger, ShardRecord
from stratoscope.store.objects import ObjectPath
from stratoscope.store.run import Run
from stratoscope.targets import Target
from tests.client.conftest import FaultServer
from tests.objects.conftest import N
from tests.objects.store import BUCKET, KEY, SECRET, Store

STEPS = range(1, 40, 3)


def gather(
    table: StimulusTable, url: str, client: Client, desk: Path, *, take_over: bool = False, shard_bytes: int = 600
) -> Progress:
    settings = CollectSettings(request_bytes=150, shard_bytes=shard_bytes, desk=desk, take_over=take_over)
    return collect(table, url, client, settings=settings)


def check(url: str, server: FaultServer, table: StimulusTable) -> int:
    """Hold whatever the store's ledger names against the truth; return how much that is."""
    assert verify(url).damages == ()
    run = Run.open(url, allow_incomplete=True)
    ids = run.stimuli()["id"].to_list()
    assert len(set(ids)) == len(ids)
    texts = {stimulus.id: stimulus for stimulus in table.stimuli}
    for column in run.columns:
        rows = run.activations()[column.site, column.layer]
        truth = np.stack([server.truth(texts[name], column) for name in ids]) if ids else rows
        np.testing.assert_array_equal(rows, truth)
    return len(ids)


def names(store: Store, run: str, folder: str) -> list[str]:
    found = store.files.get_file_info(FileSelector(f"{BUCKET}/{run}/{folder}", allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == FileType.File)


def write(store: Store, path: str, content: bytes) -> None:
    with store.files.open_output_stream(f"{BUCKET}/{path}") as out:
        out.write(content)


def test_a_run_is_collected_into_a_store_and_the_desk_keeps_no_shard(
    store: Store, server: FaultServer, client: Client, table: StimulusTable, tmp_path: Path
) -> None:
    url = store.url("plain")
    assert gather(table, url, client, tmp_path / "desk").is_complete
    assert check(url, server, table) == N
    assert len(names(store, "plain", "shards")) > 1
    assert list((tmp_path / "desk" / "shards").glob("*.parquet")) == []
    assert names(store, "plain", "writers") == []
    assert 0 < len(names(store, "plain", "ledgers")) <= 2


def test_shards_are_listed_no_more_often_for_more_of_them(
    store: Store, client: Client, table: StimulusTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[int] = []
    shards = Ledger.shards

    def seen(ledger: Ledger) -> list[ShardRecord]:
        found = shards(ledger)
        listed[-1] += 1
        return found

    monkeypatch.setattr(Ledger, "shards", seen)
    monkeypatch.setattr(writers, "MANIFEST_SHARE", 1e9)
    for name, shard_bytes in (("one", 1 << 20), ("many", 600)):
        listed.append(0)
        assert gather(table, store.url(name), client, tmp_path / name, shard_bytes=shard_bytes).is_complete
    assert len(names(store, "many", "shards")) > len(names(store, "one", "shards")) + 3
    assert listed[1] == listed[0]


@pytest.mark.parametrize("times", [0, 1000])
def test_a_ledger_waits_for_shards_of_several_times_its_size(
    times: int, store: Store, server: FaultServer, client: Client, table: StimulusTable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    url = store.url(f"leisure{times}")
    uploads: list[str] = []
    upload = ObjectPath.upload

    def seen(path: ObjectPath, source: Path, sha256: str) -> None:
        upload(path, source, sha256)
        uploads.append(path.key)

    monkeypatch.setattr(ObjectPath, "upload", seen)
    monkeypatch.setattr(desks, "SHARDS_TO_LEDGER", times)
    assert gather(table, url, client, tmp_path / "desk").is_complete
    shards = [key for key in uploads if key.startswith("shards/")]
    n_ledgers = len(uploads) - len(shards)
    assert len(set(shards)) == len(shards) > 3, "no shard is uploaded twice"
    assert n_ledgers >= len(shards) if times == 0 else n_ledgers == 3, "at the plan, at the end, and on the way out"
    assert check(url, server, table) == N
    assert list((tmp_path / "desk" / "shards").glob("*.parquet")) == []


def test_a_process_killed_at_any_step_loses_and_doubles_nothing(
    store: Store, server: FaultServer, table: StimulusTable, tmp_path: Path
) -> None:
    url = store.url("killed")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed_at, n_done = [], 0
    for step in [*STEPS, 0]:
        arguments = [server.url, url, str(tmp_path / "desk"), str(tmp_path / "table.csv"), str(step)]
        command = [sys.executable, "-m", "tests.objects.collecting", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
        assert done.returncode in (0, -9), done.stderr
        if done.returncode:
            killed_at.append(done.stdout.strip())
        if names(store, "killed", "ledgers"):
            now_done = check(url, server, table)
            assert now_done >= n_done, "what the store had is gone"
            n_done = now_done
    assert done.returncode == 0
    assert {"upload", "write_bytes", "commit_shard"} <= {step.split()[1] for step in killed_at}
    assert n_done == N
    asked = [name for post in server.posts for name in post.ids]
    assert set(asked) == set(table.ids)
    assert check(url, server, table) == N


def test_another_desk_is_refused_until_it_takes_over_and_then_the_first_one_stops(
    store: Store, server: FaultServer, client: Client, table: StimulusTable, tmp_path: Path
) -> None:
    url = store.url("two")

    def interfere(counts: Progress) -> None:
        if counts.shards == 1 and not (tmp_path / "second").exists():
            with pytest.raises(RunLockedError, match="--take-over"), Client(server.url) as other:
                gather(table, url, other, tmp_path / "second")
            with Client(server.url) as other:
                assert gather(table, url, other, tmp_path / "second", take_over=True).is_complete

    settings = CollectSettings(request_bytes=150, shard_bytes=600, desk=tmp_path / "first")
    with pytest.raises(RunLockedError, match="took over"):
        collect(table, url, client, settings=settings, progress=interfere)
    assert check(url, server, table) == N
    server.received.clear()
    counts = gather(table, url, client, tmp_path / "first")
    assert (counts.already_there, server.posts) == (N, [])
    assert check(url, server, table) == N


def test_a_run_goes_on_from_a_new_desk_without_fetching_again(
    store: Store, server: FaultServer, client: Client, table: StimulusTable, tmp_path: Path
) -> None:
    url = store.url("moved")
    gather(StimulusTable.from_frame(pl.read_csv(tmp_path / "table.csv").head(N // 2)), url, client, tmp_path / "first")
    n_before = check(url, server, table)
    assert n_before == N // 2
    server.received.clear()
    gather(table, url, client, tmp_path / "second")
    assert sum(len(post.ids) for post in server.posts) == N - n_before
    assert check(url, server, table) == N


@pytest.mark.parametrize("folder", ["shards", "ledgers/000000.00000001"])
def test_an_upload_that_fails_names_the_object_and_the_desk_keeps_the_shard(
    folder: str, store: Store, server: FaultServer, client: Client, table: StimulusTable, tmp_path: Path
) -> None:
    url = store.url("failing" + folder[:6])
    store.failing = f"failing{folder[:6]}/{folder}"
    with pytest.raises(StorageError, match=f"s3://{BUCKET}/failing{folder[:6]}/{folder}") as failed:
        gather(table, url, client, tmp_path / "desk")
    assert KEY not in str(failed.value)
    assert SECRET not in str(failed.value)
    kept = list((tmp_path / "desk" / "shards").glob("*.parquet"))
    assert kept
    store.failing = ""
    assert gather(table, url, client, tmp_path / "desk").is_complete
    assert check(url, server, table) == N
    assert list((tmp_path / "desk" / "shards").glob("*.parquet")) == []


def test_an_object_that_does_not_read_back_is_not_committed_to_the_store(
    store: Store, server: FaultServer, client: Client, table: StimulusTable, tmp_path: Path
) -> None:
    url = store.url("cut")
    store.cutting = "cut/shards"
    with pytest.raises(StorageError, match="does not read back"):
        gather(table, url, client, tmp_path / "desk")
    store.cutting = ""
    assert check(url, server, table) == 0
    assert gather(table, url, client, tmp_path / "desk").is_complete
    assert check(url, server, table) == N


def test_truncated_and_altered_objects_are_named_and_foreign_ones_never_read(
    store: Store, server: FaultServer, client: Client, table: StimulusTable, tmp_path: Path
) -> None:
    url = store.url("altered")
    gather(table, url, client, tmp_path / "desk")
    write(store, "altered/shards/foreign.parquet", b"foreign")
    write(store, "altered/ledgers/foreign.sqlite", b"foreign")
    assert check(url, server, table) == N
    first = names(store, "altered", "shards")[0]
    whole = store.files.open_input_file(f"{BUCKET}/altered/shards/{first}").read()
    write(store, f"altered/shards/{first}", whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    assert [damage.shard for damage in verify(url).damages] == [first]
    write(store, f"altered/shards/{first}", whole[:-1])
    with pytest.raises(ShardDamagedError, match=first):
        Run.open(url)
    write(store, "altered/ledgers/999999.00000000.000000000000000000000000.sqlite", b"foreign")
    with pytest.raises(LedgerDamagedError, match="999999"):
        Run.open(url)


def test_a_layer_is_read_by_ranges_and_probed_without_fetching_whole_shards(
    store: Store, synthetic_url: str, table: StimulusTable, tmp_path: Path
) -> None:
    url = store.url("ranges")
    with Client(synthetic_url) as client:
        collect(table, url, client, settings=CollectSettings(desk=tmp_path / "desk"))
        collect(table, tmp_path / "local", client)
    run, local = Run.open(url), Run.open(tmp_path / "local")
    paths = [f"{BUCKET}/ranges/shards/{name}" for name in names(store, "ranges", "shards")]
    total = sum(info.size for info in store.files.get_file_info(paths))
    view = run.activations()
    _ = view["resid_post", 0]
    store.sent.clear()
    layer = view["resid_post", 1]
    fetched = sum(n_bytes for method, path, n_bytes in store.sent if method == "GET" and "/shards/" in path)
    np.testing.assert_array_equal(layer, local.activations()["resid_post", 1])
    assert 0 < fetched < total / 2
    result = probe_run(run, Target("label", "svm", "group"), ProbeSettings(n_jobs=1), out=tmp_path / "results")
    assert result.scores.height > 0
    assert (tmp_path / "results" / "results" / "scores-label-svm.parquet").is_file()
    with pytest.raises(RunError, match="no folder on this machine"):
        _ = run.path


@pytest.mark.parametrize(
    "url", ["s3://key:secret@bucket/run", "s3://bucket/run?secret_key=secret", "file:///tmp/run", "s3://bucket"]
)
def test_an_address_with_credentials_or_without_a_folder_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Run.open(url)
    assert "secret@" not in str(refused.value)
    assert "=secret" not in str(refused.value)
