"""A collecting process is killed at every kind of moment; nothing is lost, nothing is doubled."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from stratoscope.stimuli import StimulusTable
from stratoscope.store.run import Run

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

N = 150
FATAL_STEPS = (-7, 2, 3, 4, 5, 6, 7, 9, 10, 12)
"""Where the process dies: while the run is set up, at the steps of its first commit, and in its second."""


def collect_until(fatal_step: int, server: "FaultServer", folder: Path) -> tuple[int, str]:
    """Start the program; return its exit status and the step at which it killed itself."""
    program = Path(__file__).with_name("collecting.py")
    arguments = [server.url, str(folder / "run"), str(folder / "table.csv"), str(fatal_step)]
    done = subprocess.run(
        [sys.executable, program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode, done.stdout.strip()


def check(folder: Path, server: "FaultServer", table: StimulusTable) -> int:
    """Hold whatever is committed against the truth; return how much that is."""
    if not (folder / "run" / "manifest.json").exists():
        return 0
    run = Run.open(folder / "run", allow_incomplete=True)
    assert run.verify() == []
    ids = run.stimuli()["id"].to_list()
    assert len(set(ids)) == len(ids)
    assert set(ids) | set(run.missing) == set(table.ids)
    texts = {stimulus.id: stimulus for stimulus in table.stimuli}
    for column in run.columns:
        for name, row in zip(ids, run.activations()[column.site, column.layer], strict=True):
            np.testing.assert_array_equal(row, server.truth(texts[name], column))
    return len(ids)


@pytest.fixture
def table(tmp_path: Path) -> StimulusTable:
    frame = pl.DataFrame([{"id": f"s{k}", "text": f"stimulus number {k}", "label": k % 2} for k in range(N)])
    frame.write_csv(tmp_path / "table.csv")
    return StimulusTable.from_frame(frame)


def test_kills_at_every_step_lose_nothing_and_double_nothing(
    server: "FaultServer", tmp_path: Path, table: StimulusTable
) -> None:
    steps, n_done = [], 0
    for fatal_step in FATAL_STEPS:
        status, step = collect_until(fatal_step, server, tmp_path)
        assert status == -9, "it was to be killed before it could finish"
        steps.append(step)
        now_done = check(tmp_path, server, table)
        assert now_done >= n_done, "what was committed is gone"
        n_done = now_done
    kinds = {f"{when} {what}" for when in ("before", "after") for what in ("fsync", "replace", "commit_shard")}
    assert set(steps) >= kinds, "every step of a commit was to be hit"
    assert 0 < n_done < N

    server.received.clear()
    assert collect_until(0, server, tmp_path) == (0, "")
    assert sum(len(post.ids) for post in server.posts) == N - n_done
    assert check(tmp_path, server, table) == N
    rows = pl.concat(
        [pl.read_parquet(path, columns=["stimulus_id"]) for path in Run.open(tmp_path / "run").shard_paths]
    )
    assert sorted(rows["stimulus_id"]) == sorted(table.ids)
    assert list((tmp_path / "run" / "shards").glob(".*")) == []


def test_a_shard_that_was_in_place_when_the_process_died_is_adopted_and_not_fetched_again(
    server: "FaultServer", tmp_path: Path, table: StimulusTable
) -> None:
    assert collect_until(6, server, tmp_path) == (-9, "after replace")
    [orphan] = (tmp_path / "run" / "shards").glob("*.parquet")
    n_adopted = len(pl.read_parquet(orphan, columns=["stimulus_id"]))
    assert 0 < n_adopted < N
    server.received.clear()
    assert collect_until(0, server, tmp_path) == (0, "")
    assert sum(len(post.ids) for post in server.posts) == N - n_adopted
    assert orphan in Run.open(tmp_path / "run").shard_paths
    assert check(tmp_path, server, table) == N
