"""Damaged runs: what is wrong is named, and only that is fetched again."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stratoscope
from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.errors import LedgerDamagedError, RunLockedError, RunNotFoundError, ShardDamagedError, StorageError
from stratoscope.store import damage
from stratoscope.store.ledger import Ledger
from stratoscope.store.repair import repair, verify
from stratoscope.store.run import Run
from stratoscope.store.shard import file_sha256
from tests.client.tables import SMALL, N, ids_in, make_table

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, r"with \d stimuli is missing"),
    "truncated": (truncate, "bytes instead of"),
    "flipped byte": (flip, "was altered: its SHA-256 is not"),
}


@pytest.fixture
def run_dir(client: Client, server: "FaultServer", tmp_path: Path) -> Path:
    """A finished run of several shards."""
    collect(make_table(), tmp_path / "run", client, settings=SMALL)
    assert len(Run.open(tmp_path / "run").shard_paths) > 3
    server.received.clear()
    return tmp_path / "run"


def shards_of(run_dir: Path) -> list[Path]:
    return list(Run.open(run_dir, allow_incomplete=True).shard_paths)


def put_as_committed(run_dir: Path, name: str, content: bytes) -> None:
    """Make the ledger believe that a shard has this content."""
    (run_dir / "shards" / name).write_bytes(content)
    with closing(sqlite3.connect(run_dir / "ledger.sqlite")) as database, database:
        digest = hashlib.sha256(content).hexdigest()
        database.execute("UPDATE shard SET sha256 = ?, bytes = ? WHERE name = ?", (digest, len(content), name))


def test_a_whole_run_is_said_to_be_whole(run_dir: Path) -> None:
    verdict = verify(run_dir)
    assert (verdict.n_stimuli, verdict.n_committed, verdict.damages) == (N, N, ())
    assert verdict.n_shards == len(shards_of(run_dir))
    assert repair(run_dir) == verdict
    assert not (run_dir / "shards" / "damaged").exists()


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_shard_is_named_with_its_stimuli(run_dir: Path, kind: str) -> None:
    inflict, words = DAMAGES[kind]
    shard = shards_of(run_dir)[1]
    ids = ids_in(run_dir, shard.name)
    assert ids
    inflict(shard)
    [found] = verify(run_dir).damages
    assert (found.shard, sorted(found.stimulus_ids)) == (shard.name, sorted(ids))
    assert found.fault.startswith(f"shard {shard.name} ")
    assert re.search(words, found.fault)


@pytest.mark.parametrize("kind", DAMAGES)
def test_repair_sets_exactly_the_damaged_back_and_the_same_collect_fetches_only_them(
    run_dir: Path, client: Client, server: "FaultServer", kind: str
) -> None:
    shard = shards_of(run_dir)[1]
    ids = ids_in(run_dir, shard.name)
    DAMAGES[kind][0](shard)
    left = shard.read_bytes() if shard.exists() else None
    repair(run_dir)
    assert sorted(Run.open(run_dir, allow_incomplete=True).missing) == sorted(ids)
    aside = run_dir / "shards" / "damaged" / shard.name
    assert (aside.read_bytes() if aside.exists() else None) == left
    assert verify(run_dir).damages == ()
    counts = collect(make_table(), run_dir, client, settings=SMALL)
    assert (counts.already_there, counts.fetched) == (N - len(ids), len(ids))
    assert sorted(name for post in server.posts for name in post.ids) == sorted(ids)
    server.check_run(run_dir, make_table())


def test_several_damages_are_all_named_and_all_repaired(run_dir: Path, client: Client, server: "FaultServer") -> None:
    shards = shards_of(run_dir)
    for shard, (inflict, _) in zip(shards, DAMAGES.values(), strict=False):
        inflict(shard)
    assert [one.shard for one in verify(run_dir).damages] == [shard.name for shard in shards[:3]]
    repair(run_dir)
    assert len(shards_of(run_dir)) == len(shards) - 3
    collect(make_table(), run_dir, client, settings=SMALL)
    server.check_run(run_dir, make_table())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_damaged_exactly_that_is_named_and_given_up(run_dir: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(run_dir, Path(folder) / "run"))
        shards = shards_of(copy)
        kinds = data.draw(st.lists(st.sampled_from([None, *DAMAGES]), min_size=len(shards), max_size=len(shards)))
        hit = [(shard, kind) for shard, kind in zip(shards, kinds, strict=True) if kind is not None]
        ids = {shard.name: set(ids_in(copy, shard.name)) for shard, _ in hit}
        for shard, kind in hit:
            DAMAGES[kind][0](shard)
        assert {one.shard: set(one.stimulus_ids) for one in verify(copy).damages} == ids
        repair(copy)
        assert verify(copy).damages == ()
        assert set(Run.open(copy, allow_incomplete=True).missing) == set().union(*ids.values())


def test_a_repair_that_is_cut_off_is_finished_by_the_next(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shards_of(run_dir)[1]
    ids = ids_in(run_dir, shard.name)
    truncate(shard)

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "give_up_shards", cut_off)
        with pytest.raises(KeyboardInterrupt):
            repair(run_dir)
    [found] = verify(run_dir).damages
    assert sorted(found.stimulus_ids) == sorted(ids)
    repair(run_dir)
    assert sorted(Run.open(run_dir, allow_incomplete=True).missing) == sorted(ids)
    assert (run_dir / "shards" / "damaged" / shard.name).exists()


def test_rows_of_another_model_are_found_even_under_a_matching_hash(
    run_dir: Path, server: "FaultServer", tmp_path: Path
) -> None:
    server.card = server.make_card(revision="1")
    with Client(server.url) as client:
        collect(make_table(), tmp_path / "other", client, settings=SMALL)
    shard = shards_of(run_dir)[0]
    put_as_committed(run_dir, shard.name, shards_of(tmp_path / "other")[0].read_bytes())
    [found] = verify(run_dir).damages
    assert f"shard {shard.name} holds rows of the model '{server.card.fingerprint}'" in found.fault


def test_rows_that_are_not_the_ledgers_are_found_even_under_a_matching_hash(run_dir: Path) -> None:
    first, second = shards_of(run_dir)[:2]
    put_as_committed(run_dir, first.name, second.read_bytes())
    [found] = verify(run_dir).damages
    assert "are not those that the ledger has for it" in found.fault


def test_collecting_into_a_damaged_run_says_what_is_wrong_and_how_to_mend_it(run_dir: Path, client: Client) -> None:
    shard = shards_of(run_dir)[1]
    n_stimuli = len(ids_in(run_dir, shard.name))
    shard.unlink()
    uses: list[Callable[[], object]] = [
        lambda: collect(make_table(), run_dir, client),
        lambda: Run.open(run_dir),
    ]
    for use in uses:
        with pytest.raises(ShardDamagedError) as caught:
            use()
        assert f"{n_stimuli} of its {N} stimuli cannot be relied upon: shard {shard.name}" in str(caught.value)
        assert f"`stratoscope verify {run_dir} --repair`" in str(caught.value)


def test_a_bad_place_on_the_disk_damages_one_shard_and_a_missing_permission_damages_none(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shards_of(run_dir)[1]
    whole = file_sha256

    def failing(number: int) -> Callable[[Path], str]:
        def read(path: Path) -> str:
            if path == shard:
                raise OSError(number, os.strerror(number), str(path))
            return whole(path)

        return read

    monkeypatch.setattr(damage, "file_sha256", failing(errno.EIO))
    [found] = verify(run_dir).damages
    assert found.shard == shard.name
    assert "Input/output error" in found.fault
    monkeypatch.setattr(damage, "file_sha256", failing(errno.EACCES))
    with pytest.raises(StorageError, match="Permission denied"):
        repair(run_dir)
    assert shard.exists()


def test_a_damaged_ledger_is_found(run_dir: Path) -> None:
    path = run_dir / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    assert len(content) > 3 * size, "the ledger must have pages beyond its schema"
    content[-size:] = bytes(range(256)) * (size // 256)
    path.write_bytes(bytes(content))
    for check in (verify, repair):
        with pytest.raises(LedgerDamagedError, match=r"ledger\.sqlite"):
            check(run_dir)


def test_a_run_that_is_written_to_is_not_repaired(run_dir: Path) -> None:
    shards_of(run_dir)[0].unlink()
    with (run_dir / "run.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunLockedError):
            repair(run_dir)
    assert len(verify(run_dir).damages) == 1


def test_a_folder_without_a_run_is_neither_verified_nor_repaired(tmp_path: Path) -> None:
    for check in (stratoscope.verify, stratoscope.repair):
        with pytest.raises(RunNotFoundError):
            check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_put_aside_never_takes_the_place_of_another(run_dir: Path, client: Client) -> None:
    shard = shards_of(run_dir)[0]
    whole = shard.read_bytes()
    for n_bytes in (100, 200):
        shard.write_bytes(whole[:n_bytes])
        repair(run_dir)
        shard.write_bytes(whole)
        assert collect(make_table(), run_dir, client, settings=SMALL).is_complete
    assert sorted(len(path.read_bytes()) for path in (run_dir / "shards" / "damaged").iterdir()) == [100, 200]
