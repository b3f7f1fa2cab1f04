"""The commands as a person runs them: real processes, a real server, exit codes."""

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import numpy as np
import polars as pl
import pytest

from stratoscope import Run, local_server
from stratoscope.cli import exits
from stratoscope.errors import ConfigurationError
from stratoscope.probes import load
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.synthetic import SyntheticRunner
from stratoscope_wire import Block, Column
from stratoscope_wire.request import Dtype

StartServer = Callable[..., AbstractContextManager[str]]

TABLE = "id,text,label,size,topic,span.noun\n" + "".join(
    f"s{i},The {noun} number {i},{i % 2},{i / 7:.3f},t{i % 10},{noun}\n"
    for i, noun in enumerate(["cat", "dog", "owl", "fox"] * 10)
)


def stratoscope(*args: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")}
    command = [str(Path(sys.executable).with_name("stratoscope")), *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=clean | environ, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "words.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


@pytest.fixture
def run(table: Path, tmp_path: Path, synthetic_url: str) -> Path:
    """A finished run of two layers."""
    ended = collect(table, tmp_path, synthetic_url)
    assert ended.returncode == 0, ended.stderr
    return tmp_path / "run"


def collect(table: Path, folder: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    return stratoscope(
        "collect", table, "--out", "run", "--sites", "resid_post", "--layers", "3,8", *more,
        cwd=folder, STRATOSCOPE_BASE_URL=url,
    )  # fmt: skip


def test_collecting_says_what_it_did_and_a_second_time_fetches_nothing(
    table: Path, tmp_path: Path, synthetic_url: str
) -> None:
    first = collect(table, tmp_path, synthetic_url)
    assert (first.returncode, first.stderr) == (0, "")
    assert "40 of 40 stimuli (0 were there, 40 fetched" in first.stdout
    second = collect(table, tmp_path, synthetic_url)
    assert "40 of 40 stimuli (40 were there, 0 fetched in 0 requests" in second.stdout


def test_probing_reporting_and_exporting_a_run(run: Path) -> None:
    svm = stratoscope("probe", run, "--label", "label", "--group", "id", cwd=run)
    assert svm.returncode == 0, svm.stderr
    assert svm.stdout.count("resid_post") == 1
    ridge = stratoscope("probe", run, "--label", "size", "--group", "id", "--probe", "ridge", cwd=run)
    assert ridge.returncode == 0, ridge.stderr
    assert {path.name for path in (run / "results").iterdir()} == {
        f"{kind}-{name}.parquet" for kind in ("scores", "predictions") for name in ("label-svm", "size-ridge")
    }
    tested = stratoscope(
        "probe", run, "--label", "label", "--group", "id", "--probe", "ridge_classifier", "--permutations", "200",
        "--types", "topic", cwd=run,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stderr
    assert tested.stdout.splitlines()[0].endswith("p")
    scores = load(run)["label", "ridge_classifier"].scores
    assert scores["control"].unique().sort().to_list() == ["none", "shuffled", "text", "type"]
    assert not (run / "results" / "checkpoints").exists()
    for table in ("scores", "predictions", "null"):
        (run / "results" / f"{table}-label-ridge_classifier.parquet").unlink()
    report = stratoscope("report", run, cwd=run)
    assert Path(report.stdout.strip()).read_text(encoding="utf-8").count("<figure") == 2
    assert len(list((run / "figures").glob("*.png"))) == 2
    exported = stratoscope("export", run, "--out", run / "x.npz", "--layers", "8", cwd=run)
    assert exported.returncode == 0, exported.stderr
    with np.load(run / "x.npz") as arrays:
        assert arrays["resid_post.8"].tobytes() == Run.open(run).activations()["resid_post", 8].tobytes()
        assert arrays["topic"].tolist() == [f"t{i % 10}" for i in range(40)]


def test_a_plan_tells_the_exact_bytes_that_collecting_then_brings(table: Path, run: Path, synthetic_url: str) -> None:
    ended = stratoscope(
        "plan", table, "--server", synthetic_url, "--sites", "resid_post", "--layers", "3,8", cwd=table.parent
    )
    n_bytes = sum(values.nbytes for values in Run.open(run).activations().values())
    assert f"{n_bytes:,} bytes of float32" in ended.stdout
    assert "tokens       200" in ended.stdout


def test_the_card_is_shown_to_people_and_to_programs(tmp_path: Path, synthetic_url: str) -> None:
    shown = stratoscope("model", "--server", synthetic_url, cwd=tmp_path).stdout
    assert "12 layers, d_model 64, 4 heads of 16" in shown
    assert "max response bytes" in shown
    card = pl.read_json(stratoscope("model", "--server", synthetic_url, "--json", cwd=tmp_path).stdout.encode())
    assert card["fingerprint"].item() in shown


def test_a_built_in_experiment_is_named_like_a_file(tmp_path: Path, synthetic_url: str) -> None:
    ended = stratoscope("plan", "relation", "--server", synthetic_url, cwd=tmp_path)
    assert "stimuli      356" in ended.stdout


FAULTS: dict[str, tuple[list[str], int, str]] = {
    "no such file": (["collect", "none.csv", "--out", "x"], exits.USAGE, "there is no such file"),
    "unknown option": (["collect", "words.csv", "--out", "x", "--layer", "3"], exits.USAGE, "--layers"),
    "unknown site": (["collect", "words.csv", "--out", "x", "--sites", "resid"], exits.USAGE, "unknown site 'resid'"),
    "unknown layer": (["collect", "words.csv", "--out", "x", "--layers", "99"], exits.USAGE, "layer 99 does not exist"),
    "unknown span": (["collect", "words.csv", "--out", "x", "--select", "verb:last"], exits.USAGE, "no span 'verb'"),
    "another capture": (
        ["collect", "words.csv", "--out", "run", "--sites", "embed"],
        exits.MISMATCH,
        "another capture",
    ),
    "no run": (["probe", "none", "--label", "a", "--group", "b"], exits.USAGE, "holds no run"),
    "no column": (
        ["probe", "run", "--label", "colour", "--group", "topic"],
        exits.USAGE,
        "they have label, size, topic",
    ),
    "not probed": (["report", "run"], exits.USAGE, "Run the probes first"),
    "bad suffix": (["export", "run", "--out", "x.docx"], exits.USAGE, "unknown suffix '.docx'"),
    "no command": (["collct"], exits.USAGE, "collect"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_a_code_that_means_something(fault: str, run: Path, synthetic_url: str) -> None:
    args, code, words = FAULTS[fault]
    ended = stratoscope(*args, cwd=run.parent, STRATOSCOPE_BASE_URL=synthetic_url)
    assert (ended.returncode, words in ended.stderr) == (code, True), ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (run.parent / "x").exists() or fault == "unknown span"


def test_a_server_that_is_not_there_and_a_key_that_is_wrong_have_codes_of_their_own(
    tmp_path: Path, free_port: Callable[[], int], start_server: StartServer, key_file: Path
) -> None:
    with start_server(api_key_file=key_file) as url:
        wrong = stratoscope("model", "--server", url, cwd=tmp_path, STRATOSCOPE_API_KEY="not-a-key-of-theirs")
        right = stratoscope("model", "--server", url, cwd=tmp_path, STRATOSCOPE_API_KEY="first-key-0123456789")
        absent = stratoscope("model", "--server", f"http://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert (wrong.returncode, right.returncode, absent.returncode) == (exits.FAILED, exits.OK, exits.SERVER)
    assert "API key" in wrong.stderr
    assert "not-a-key-of-theirs" not in wrong.stderr + wrong.stdout


def test_a_run_that_another_process_writes_to_is_left_alone(run: Path, table: Path, synthetic_url: str) -> None:
    with (run / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = collect(table, run.parent, synthetic_url)
    assert ended.returncode == exits.LOCKED
    assert collect(table, run.parent, synthetic_url).returncode == exits.OK


def test_a_refused_stimulus_can_be_skipped_and_the_run_is_then_said_to_be_incomplete(
    tmp_path: Path, start_server: StartServer
) -> None:
    path = tmp_path / "words.csv"
    path.write_text("id,text\na,short\nb," + "long " * 30 + "\nc,short too\n", encoding="utf-8")
    with start_server(max_tokens_per_text=10) as url:
        stopped = collect(path, tmp_path, url)
        skipped = collect(path, tmp_path, url, "--on-refusal", "skip")
    assert (stopped.returncode, skipped.returncode) == (exits.INCOMPLETE, exits.INCOMPLETE)
    assert "'b'" in stopped.stderr
    assert "2 of 3 stimuli" in skipped.stdout
    assert "1 stimuli were refused" in skipped.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_collection_that_is_stopped_says_how_to_go_on_and_the_same_command_does(
    number: signal.Signals, tmp_path: Path, start_server: StartServer
) -> None:
    table = tmp_path / "words.csv"
    table.write_text("id,text\n" + "".join(f"s{i},text number {i}\n" for i in range(40)), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("stratoscope")), "collect", "words.csv", "--out", "run"]
    with start_server(lambda: BatchedEngine(SlowRunner(), max_batch_tokens=1), max_stimuli=2) as url:
        environ = os.environ | {"STRATOSCOPE_BASE_URL": url}
        with subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60
            # Two requests of two stimuli are in flight; a third is only sent once one answer was taken.
            while "stratoscope_stimuli_total 8.0" not in httpx2.get(f"{url}/metrics").text:
                assert process.poll() is None
                assert time.monotonic() < deadline
            process.send_signal(number)
            _, stderr = process.communicate(timeout=30)
        assert process.returncode == exits.INTERRUPTED
        assert "run the same command again to go on: stratoscope collect words.csv --out run" in stderr
        assert "Traceback" not in stderr
        there = 40 - len(Run.open(tmp_path / "run").missing)
        assert 0 < there < 40
        ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert f"40 of 40 stimuli ({there} were there, {40 - there} fetched" in ended.stdout


class SlowRunner(SyntheticRunner):
    """Takes a fifth of a second per batch."""

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        time.sleep(0.2)
        return super().run(prompts, columns, dtype)


def test_serve_is_the_servers_own_command(tmp_path: Path) -> None:
    ended = stratoscope("serve", "--help", cwd=tmp_path)
    assert ended.returncode == 0
    for flag in ("--engine", "--model", "--dtype", "--host", "--port", "--api-key-file"):
        assert flag in ended.stdout


def test_without_the_server_serve_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'stratoscope-server\[torch\]'"):
        local_server.server_command([])


def test_every_exit_code_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    assert len(codes) >= 8
    for code in codes:
        assert f"\n| {code} | " in text
