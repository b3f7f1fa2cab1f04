"""Studies from the command line: real processes, a real server, and nothing done twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import polars as pl
import pytest

from stratoscope.cli import exits
from stratoscope_server.engines import synthetic
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.plants import Fact, Plants
from stratoscope_server.engines.protocol import Prompt
from stratoscope_wire import Block, Column
from stratoscope_wire.request import Dtype

StartServer = Callable[..., AbstractContextManager[str]]
Command = Callable[..., subprocess.CompletedProcess[str]]

NOUNS = ["cat", "dog", "owl", "fox", "hen", "bee", "ant", "elk", "cod", "eel"]
TABLE = "noun,adjective,label,kind\n" + "".join(
    f"{noun},{adjective},{number % 2},{noun}\n"
    for number, noun in enumerate(NOUNS)
    for adjective in ("big", "old", "red", "wet")
)
STUDY = """
study: animals
version: "1"
title: Animals
about: A small study.
reading: {sites: [embed, resid_post], layers: all}
statistics: {folds: 4, permutations: 60, shuffles: 2, resamples: 100, splits: 1}
experiments:
  - name: noun
    title: Nouns
    level: item
    question: Which?
    control: None.
    texts: {design: filled, table: animals.csv, template: "A {adjective} {noun}"}
    group: kind
    targets: [{label: label}]
  - name: again
    title: The same nouns
    level: item
    question: Which, in the same texts?
    control: None.
    texts: {design: filled, table: animals.csv, template: "A {adjective} {noun}"}
    group: kind
    targets: [{label: label, name: odd}]
transfer: {of: [noun]}
heads: {of: [noun], depths: [0.5]}
claims:
  - {claim: Deep layers know., paper: "-", rule: deep, experiments: [noun]}
"""
PLANTS = Plants(
    n_layers=6,
    facts=[
        Fact(
            name="odd",
            values={
                f"A {a} {n}": (-1.0, 1.0)[i % 2] for i, n in enumerate(NOUNS) for a in ("big", "old", "red", "wet")
            },
            gains={"resid_post": [0, 0, 0.2, 0.5, 0.6, 0.3], "heads": [0, 0, 0.5, 0.5, 0, 0]},
        )
    ],
    revision="animals",
)


class CountingRunner(synthetic.SyntheticRunner):
    """Counts what it runs."""

    n_prompts = 0
    seconds = 0.0

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        time.sleep(self.seconds)
        block = super().run(prompts, columns, dtype)
        self.n_prompts += len(prompts)
        return block


@pytest.fixture
def runner() -> CountingRunner:
    return CountingRunner(PLANTS)


@pytest.fixture
def url(start_server: StartServer, runner: CountingRunner) -> Iterator[str]:
    with start_server(lambda: BatchedEngine(runner, 60)) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "animals.csv").write_text(TABLE)
    (tmp_path / "animals.yaml").write_text(STUDY)
    return tmp_path


@pytest.fixture
def study(folder: Path) -> Command:
    """Run ``stratoscope study ...`` in the folder."""

    def run(*args: str | Path, server: str | None = None) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")}
        environ = clean | ({} if server is None else {"STRATOSCOPE_BASE_URL": server})
        command = [str(Path(sys.executable).with_name("stratoscope")), "study", *map(str, args)]
        return subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def stamps(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_a_study_is_listed_shown_and_written_without_a_server(study: Command, folder: Path) -> None:
    listed = study("list")
    assert listed.returncode == 0
    assert "hierarchy: A functional hierarchy?" in listed.stdout
    assert "--profile quick" in listed.stdout
    shown = study("show", "animals.yaml")
    assert shown.returncode == 0, shown.stderr
    assert "noun [item]: 40 texts in 10 groups" in shown.stdout
    assert "A big cat" in shown.stdout
    written = study("stimuli", "animals.yaml", "--out", "texts")
    assert written.returncode == 0, written.stderr
    assert pl.read_csv(folder / "texts" / "noun.csv").equals(pl.read_parquet(folder / "texts" / "noun.parquet"))


def test_a_plan_counts_and_runs_next_to_nothing(study: Command, url: str, runner: CountingRunner) -> None:
    silent = study("plan", "animals.yaml", "--no-rehearse", server=url)
    assert silent.returncode == 0, silent.stderr
    assert runner.n_prompts == 0
    assert "not rehearsed" in silent.stdout
    # Forty texts are read twice, once for the heads of one layer; both experiments share the first reading.
    assert "collect   80 texts, 320 tokens" in silent.stdout
    rehearsed = study("plan", "animals.yaml", server=url)
    assert "at the speed of a few of them" in rehearsed.stdout
    assert 0 < runner.n_prompts <= 50


def test_a_run_shares_texts_and_a_second_one_does_nothing_again(
    study: Command, url: str, runner: CountingRunner, folder: Path
) -> None:
    first = study("run", "animals.yaml", "--out", "run", server=url)
    assert first.returncode == 0, first.stderr
    assert "holds" in first.stdout
    assert runner.n_prompts == 80  # forty texts for two experiments, and forty for their heads
    fits = stamps(folder / "run", "fits/**/*.parquet")
    shards = stamps(folder / "run", "activations/*/shards/*")
    assert len(fits) > 10
    second = study("run", "animals.yaml", "--out", "run", server=url)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert runner.n_prompts == 80
    assert stamps(folder / "run", "fits/**/*.parquet") == fits
    assert stamps(folder / "run", "activations/*/shards/*") == shards


def test_a_changed_target_is_fitted_and_the_rest_is_left(
    study: Command, url: str, runner: CountingRunner, folder: Path
) -> None:
    assert study("run", "animals.yaml", "--out", "run", server=url).returncode == 0
    before = stamps(folder / "run", "fits/*/*/main/results/*")
    text = STUDY.replace(
        "targets: [{label: label, name: odd}]", "targets: [{label: label, name: odd, where: {adjective: big}}]"
    )
    (folder / "animals.yaml").write_text(text.replace("folds: 4", "folds: 4, values: ridge"))
    ended = study("run", "animals.yaml", "--out", "run", server=url)
    assert ended.returncode == 0, ended.stderr
    after = stamps(folder / "run", "fits/*/*/main/results/*")
    changed = {path.parts[-4] for path in after if after[path] != before[path]}
    assert changed == {"odd"}
    assert runner.n_prompts == 80


def test_stopping_a_run_loses_nothing_that_was_done(
    study: Command, url: str, runner: CountingRunner, folder: Path
) -> None:
    runner.seconds = 0.3
    command = [str(Path(sys.executable).with_name("stratoscope")), "study", "run", "animals.yaml", "--out", "run"]
    process = subprocess.Popen(
        [*command, "--server", url], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while runner.n_prompts < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert 20 <= runner.n_prompts < 80
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == exits.INTERRUPTED
    assert "run the same command again" in stderr
    runner.seconds = 0.0
    ended = study("run", "animals.yaml", "--out", "run", server=url)
    assert ended.returncode == 0, ended.stderr
    assert runner.n_prompts < 80 + 45  # what was under way is read again, not what was committed
    assert (folder / "run" / "report.html").exists()


def test_several_servers_share_a_study(
    study: Command, url: str, runner: CountingRunner, start_server: StartServer, folder: Path
) -> None:
    twin = CountingRunner(PLANTS)
    with start_server(lambda: BatchedEngine(twin, 60), max_stimuli=5) as second:
        ended = study("run", "animals.yaml", "--out", "run", "--server", url, "--server", second)
    assert ended.returncode == 0, ended.stderr
    assert runner.n_prompts > 0
    assert twin.n_prompts > 0
    assert (folder / "run" / "report.html").exists()


def test_one_run_holds_one_model_and_one_study(
    study: Command, url: str, folder: Path, start_server: StartServer
) -> None:
    assert study("run", "animals.yaml", "--out", "run", server=url).returncode == 0
    record = (folder / "run" / "model.json").read_bytes()
    with start_server() as other:
        mixed = study("run", "animals.yaml", "--out", "run", server=other)
    assert mixed.returncode == exits.MISMATCH
    assert "give another --out" in mixed.stderr
    assert (folder / "run" / "model.json").read_bytes() == record
    (folder / "animals.yaml").write_text(STUDY.replace("study: animals", "study: plants"))
    foreign = study("run", "animals.yaml", "--out", "run", server=url)
    assert foreign.returncode != 0
    assert "holds the study 'animals', not 'plants'" in foreign.stderr


def test_faults_are_told_on_one_line_with_the_fix(study: Command, folder: Path, url: str) -> None:
    (folder / "animals.yaml").write_text(STUDY.replace("label: label}", "label: colour}"))
    ended = study("show", "animals.yaml")
    assert ended.returncode == exits.USAGE
    assert "experiment noun: the table has no column 'colour'; it has" in ended.stderr
    unknown = study("run", "nothing", "--out", "run", server=url)
    assert unknown.returncode == exits.USAGE
    assert "there is no built-in study 'nothing'" in unknown.stderr
    early = study("report", "nowhere")
    assert early.returncode != 0
    assert "holds no study" in early.stderr
    assert study("compare", "a", "--out", "b").returncode != 0


def test_pairs_are_imported_into_a_table_that_a_design_takes(study: Command, folder: Path) -> None:
    rows = (
        "a,b,rel\n" + "".join(f"first{i},second{i},relation{i % 4}\n" for i in range(24)) + "first0,other,relation1\n"
    )
    (folder / "mine.csv").write_text(rows)
    columns = ("--first", "a", "--second", "b", "--relation", "rel")
    whole = study("import", "csv", "mine.csv", "--out", "whole.csv", *columns)
    assert "25 pairs of 4 relations" in whole.stdout
    ended = study("import", "csv", "mine.csv", "--out", "pairs.csv", "--disjoint", *columns)
    assert ended.returncode == 0, ended.stderr
    text = STUDY[: STUDY.index("experiments:")] + (
        "experiments:\n  - {name: pair, title: P, question: Q, control: C, targets: [{label: related}],\n"
        '     texts: {design: repaired, table: TABLE, template: "{first} and {second}"}}\n'
    )
    (folder / "pairs.yaml").write_text(text.replace("TABLE", "whole.csv"))
    refused = study("show", "pairs.yaml")
    assert refused.returncode == exits.USAGE
    assert "--disjoint" in refused.stderr
    (folder / "pairs.yaml").write_text(text.replace("TABLE", "pairs.csv"))
    shown = study("show", "pairs.yaml")
    assert "48 texts in 12 groups" in shown.stdout, shown.stderr
