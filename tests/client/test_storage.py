"""Disks that are full or failing: collection stops, says why, and goes on once the disk does."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.errors import StorageError, StorageFullError
from stratoscope.stimuli import StimulusTable
from stratoscope.store import writer
from stratoscope.store.run import Run
from tests.client.tables import SMALL, N, make_table

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

STEPS: dict[str, tuple[Any, str]] = {
    "write": (writer, "write_shard"),
    "fsync": (os, "fsync"),
    "rename": (os, "replace"),
}


def fail_on_shards(monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> list[object]:
    """Let a step fail wherever it concerns a shard; return a list that the concerned arguments are put into."""
    owner, name = STEPS[step]
    works: Callable[..., object] = getattr(owner, name)
    failed: list[object] = []

    def fail(*arguments: Any, **options: Any) -> object:
        place = arguments[1] if step == "write" else arguments[0]
        path = Path(f"/proc/self/fd/{place}").readlink() if step == "fsync" else Path(place)
        if "shards" not in path.parts:
            return works(*arguments, **options)
        failed.append(place)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, fail)
    return failed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_fails_at_any_step_of_a_commit_stops_collection_and_commits_nothing(
    client: Client, server: "FaultServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    run_dir = tmp_path / "run"
    collect(make_table(5), run_dir, client)
    before = sorted(path.name for path in (run_dir / "shards").iterdir())
    with monkeypatch.context() as patch:
        failed = fail_on_shards(patch, step, number)
        with pytest.raises(StorageError) as caught:
            collect(make_table(), run_dir, client, settings=SMALL)
    assert len(failed) == 1, "what failed once is not tried again"
    is_full = number in (errno.ENOSPC, errno.EDQUOT)
    assert isinstance(caught.value, StorageFullError) == is_full
    assert caught.value.errno == number
    message = str(caught.value)
    assert f"{run_dir / 'shards'}: {os.strerror(number)}" in message
    assert ("bytes are needed" in message and "bytes are free" in message) == is_full
    assert "Run the same command again" in message
    assert sorted(path.name for path in (run_dir / "shards").iterdir()) == before
    assert len(Run.open(run_dir, allow_incomplete=True).stimuli()) == 5
    counts = collect(make_table(), run_dir, client, settings=SMALL)
    assert (counts.already_there, counts.fetched) == (5, N - 5)
    server.check_run(run_dir, make_table())


def test_a_shard_that_would_not_fit_is_not_begun(
    client: Client, server: "FaultServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=(1 << 20) + 3))
        patch.setattr(writer, "write_shard", lambda *arguments, **_: written.append(arguments))
        with pytest.raises(
            StorageFullError, match=r"takes up to [\d,]+ bytes and 1,048,579 are free; it was not begun"
        ):
            collect(make_table(), tmp_path, client)
    assert written == []
    collect(make_table(), tmp_path, client)
    server.check_run(tmp_path, make_table())


def test_a_ledger_that_cannot_grow_is_a_full_disk(
    client: Client, server: "FaultServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(make_table(5), tmp_path, client)
    connect = sqlite3.connect

    def capped(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", capped)
        with pytest.raises(StorageFullError, match=r"ledger\.sqlite: database or disk is full"):
            collect(make_table(5000), tmp_path, client)
    assert Run.open(tmp_path).stimuli().height == 5
    server.check_run(tmp_path, make_table(5))


def test_a_folder_above_the_run_is_made_durable_as_well(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    collect(make_table(3), tmp_path / "a" / "b" / "run", client)
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "run"} <= set(synced)


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-qq", "-o", os.devnull, "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_trace(), reason="needs strace, and the right to trace")
@pytest.mark.parametrize(("place", "which"), [("shards", 3), ("ledger.sqlite-wal", 4)])
def test_a_sync_that_the_system_fails_stops_the_process_and_nothing_is_lost(
    server: "FaultServer", tmp_path: Path, place: str, which: int
) -> None:
    frame = pl.DataFrame({"id": [f"s{k}" for k in range(60)], "text": [f"text number {k}" for k in range(60)]})
    frame.write_csv(tmp_path / "table.csv")
    run_dir, log = tmp_path / "run", tmp_path / "calls"
    program = [sys.executable, str(Path(__file__).with_name("collecting.py")), server.url, str(run_dir)]
    program += [str(tmp_path / "table.csv"), "0"]
    injected = ["strace", "-f", "-qq", "-y", "-o", str(log), "-e", "trace=fsync,fdatasync", "-P", str(run_dir / place)]
    injected += ["-e", f"inject=fsync,fdatasync:error=EIO:when={which}"]
    ended = subprocess.run([*injected, *program], capture_output=True, text=True, timeout=120, check=False)
    calls = log.read_text().splitlines()
    assert [number for number, line in enumerate(calls, 1) if "INJECTED" in line] == [which], calls
    assert ended.returncode == 1, "nothing went on after the failure"
    assert "stratoscope.errors.StorageError" in ended.stderr
    assert str(run_dir / place).removesuffix("-wal") in ended.stderr
    run = Run.open(run_dir, allow_incomplete=True)
    assert run.verify() == []
    assert len(run.stimuli()) < 60
    subprocess.run(program, capture_output=True, timeout=120, check=True)
    server.check_run(run_dir, StimulusTable.from_frame(frame))
