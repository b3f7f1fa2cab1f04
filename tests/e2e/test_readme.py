"""Every code block of the README is run, in its order, in one folder."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


def run_block(language: str, code: str, folder: Path) -> str:
    commands = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-W", "error", "-c"]}
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(
        [*commands[language], code], cwd=folder, env=environ, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, f"{code}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def test_the_readme_has_the_blocks_that_the_tests_below_run() -> None:
    assert [language for language, _ in BLOCKS] == ["bash", "bash", "bash", "python", "bash", "python"]
    assert README.count("```") == 2 * len(BLOCKS)


def test_make_demo_and_make_test_are_the_two_commands(demo: object) -> None:
    """`make demo` is run by the fixture; `make test` is what runs this, so here it is only shown what it would do."""
    assert demo is not None
    assert BLOCKS[0][1].splitlines() == ["make demo", "make test"]
    planned = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m pytest" in planned


def test_the_command_that_serves_a_model_serves_it(folder: Path, free_port: Callable[[], int]) -> None:
    (line,) = BLOCKS[1][1].splitlines()
    port = free_port()
    assert line.endswith("--port 8000")
    ask = f"until curl --silent --fail http://127.0.0.1:{port}/readyz; do kill -0 $server; sleep 0.3; done"
    served = line.replace("8000", str(port))
    out = run_block("bash", f"{served} 2> serve.log & server=$!; trap 'kill $server' EXIT; {ask}", folder)
    assert out == '{"status":"ready"}'


@pytest.mark.parametrize("index", range(2, len(BLOCKS)), ids=lambda index: f"block {index}")
def test_a_code_block_runs_against_a_real_server(index: int, folder: Path, smollm2_url: str) -> None:
    language, code = BLOCKS[index]
    out = run_block(language, code.replace(ADDRESS, smollm2_url), folder)
    if index == 2:
        values = [float(value) for value in out.strip().strip("[]").split(",")]
        assert len(values) == 3
    if index == 4:
        assert "356 of 356 stimuli" in out
        assert (folder / "runs/relation/report.html").stat().st_size > 10_000
        assert (folder / "relation.parquet").stat().st_size > 10_000
    if index == 5:
        assert "balanced_accuracy" in out
