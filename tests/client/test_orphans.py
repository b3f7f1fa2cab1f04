"""Shards that a crash kept from the ledger: adopted if they prove what they are, put aside otherwise."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.stimuli import StimulusTable
from stratoscope.store.run import Run
from stratoscope.store.shard import CAPTURE_KEY, CONTENTS_KEY, FINGERPRINT_KEY, file_sha256
from tests.client.contents import write_table
from tests.client.tables import SMALL, N, ids_in, make_table

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer


def forget(run_dir: Path, shard: Path) -> list[str]:
    """Make the ledger as it was before a shard's commit; return the shard's stimuli."""
    ids = ids_in(run_dir, shard.name)
    with closing(sqlite3.connect(run_dir / "ledger.sqlite")) as database, database:
        database.execute(
            "UPDATE stimulus SET state = 'todo', shard = NULL, row0 = NULL, rows = NULL WHERE shard = ?", [shard.name]
        )
        database.execute("DELETE FROM shard WHERE name = ?", [shard.name])
    return ids


@pytest.fixture
def orphan(client: Client, server: "FaultServer", tmp_path: Path) -> Path:
    """A shard that the ledger of the run `tmp_path` has not heard of."""
    collect(make_table(), tmp_path, client, settings=SMALL)
    shard = Run.open(tmp_path).shard_paths[1]
    assert forget(tmp_path, shard)
    server.received.clear()
    return shard


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Replace a shard by a changed one whose name is the hash of its bytes, as a writer's bug would leave it."""
    table = change(pq.read_table(path))
    path.unlink()
    write_table(table, path)
    return path.rename(path.with_name(f"{file_sha256(path)[:24]}.parquet"))


def with_fact(key: str, value: str | None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        facts = {name: fact for name, fact in table.schema.metadata.items() if name != key.encode()}
        return table.replace_schema_metadata(facts if value is None else facts | {key.encode(): value.encode()})

    return change


def without_first_row(table: pa.Table) -> pa.Table:
    return table.slice(1)


def with_nan(table: pa.Table) -> pa.Table:
    index = table.schema.get_field_index("resid_post.1")
    kind = table.schema.field(index).type
    values = np.array(table.column(index).combine_chunks().values)
    values[3] = np.nan
    return table.set_column(
        index, table.schema.field(index), pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind)
    )


def with_other_position(table: pa.Table) -> pa.Table:
    index = table.schema.get_field_index("position")
    wrong = pa.array([-1] * table.num_rows, pa.int32())
    return table.set_column(index, table.schema.field(index), wrong)


def narrower(table: pa.Table) -> pa.Table:
    return table.drop_columns(["resid_post.2"])


def test_an_orphan_that_proves_what_it_is_is_adopted_and_not_fetched_again(
    orphan: Path, client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    counts = collect(make_table(), tmp_path, client, settings=SMALL)
    assert server.posts == []
    assert (counts.already_there, counts.fetched) == (N, 0)
    assert orphan in Run.open(tmp_path).shard_paths
    server.check_run(tmp_path, make_table())


@pytest.mark.parametrize("name", ["s9", None], ids=["changed", "left-out"])
def test_an_orphan_never_answers_for_a_text_that_was_changed_or_left_out(
    orphan: Path, client: Client, server: "FaultServer", tmp_path: Path, name: str | None
) -> None:
    """The same id with other content is the one mistake that no later check would find."""
    forgotten = list(Run.open(tmp_path, allow_incomplete=True).missing)
    changed = forgotten[0]
    table = make_table(N, **{changed: "other words"})
    if name is None:
        kept = [stimulus.id != changed for stimulus in table.stimuli]
        table = StimulusTable(tuple(s for s in table.stimuli if s.id != changed), table.fields.filter(kept))
    collect(table, tmp_path, client, settings=SMALL)
    assert [path.name for path in (tmp_path / "shards" / "orphans").iterdir()] == [orphan.name]
    assert sorted(name for post in server.posts for name in post.ids) == sorted(set(forgotten) & set(table.ids))
    server.check_run(tmp_path, table)


WRONG: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no digest of its contents": with_fact(CONTENTS_KEY, None),
    "another digest of its contents": with_fact(CONTENTS_KEY, "0" * 64),
    "another model": with_fact(FINGERPRINT_KEY, "0" * 32),
    "another capture": with_fact(CAPTURE_KEY, '{"columns": [], "select": ["last"], "add_special_tokens": true}'),
    "a capture that is no JSON": with_fact(CAPTURE_KEY, "["),
    "a row short": without_first_row,
    "not finite": with_nan,
    "a position that cannot be": with_other_position,
    "a column short": narrower,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_orphan_in_doubt_is_put_aside_and_its_stimuli_are_fetched_again(
    orphan: Path, client: Client, server: "FaultServer", tmp_path: Path, wrong: str
) -> None:
    ids = list(Run.open(tmp_path, allow_incomplete=True).missing)
    changed = rewritten(orphan, WRONG[wrong])
    collect(make_table(), tmp_path, client, settings=SMALL)
    assert [path.name for path in (tmp_path / "shards" / "orphans").iterdir()] == [changed.name]
    assert sorted(name for post in server.posts for name in post.ids) == sorted(ids)
    server.check_run(tmp_path, make_table())


def test_rewriting_a_shard_unchanged_leaves_it_adoptable(
    orphan: Path, client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    """Or the refusals above would prove nothing."""
    rewritten(orphan, lambda table: table)
    collect(make_table(), tmp_path, client, settings=SMALL)
    assert server.posts == []


@pytest.mark.parametrize("content", ["torn", "renamed"])
def test_an_orphan_whose_name_is_not_its_hash_is_put_aside(
    orphan: Path, client: Client, server: "FaultServer", tmp_path: Path, content: str
) -> None:
    if content == "torn":
        orphan.write_bytes(orphan.read_bytes()[:-9] + bytes(9))
    else:
        orphan = orphan.rename(orphan.with_name("0" * 24 + ".parquet"))
    collect(make_table(), tmp_path, client, settings=SMALL)
    assert (tmp_path / "shards" / "orphans" / orphan.name).exists()
    assert server.posts
    server.check_run(tmp_path, make_table())


def test_of_two_orphans_with_the_same_stimuli_only_one_is_adopted(
    orphan: Path, client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    twin = orphan.with_name("twin.parquet")
    table = pq.read_table(orphan)
    pq.write_table(table, twin, compression="none")
    twin = twin.rename(twin.with_name(f"{file_sha256(twin)[:24]}.parquet"))
    assert twin != orphan
    collect(make_table(), tmp_path, client, settings=SMALL)
    assert server.posts == []
    assert len(list((tmp_path / "shards" / "orphans").iterdir())) == 1
    server.check_run(tmp_path, make_table())


def test_an_orphan_of_stimuli_that_are_committed_is_put_aside(
    client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    collect(make_table(5), tmp_path, client)
    [shard] = Run.open(tmp_path).shard_paths
    copy = shard.with_name("copy.parquet")
    pq.write_table(pq.read_table(shard), copy, compression="none")
    copy.rename(copy.with_name(f"{file_sha256(copy)[:24]}.parquet"))
    collect(make_table(5), tmp_path, client)
    assert len(list((tmp_path / "shards" / "orphans").iterdir())) == 1
    server.check_run(tmp_path, make_table(5))


def test_a_link_is_never_adopted(orphan: Path, client: Client, server: "FaultServer", tmp_path: Path) -> None:
    elsewhere: Any = orphan.rename(tmp_path / "elsewhere.parquet")
    orphan.symlink_to(elsewhere)
    collect(make_table(), tmp_path, client, settings=SMALL)
    assert (tmp_path / "shards" / "orphans" / orphan.name).is_symlink()
    assert server.posts
    server.check_run(tmp_path, make_table())
