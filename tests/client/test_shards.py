"""Shards as they are written: every reader of Parquet reads the same, and what differs is not taken for good."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratoscope.errors import ShardDamagedError
from stratoscope.store import encoder
from stratoscope.store.check import check_shard
from stratoscope.store.content import ColumnRows, Content
from stratoscope.store.shard import write_shard
from stratoscope.store.values import ShardReader
from stratoscope_wire import Column
from stratoscope_wire.dtypes import NUMPY_TYPES
from stratoscope_wire.request import Dtype
from stratoscope_wire.schema import KEY_FIELDS, response_schema
from tests.client.contents import content_of, write_table

Bits = npt.NDArray[np.uint32]

COLUMNS = [Column("resid_post", 0, 96, 1), Column("heads", 0, 160, None)]


def finite_bits(n: int, seed: int, mask: int = 0xFFFFFFFF) -> Bits:
    """Bits of values of every kind but infinite and not a number."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, n, dtype=np.uint32) & np.uint32(mask)
    bits[(bits >> 23) & 0xFF == 0xFF] &= np.uint32(0xBFFFFFFF)
    return bits


def table_of(columns: list[Column], n_rows: int, mask: int = 0xFFFFFFFF) -> pa.Table:
    schema = response_schema(columns, "float32").with_metadata({"made by": "a test"})
    keys = [pa.array([f"naïve {row}" for row in range(n_rows)]), pa.array(["last"] * n_rows)]
    keys += [pa.array(np.arange(n_rows, dtype=np.int32)), pa.array(np.full(n_rows, -1, np.int32))]
    assert len(keys) == len(KEY_FIELDS)
    lists = [
        pa.FixedSizeListArray.from_arrays(
            pa.array(finite_bits(n_rows * column.width, seed, mask).view(np.float32)),
            type=schema.field(column.name).type,
        )
        for seed, column in enumerate(columns)
    ]
    return pa.Table.from_arrays([*keys, *lists], schema=schema)


def activations(table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    """One column of a table, of shape (n_rows, width)."""
    column = table.column(name).combine_chunks()
    return np.asarray(column.flatten().to_numpy(), np.float32).reshape(len(column), -1)


def by_arrow(path: Path, column: Column) -> npt.NDArray[np.float32]:
    return np.asarray(pq.read_table(path).column(column.name).combine_chunks().flatten().to_numpy())


def by_polars(path: Path, column: Column) -> npt.NDArray[np.float32]:
    return np.asarray(pl.read_parquet(path)[column.name].to_numpy())


def by_duckdb(path: Path, column: Column) -> npt.NDArray[np.float32]:
    table = duckdb.read_parquet(str(path)).to_arrow_table()
    return np.asarray(table.column(column.name).combine_chunks().flatten().to_numpy())


def by_this_package(path: Path, column: Column) -> npt.NDArray[np.float32]:
    n_rows = pq.read_metadata(path).num_rows
    out = np.empty((n_rows, column.width), np.float32)
    ShardReader(path, n_rows, [column]).read(column, out)
    return out


READERS: list[Callable[[Path, Column], npt.NDArray[np.float32]]] = [by_arrow, by_polars, by_duckdb, by_this_package]


@settings(max_examples=40, deadline=None)
@given(
    n_rows=st.integers(1, 70),
    widths=st.lists(st.integers(1, 200), min_size=1, max_size=17),
    mask=st.sampled_from([0xFFFFFFFF, 0xFFFF0000, 0x80000000]),
    page_bytes=st.sampled_from([64, 4096, 1 << 20]),
)
def test_every_reader_reads_a_shard_bit_for_bit_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, n_rows: int, widths: list[int], mask: int, page_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / "shard.parquet"
    columns = [Column("resid_post", layer, width, layer + 1) for layer, width in enumerate(widths)]
    table = table_of(columns, n_rows, mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "PAGE_BYTES", page_bytes)
        write_table(table, path)
    check_shard(content_of(table), path, by_arrow=True)
    keys = table.column_names[: len(KEY_FIELDS)]
    assert pl.read_parquet(path).select(keys).rows() == list(zip(*table.select(keys).to_pydict().values(), strict=True))
    for column in (columns[0], columns[-1]):
        expected = activations(table, column.name).reshape(-1).view(np.uint32)
        for reader in READERS:
            found = reader(path, column).reshape(-1).view(np.uint32)
            np.testing.assert_array_equal(found, expected, err_msg=reader.__name__)


def test_a_shard_says_how_it_is_laid_out(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    table = table_of(COLUMNS, 40)
    write_table(table, path)
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups == 1
    assert metadata.num_rows == 40
    assert metadata.created_by.startswith("stratoscope")
    group = metadata.row_group(0)
    chunks = [group.column(index) for index in range(group.num_columns)]
    assert {chunk.compression for chunk in chunks} == {"ZSTD"}
    assert {chunk.encodings for chunk in chunks[len(KEY_FIELDS) :]} == {("RLE", "BYTE_STREAM_SPLIT")}
    assert not any(chunk.is_stats_set or chunk.has_dictionary_page for chunk in chunks)
    ends = [chunk.data_page_offset + chunk.total_compressed_size for chunk in chunks]
    assert [chunk.data_page_offset for chunk in chunks] == [4, *ends[:-1]], "no byte between the pages is unaccounted"
    assert group.total_byte_size == sum(chunk.total_uncompressed_size for chunk in chunks)
    assert pq.read_schema(path).metadata == {b"made by": b"a test"}


def test_arrow_notices_a_flipped_bit_of_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_table(table_of(COLUMNS, 40), path)
    chunk = pq.read_metadata(path).row_group(0).column(len(KEY_FIELDS))
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"), pq.ParquetFile(path, page_checksum_verification=True) as file:
        file.read()


def another_value(table: pa.Table, place: int) -> pa.Table:
    name = COLUMNS[place].name
    values = activations(table, name).copy()
    values[-1, -1] = np.nextafter(values[-1, -1], np.float32(0))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=table.schema.field(name).type)
    return table.set_column(len(KEY_FIELDS) + place, table.schema.field(name), lists)


def another_sign_of_zero(table: pa.Table) -> pa.Table:
    """Values equal to zero that differ in their bits, as only a comparison of bits can tell."""
    name = COLUMNS[0].name
    lists = pa.FixedSizeListArray.from_arrays(
        pa.array(np.where(activations(table, name) == 0, np.float32(-0.0), activations(table, name)).ravel()),
        type=table.schema.field(name).type,
    )
    return table.set_column(len(KEY_FIELDS), table.schema.field(name), lists)


def other_keys(table: pa.Table) -> pa.Table:
    return table.set_column(2, table.schema.field(2), pa.array(np.arange(1, len(table) + 1, dtype=np.int32)))


def another_field(table: pa.Table) -> pa.Table:
    field = table.schema.field(4).with_metadata({"site": "another"})
    return table.cast(table.schema.set(4, field))


DIFFERENCES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a value of the first column": lambda table: another_value(table, 0),
    "a value of the last column": lambda table: another_value(table, 1),
    "the sign of a zero": another_sign_of_zero,
    "the keys": other_keys,
    "the metadata": lambda table: table.replace_schema_metadata({"made by": "another"}),
    "the metadata of a column": another_field,
    "the number of rows": lambda table: table.slice(0, len(table) - 1),
    "the columns": lambda table: table.select(table.column_names[:-1]),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_the_check_refuses_a_shard_that_differs_from_what_was_to_be_written(tmp_path: Path, difference: str) -> None:
    path = tmp_path / "shard.parquet"
    wanted = table_of(COLUMNS, 400, mask=0xFFFF0000)
    if difference == "the sign of a zero":
        wanted = table_of(COLUMNS, 40, mask=0)
    write_table(wanted, path)
    check_shard(content_of(wanted), path)
    write_table(DIFFERENCES[difference](wanted), path)
    with pytest.raises(ShardDamagedError, match="just written"):
        check_shard(content_of(wanted), path)


def test_the_check_refuses_any_flipped_bit_of_a_page_and_a_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    table = table_of(COLUMNS, 40)
    write_table(table, path)
    content = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(0).column(len(KEY_FIELDS) + 1)
    bodies = np.random.default_rng(2).integers(40, chunk.total_compressed_size, 50)
    for place in bodies.tolist():
        changed = bytearray(content)
        changed[chunk.data_page_offset + place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(ShardDamagedError, match="checksum"):
            check_shard(content_of(table), path)
    for length in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ShardDamagedError, match="does not read back"):
            check_shard(content_of(table), path)


@pytest.mark.parametrize("hole", [None, [None] + [1.0] * 95], ids=["list", "value"])
def test_a_null_is_not_written(hole: list[float | None] | None) -> None:
    with pytest.raises(ValueError, match="null"):
        ColumnRows.of([(pa.array([[1.0] * 96, hole], pa.list_(pa.float32(), 96)), "float32")])


@pytest.mark.parametrize("dtypes", [["bfloat16"], ["float16"], ["float32", "bfloat16", "float16"]], ids=str)
def test_values_of_any_dtype_and_in_any_pieces_are_widened_exactly(tmp_path: Path, dtypes: list[Dtype]) -> None:
    path = tmp_path / "shard.parquet"
    table = table_of(COLUMNS, 60)
    rng = np.random.default_rng(3)
    lengths = rng.multinomial(60 - 2 * 5, [0.2] * 5) + 2
    pieces: list[tuple[pa.FixedSizeListArray, Dtype]] = []
    expected = []
    for number, length in enumerate(lengths.tolist()):
        dtype = dtypes[number % len(dtypes)]
        floats = rng.standard_normal(length * 96).astype(np.float32)
        if dtype == "bfloat16":
            values = (floats.view(np.uint32) >> 16).astype(np.uint16)
            expected.append((values.astype(np.uint32) << 16).view(np.float32))
        else:
            values = floats.astype(NUMPY_TYPES[dtype])
            expected.append(values.astype(np.float32))
        pieces.append((pa.FixedSizeListArray.from_arrays(pa.array(values), 96), dtype))
    whole = content_of(table)
    content = Content(whole.schema, whole.keys, {**whole.columns, COLUMNS[0].name: ColumnRows.of(pieces)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "PAGE_BYTES", 7 * 96 * 4)
        write_shard(content, path)
    check_shard(content, path, by_arrow=True)
    found = by_arrow(path, COLUMNS[0])
    np.testing.assert_array_equal(found.view(np.uint32), np.concatenate(expected).view(np.uint32))
    assert content.nbytes >= 60 * (96 + 160) * 4
