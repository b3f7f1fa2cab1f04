"""Reading columns of shards: the same bits as Arrow's reader gives, and never a wrong one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stratoscope.errors import ShardDamagedError
from stratoscope.rows import FloatArray
from stratoscope.store.encoder import PAGE_BYTES
from stratoscope.store.shard import read_column
from stratoscope.store.values import ShardReader, read_values
from stratoscope_wire import Column
from stratoscope_wire.schema import KEY_FIELDS, response_schema
from tests.client.contents import write_table

WIDTH = 96
ROWS = 8000
COLUMNS = [Column("resid_post", layer, WIDTH, layer + 1) for layer in range(2)]


def bits_of_every_kind(n: int) -> FloatArray:
    """Values with all four bytes in use, signed zeros and subnormals among them."""
    values = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    values[:4] = 0.0, -0.0, 1e-45, -3.4e38
    return values


def as_bfloat16(n: int) -> FloatArray:
    return (bits_of_every_kind(n).view(np.uint32) & 0xFFFF0000).view(np.float32)


VALUES: dict[str, Callable[[int], FloatArray]] = {"float32": bits_of_every_kind, "widened bfloat16": as_bfloat16}


def table_of(make: Callable[[int], FloatArray], n_rows: int = ROWS) -> pa.Table:
    schema = response_schema(COLUMNS, "float32")
    keys = [pa.array([str(row) for row in range(n_rows)]), pa.array(["last"] * n_rows)]
    keys += [pa.array(np.zeros(n_rows, np.int32))] * 2
    assert len(keys) == len(KEY_FIELDS)
    values = make(len(COLUMNS) * n_rows * WIDTH).reshape(len(COLUMNS), -1)
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(one), type=schema.field(column.name).type)
        for one, column in zip(values, COLUMNS, strict=True)
    ]
    return pa.Table.from_arrays([*keys, *lists], schema=schema)


def read(path: Path, column: Column, n_rows: int = ROWS) -> FloatArray:
    out = np.full((n_rows, column.width), np.nan, np.float32)
    ShardReader(path, n_rows, COLUMNS).read(column, out)
    return out


def write_by_arrow(table: pa.Table, path: Path) -> None:
    """Write a shard as shards were once written, by Arrow alone."""
    pq.write_table(
        table,
        path,
        row_group_size=table.num_rows,
        use_dictionary=False,
        write_statistics=False,
        compression="zstd",
        compression_level=1,
        use_byte_stream_split=[f"{column.name}.list.element" for column in COLUMNS],
        write_page_checksum=True,
    )


@pytest.mark.parametrize("kind", VALUES)
def test_a_column_of_several_pages_is_what_arrow_reads_bit_for_bit(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard.parquet"
    write_table(table_of(VALUES[kind]), path)
    assert ROWS * WIDTH * 4 > PAGE_BYTES
    expected = [read_column(path, column) for column in COLUMNS]
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    for column, values in zip(COLUMNS, expected, strict=True):
        np.testing.assert_array_equal(read(path, column).view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize(
    "options", [{"compression": "snappy"}, {"use_dictionary": True}, {"row_group_size": 100}], ids=str
)
def test_what_another_writer_laid_out_is_read_by_arrow(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "shard.parquet"
    table = table_of(bits_of_every_kind)
    pq.write_table(table, path, **options)
    expected = table.column(COLUMNS[1].name).combine_chunks().flatten().to_numpy().reshape(ROWS, WIDTH)
    np.testing.assert_array_equal(read(path, COLUMNS[1]), expected)


def test_no_flipped_bit_of_a_column_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_table(table_of(as_bfloat16, 40), path)
    expected = read(path, COLUMNS[0], 40)
    chunk = pq.read_metadata(path).row_group(0).column(len(KEY_FIELDS))
    content = path.read_bytes()
    places = np.random.default_rng(1).integers(0, chunk.total_compressed_size, 300)
    n_refused = 0
    for place in [*range(40), *places.tolist()]:
        changed = bytearray(content)
        changed[chunk.data_page_offset + place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            values = read(path, COLUMNS[0], 40)
        except ShardDamagedError:
            n_refused += 1
        else:
            np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))
    assert n_refused > 300, "nearly every bit counts"


@pytest.mark.parametrize("hole", ["value", "list"])
def test_a_null_is_refused(tmp_path: Path, hole: str) -> None:
    path = tmp_path / "shard.parquet"
    table = table_of(as_bfloat16, 40)
    lists = table.column(COLUMNS[0].name).to_pylist()
    if hole == "value":
        lists[7][5] = None
    else:
        lists[7] = None
    nullable = table.set_column(4, COLUMNS[0].name, pa.array(lists, pa.list_(pa.float32(), WIDTH)))
    write_by_arrow(nullable, path)
    with pytest.raises(ShardDamagedError, match=r"null|values where"):
        read(path, COLUMNS[0], 40)


def test_other_rows_than_the_ledger_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_table(table_of(as_bfloat16, 40), path)
    with pytest.raises(ShardDamagedError, match="has 40 rows; the ledger says 41"):
        read(path, COLUMNS[0], 41)


def test_rows_of_several_shards_come_in_the_order_wanted_and_others_are_left_out(tmp_path: Path) -> None:
    tables = [table_of(as_bfloat16, n) for n in (5, 7, 6)]
    paths = [tmp_path / f"{index}.parquet" for index in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        write_table(table, path)
    shards = [ShardReader(path, len(table), COLUMNS) for path, table in zip(paths, tables, strict=True)]
    pile = np.concatenate([read_column(shard.path, COLUMNS[1]) for shard in shards])
    wanted = np.array([*range(5), 11, 9, 5, 17])
    target = np.full(18, -1, np.intp)
    target[wanted] = np.arange(len(wanted))
    np.testing.assert_array_equal(read_values(shards, COLUMNS[1], target, len(wanted)), pile[wanted])
    assert read_values([], COLUMNS[1], np.empty(0, np.intp), 0).shape == (0, WIDTH)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("order", ["as written", "mixed"])
def test_shards_of_any_writer_are_read_side_by_side_in_any_order(tmp_path: Path, kind: str, order: str) -> None:
    table = table_of(VALUES[kind])
    paths = [tmp_path / f"{writer}.parquet" for writer in ("former", "present", "foreign")]
    write_by_arrow(table, paths[0])
    write_table(table, paths[1])
    pq.write_table(table, paths[2], compression="snappy")
    shards = [ShardReader(path, ROWS, COLUMNS) for path in paths]
    former, present, foreign = (shard.pages(COLUMNS[1]) for shard in shards)
    assert former is not None
    assert present is not None
    assert min(len(former), len(present)) > 1
    assert foreign is None, "it is read by Arrow"
    target = np.arange(3 * ROWS)
    if order == "mixed":
        target[np.random.default_rng(4).permutation(3 * ROWS)[: 2 * ROWS]] = -1
        kept = target >= 0
        target[kept] = np.random.default_rng(5).permutation(kept.sum())
    kept = target >= 0
    values = np.concatenate([read_column(paths[0], COLUMNS[1])] * 3)
    expected = np.empty((kept.sum(), WIDTH), np.float32)
    expected[target[kept]] = values[kept]
    found = read_values(shards, COLUMNS[1], target, len(expected))
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_a_footer_is_read_once_for_all_columns_and_later_damage_is_still_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard.parquet"
    write_table(table_of(as_bfloat16, 40), path)
    shard, out = ShardReader(path, 40, COLUMNS), np.empty((40, WIDTH), np.float32)
    shard.read(COLUMNS[0], out)
    monkeypatch.setattr(pq, "read_metadata", None)
    shard.read(COLUMNS[1], out)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 3], bytes(len(content)), content[::-1]):
        path.write_bytes(damaged)
        with pytest.raises(ShardDamagedError):
            shard.read(COLUMNS[1], out)
    path.unlink()
    with pytest.raises(ShardDamagedError):
        shard.read(COLUMNS[1], out)


FOOTER_FLIPS = """
import sys
from pathlib import Path
import numpy as np
from stratoscope.errors import ShardDamagedError
from tests.client.test_values import COLUMNS, as_bfloat16, read

path = Path(sys.argv[1])
content, expected = path.read_bytes(), read(path, COLUMNS[0], 40)
start = content.rindex(COLUMNS[0].name.encode())
counts = {"refused": 0, "as written": 0}
for place in range(start - 10, start + 60):
    for bit in range(8):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            values = read(path, COLUMNS[0], 40)
        except ShardDamagedError:
            counts["refused"] += 1
        else:
            np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))
            counts["as written"] += 1
print(counts["refused"], counts["as written"])
"""


def test_no_flipped_bit_of_a_columns_footer_ends_the_process_or_changes_a_value(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_table(table_of(as_bfloat16, 40), path)
    command = [sys.executable, "-c", FOOTER_FLIPS, str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, as_written = map(int, done.stdout.split())
    assert refused > 50
    assert refused + as_written == 560
