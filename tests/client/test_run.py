"""Reading runs: from here, and from any other program."""

import ast
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

import stratoscope
from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.errors import (
    CollectError,
    ExportError,
    InvalidRequestError,
    RunError,
    RunIncompleteError,
    RunNotFoundError,
    ShardDamagedError,
)
from stratoscope.exports import export
from stratoscope.stimuli import StimulusTable
from stratoscope.store.run import Run
from stratoscope_wire import Stimulus

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

TEXTS = ["A church and organ", "a cat", "Zürich, its lake", "the end"]
SELECT = ["last", "all", "noun:mean"]


@pytest.fixture
def table() -> StimulusTable:
    rows = [
        {"id": f"s{k}", "text": text, "span.noun": text.split()[-1], "label": k % 2 or None, "place": text[0]}
        for k, text in enumerate(TEXTS)
    ]
    return StimulusTable.from_frame(pl.DataFrame(rows))


@pytest.fixture
def run(client: Client, tmp_path: Path, table: StimulusTable) -> Run:
    collect(table, tmp_path / "run", client, sites=["embed", "resid_post"], layers=[0, 2], select=SELECT)
    return Run.open(tmp_path / "run")


def test_a_run_says_what_it_holds(run: Run, server: "FaultServer") -> None:
    assert run.card == server.card
    assert run.selectors == ("last", "all", "noun:mean")
    assert [column.name for column in run.columns] == ["embed", "resid_post.0", "resid_post.2"]
    assert run.capture.layers == [0, 2]
    assert run.add_special_tokens
    assert run.missing == {}
    assert run.stimuli().to_dict(as_series=False) == {
        "id": ["s0", "s1", "s2", "s3"],
        "text": TEXTS,
        "label": [None, 1, None, 1],
        "place": ["A", "a", "Z", "t"],
    }


def test_activations_are_rows_in_the_order_of_the_stimuli(run: Run, server: "FaultServer") -> None:
    acts = run.activations("last")
    assert list(acts) == [("embed", None), ("resid_post", 0), ("resid_post", 2)]
    for column in run.columns:
        truth = np.stack([server.truth(text, column) for text in TEXTS])
        values = acts[column.site, column.layer]
        assert (values.dtype, values.shape) == (np.dtype(np.float32), (4, 8))
        np.testing.assert_array_equal(values, truth)
    np.testing.assert_array_equal(acts["resid_post", -1], acts["resid_post.2"])
    assert run.positions("last").tolist() == [len(text) for text in TEXTS]
    assert run.token_ids("noun:mean").tolist() == [-1] * 4


def test_tokens_are_one_array_per_stimulus(run: Run, server: "FaultServer") -> None:
    arrays = run.tokens("all")["resid_post", 0]
    assert [len(array) for array in arrays] == run.counts("all").tolist() == [len(text) + 1 for text in TEXTS]
    for text, array in zip(TEXTS, arrays, strict=True):
        truth = np.stack([server.truth(text, run.columns[1], position) for position in range(len(text) + 1)])
        np.testing.assert_array_equal(array, truth)


def test_a_mean_is_that_of_its_tokens(run: Run) -> None:
    tokens = run.tokens("all")["resid_post", 2][1]
    np.testing.assert_allclose(run.activations("noun:mean")["resid_post", 2][1], tokens[3:6].mean(axis=0), rtol=1e-6)


def test_a_selector_must_be_named_and_fit(run: Run) -> None:
    with pytest.raises(InvalidRequestError, match="name a selector; the run has last, all, noun:mean"):
        run.activations()
    with pytest.raises(InvalidRequestError, match="selector 'first' was not captured"):
        run.activations("first")
    with pytest.raises(InvalidRequestError, match=r"one row per token; use Run\.tokens\('all'\)"):
        run.activations("all")


def test_a_column_is_read_without_the_others(run: Run) -> None:
    acts = run.activations("last")
    expected = acts["resid_post", 0]
    [path] = run.shard_paths
    group = pq.ParquetFile(path).metadata.row_group(0)
    content = bytearray(path.read_bytes())
    for index in range(4, group.num_columns):
        column = group.column(index)
        if not column.path_in_schema.startswith("resid_post.0."):
            content[column.data_page_offset + column.total_compressed_size - 3] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(ShardDamagedError, match=r"resid_post\.2"):
        acts["resid_post", 2]
    np.testing.assert_array_equal(acts["resid_post", 0], expected)


def test_shards_have_the_agreed_layout(run: Run, server: "FaultServer") -> None:
    [path] = run.shard_paths
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 1
    group = file.metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    assert [column.path_in_schema for column in columns][:5] == [
        "stimulus_id",
        "selector",
        "position",
        "token_id",
        "embed.list.element",
    ]
    assert all("BYTE_STREAM_SPLIT" in column.encodings for column in columns[4:])
    for column in columns:
        assert (column.compression, column.has_dictionary_page, column.is_stats_set) == ("ZSTD", False, False)
    assert file.schema_arrow.metadata[b"stratoscope.fingerprint"].decode() == server.card.fingerprint
    assert file.schema_arrow.field("resid_post.0").metadata[b"hf_index"] == b"1"
    assert path.name == f"{run._shards[0].sha256[:24]}.parquet"


def test_shards_open_in_polars_pandas_and_duckdb_alone(run: Run) -> None:
    [path] = run.shard_paths
    frame = pl.read_parquet(path).filter(pl.col("selector") == "last")
    # In the order in which they were asked, which is that of their texts.
    places = {name: place for place, name in enumerate(run.stimuli()["id"])}
    order = [places[name] for name in frame["stimulus_id"]]
    assert sorted(order) == list(range(len(places)))
    expected = run.activations("last")["resid_post", 2][order]
    assert frame.schema["resid_post.2"] == pl.Array(pl.Float32, 8)
    np.testing.assert_array_equal(frame["resid_post.2"].to_numpy(), expected)
    pandas = pd.read_parquet(path)
    np.testing.assert_array_equal(np.stack(pandas[pandas["selector"] == "last"]["resid_post.2"]), expected)
    query = f"SELECT \"resid_post.2\" FROM '{path}' WHERE selector = 'last'"
    with duckdb.connect() as database:
        np.testing.assert_array_equal(np.array([row[0] for row in database.execute(query).fetchall()]), expected)


def test_page_checksums_are_written(run: Run) -> None:
    [path] = run.shard_paths
    content = bytearray(path.read_bytes())
    offset = pq.ParquetFile(path).metadata.row_group(0).column(5)
    content[offset.data_page_offset + offset.total_compressed_size - 3] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_the_manifest_sums_up_the_ledger(run: Run) -> None:
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["fingerprint"] == run.card.fingerprint
    assert manifest["stimuli"] == {"done": 4, "todo": 0, "failed": 0}
    assert [shard["name"] for shard in manifest["shards"]] == [path.name for path in run.shard_paths]
    assert manifest["versions"]["stratoscope"] == stratoscope.__version__
    assert manifest["columns"] == ["embed", "resid_post.0", "resid_post.2"]


def test_an_incomplete_run_gives_no_activations_unless_told_to(
    client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    table = StimulusTable((Stimulus(id="a", text="fine"), Stimulus(id="b", text="REFUSED")), pl.DataFrame())
    with pytest.raises(CollectError):
        collect(table, tmp_path, client)
    server.limits = server.default_limits()
    with pytest.raises(RunIncompleteError, match=r"2 of 2 stimuli .* the first is 'a'"):
        Run.open(tmp_path).activations()
    partial = Run.open(tmp_path, allow_incomplete=True)
    assert partial.stimuli().height == 0
    assert partial.activations()["resid_post", 0].shape == (0, 8)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="holds no run"):
        Run.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_of_another_version_is_refused(run: Run) -> None:
    database = sqlite3.connect(run.path / "ledger.sqlite")
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(RunError, match="ledger has version 9"):
        Run.open(run.path)


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database, but long enough to look like one" * 50)
    with pytest.raises(RunError, match="cannot be used as a ledger"):
        Run.open(tmp_path)


def test_reading_leaves_nothing_behind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in run.path.iterdir())
    assert before == ["ledger.sqlite", "manifest.json", "run.lock", "shards"]
    ledger = (run.path / "ledger.sqlite").read_bytes()
    for is_writable in (True, False):
        monkeypatch.setattr(os, "access", lambda *_, answer=is_writable: answer)
        assert Run.open(run.path).activations("last")["embed", None].shape == (4, 8)
        assert sorted(path.name for path in run.path.iterdir()) == before
        assert (run.path / "ledger.sqlite").read_bytes() == ledger


def test_exports_to_parquet_hold_labels_and_chosen_columns(run: Run, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out.parquet", sites=["resid_post"], layers=[-1], selector="last")
    frame = pl.read_parquet(out)
    assert frame.columns == ["id", "text", "label", "place", "position", "token_id", "resid_post.2"]
    assert frame["label"].to_list() == [None, 1, None, 1]
    np.testing.assert_array_equal(frame["resid_post.2"].to_numpy(), run.activations("last")["resid_post", 2])


def test_exports_of_tokens_have_a_row_per_token(run: Run, tmp_path: Path) -> None:
    frame = pl.read_parquet(export(run, tmp_path / "out.parquet", sites=["embed"], selector="all"))
    assert frame.height == sum(len(text) + 1 for text in TEXTS)
    second = frame.filter(pl.col("id") == "s1")
    assert second["position"].to_list() == list(range(6))
    np.testing.assert_array_equal(second["embed"].to_numpy(), run.tokens("all")["embed", None][1])


def test_exports_to_npz_need_no_pickle(run: Run, tmp_path: Path) -> None:
    with np.load(export(run, tmp_path / "out.npz", selector="noun:mean"), allow_pickle=False) as arrays:
        assert arrays["id"].tolist() == ["s0", "s1", "s2", "s3"]
        np.testing.assert_array_equal(arrays["label"], [np.nan, 1, np.nan, 1])
        np.testing.assert_array_equal(arrays["resid_post.0"], run.activations("noun:mean")["resid_post", 0])


def test_exports_to_csv_hold_the_stimuli(run: Run, tmp_path: Path) -> None:
    assert pl.read_csv(export(run, tmp_path / "out.csv")).equals(run.stimuli())


def test_what_cannot_be_exported_is_refused_and_leaves_no_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, options, message in (
        ("out.xlsx", {}, "unknown suffix"),
        ("nowhere/out.csv", {}, "there is no folder"),
        ("out.npz", {"sites": ["mlp_out"]}, "no site mlp_out"),
        ("out.npz", {"layers": [1]}, r"resid_post\.1 was not captured"),
        ("out.npz", {"sites": ["resid_post"], "layers": [9]}, "layer 9 does not exist"),
    ):
        with pytest.raises(ExportError, match=message):
            export(run, tmp_path / name, selector="last", **options)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        export(run, tmp_path / "out.npz", selector="last")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_public_names_are_those_announced() -> None:
    source = ast.parse(Path(stratoscope.__file__).read_text())
    [guarded] = [node for node in source.body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(stratoscope.__all__) == set(imported) == set(dir(stratoscope))
    for name, module in imported.items():
        assert getattr(stratoscope, name) is getattr(sys.modules[str(module)], name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        stratoscope.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, stratoscope; print([m for m in ('polars', 'pyarrow', 'httpx2', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
