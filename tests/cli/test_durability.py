"""Runs that are damaged, disks that are full, servers that die and people who press Ctrl-C, seen from a shell."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import pytest

from stratoscope.cli import exits
from stratoscope.store.run import Run
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import EngineError, Prompt
from stratoscope_server.engines.synthetic import SyntheticRunner
from stratoscope_wire import Block, Column, ModelCard
from stratoscope_wire.request import Dtype

StartServer = Callable[..., AbstractContextManager[str]]

N = 40
COMMAND = str(Path(sys.executable).with_name("stratoscope"))


def environment(**more: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")} | more


def stratoscope(*args: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**environ), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a table of stimuli."""
    lines = [f"s{number},text number {number}" for number in range(N)]
    (tmp_path / "words.csv").write_text("\n".join(["id,text", *lines]), encoding="utf-8")
    return tmp_path


def collect(folder: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    return stratoscope("collect", "words.csv", "--out", "run", "--layers", "3", *more, cwd=folder)


@pytest.fixture
def shard(folder: Path, synthetic_url: str) -> Path:
    """The only shard of a finished run."""
    ended = collect(folder, "--server", synthetic_url)
    assert ended.returncode == exits.OK, ended.stderr
    [path] = Run.open(folder / "run").shard_paths
    return path


def test_a_whole_run_is_verified(folder: Path, shard: Path) -> None:
    assert shard.exists()
    ended = stratoscope("verify", "run", cwd=folder)
    assert (ended.returncode, ended.stderr) == (exits.OK, "")
    assert ended.stdout == f"run: {N} of {N} stimuli in 1 shards, all whole\n"


def test_a_damaged_run_is_named_then_repaired_then_fetched_again(folder: Path, shard: Path, synthetic_url: str) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    found = stratoscope("verify", "run", cwd=folder)
    assert found.returncode == exits.DAMAGED
    assert f"shard {shard.name} was altered" in found.stdout
    [named] = re.findall(r"its stimuli: (.*)", found.stdout)
    assert sorted(named.split(", ")) == sorted(f"s{number}" for number in range(N))
    assert "`stratoscope verify run --repair`" in found.stdout
    mended = stratoscope("verify", "run", "--repair", cwd=folder)
    assert mended.returncode == exits.OK
    assert f"{N} stimuli are missing again" in mended.stdout
    assert (folder / "run" / "shards" / "damaged" / shard.name).read_bytes() == bytes(content)
    again = collect(folder, "--server", synthetic_url)
    assert f"{N} of {N} stimuli (0 were there, {N} fetched" in again.stdout
    assert stratoscope("verify", "run", cwd=folder).returncode == exits.OK


def test_every_command_that_meets_a_damaged_run_names_the_remedy(folder: Path, shard: Path, synthetic_url: str) -> None:
    shard.unlink()
    probe = stratoscope("probe", "run", "--label", "a", "--group", "id", cwd=folder)
    for ended in (collect(folder, "--server", synthetic_url), probe):
        assert ended.returncode == exits.DAMAGED
        assert f"shard {shard.name} with {N} stimuli is missing" in ended.stderr
        assert "`stratoscope verify run --repair`" in ended.stderr


def test_a_folder_that_cannot_be_made_is_one_line_and_a_code(folder: Path, synthetic_url: str) -> None:
    (folder / "file").write_text("")
    ended = stratoscope("collect", "words.csv", "--out", "file/run", "--server", synthetic_url, cwd=folder)
    assert ended.returncode == exits.STORAGE
    assert ended.stderr.startswith("stratoscope: file/run: Not a directory")
    assert len(ended.stderr.splitlines()) == 1


def can_mount() -> bool:
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not can_mount(), reason="needs a file system of its own: unshare, and the right to mount")
@pytest.mark.parametrize(("size", "words"), [("16k", "ledger.sqlite"), ("900k", "are free; it was not begun")])
def test_a_full_disk_has_a_code_of_its_own_and_the_same_command_goes_on_once_there_is_room(
    folder: Path, synthetic_url: str, size: str, words: str
) -> None:
    (folder / "disk").mkdir()
    collect_on_disk = f"{COMMAND} collect words.csv --out disk/run --layers 3 --server {synthetic_url}"
    script = (
        f"mount -t tmpfs -o size={size} none disk; {collect_on_disk}; echo code $?; "
        f"mount -o remount,size=50m disk; {collect_on_disk}; echo code $?; {COMMAND} verify disk/run; echo code $?"
    )
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    codes = [line.removeprefix("code ") for line in ended.stdout.splitlines() if line.startswith("code ")]
    assert codes == [str(exits.STORAGE), "0", "0"], ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert words in ended.stderr
    assert "Free" in ended.stderr
    assert "Run the same command again" in ended.stderr
    assert f"{N} of {N} stimuli in 1 shards, all whole" in ended.stdout


def test_several_servers_of_the_same_model_are_given_by_repeating_the_option(
    folder: Path, synthetic_url: str, start_server: StartServer
) -> None:
    with start_server() as second, start_server(lambda: BatchedEngine(OtherRunner(), 64)) as third:
        other = collect(folder, "--server", synthetic_url, "--server", third)
        assert not (folder / "run").exists()
        ended = collect(folder, "--server", synthetic_url, "--server", second)
        assert (ended.returncode, ended.stderr) == (exits.OK, "")
        same = collect(folder, "--server", second, "--server", second)
    assert other.returncode == exits.MISMATCH
    assert f"{synthetic_url} serves synthetic" in other.stderr
    assert f"{third} serves another" in other.stderr
    assert same.returncode == exits.USAGE
    assert "named twice" in same.stderr


def test_a_server_that_is_set_aside_is_named_on_stderr_and_the_others_finish(
    folder: Path, start_server: StartServer
) -> None:
    with (
        start_server(lambda: BatchedEngine(SlowRunner(), max_batch_tokens=1), max_stimuli=2) as good,
        start_server(lambda: BatchedEngine(FailingRunner(), 64)) as bad,
    ):
        ended = collect(folder, "--server", bad, "--server", good)
    assert ended.returncode == exits.OK, ended.stderr
    assert f"{N} of {N} stimuli" in ended.stdout
    assert ended.stderr.startswith(f"stratoscope: server {bad} is set aside for 5 s, the others go on: ")
    assert "out of memory" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_log_file_tells_what_happened_without_the_key(
    folder: Path, start_server: StartServer, key_file: Path
) -> None:
    key = "first-key-0123456789"
    with start_server(api_key_file=key_file) as url:
        ended = stratoscope(
            "collect", "words.csv", "--out", "run", "--server", url, "--layers", "3", "--log-file", "log.jsonl",
            cwd=folder, STRATOSCOPE_API_KEY=key,
        )  # fmt: skip
        wrong = stratoscope(
            "collect", "words.csv", "--out", "other", "--server", url, "--log-file", "log.jsonl",
            cwd=folder, STRATOSCOPE_API_KEY="no-key-of-theirs",
        )  # fmt: skip
    assert (ended.returncode, ended.stderr, wrong.returncode) == (exits.OK, "", exits.FAILED)
    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["status"] for line in lines if line.get("method") == "POST"] == [200]
    assert sum(line["message"].startswith("committed") for line in lines) == 1
    assert lines[-1]["message"].startswith("ended with exit code 1")
    assert key not in text
    assert "no-key-of-theirs" not in text


SLOW_COMMIT = """
import time
from stratoscope.cli import main
from stratoscope.store.writer import RunWriter

commit = RunWriter.commit

def slow(writer, batches):
    print("committing", flush=True)
    time.sleep(60)
    return commit(writer, batches)

RunWriter.commit = slow
main()
"""


class OtherRunner(SyntheticRunner):
    """Is of another model."""

    @property
    def card(self) -> ModelCard:
        return super().card.model_copy(update={"model": "another"}).signed()


class FailingRunner(SyntheticRunner):
    """Is always out of memory."""

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        del prompts, columns, dtype
        raise EngineError("engine_oom", "out of memory", status=500, retryable=True)


class SlowRunner(SyntheticRunner):
    """Takes a fifth of a second per batch."""

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        time.sleep(0.2)
        return super().run(prompts, columns, dtype)


def test_the_first_ctrl_c_commits_and_a_second_one_ends_at_once_and_harms_nothing(
    folder: Path, start_server: StartServer
) -> None:
    with start_server(lambda: BatchedEngine(SlowRunner(), max_batch_tokens=1), max_stimuli=2) as url:
        command = [sys.executable, "-c", SLOW_COMMIT, "collect", "words.csv", "--out", "run", "--server", url]
        with subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            deadline = time.monotonic() + 60
            # Two requests of two stimuli are in flight; a third is only sent once one answer was taken.
            while "stratoscope_stimuli_total 8.0" not in httpx2.get(f"{url}/metrics").text:
                assert process.poll() is None
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            assert process.stdout.readline() == "committing\n"
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == exits.INTERRUPTED
    assert len(Run.open(folder / "run").missing) == N
    assert stratoscope("verify", "run", cwd=folder).returncode == exits.OK
