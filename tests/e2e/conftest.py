"""Runs the README's demo once, as a reader would, and a server over the real model."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stratoscope.local_server import local_server

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Demo:
    """What `make demo` left behind."""

    folder: Path
    stdout: str


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The outcome of ``make demo``, run from the command line."""
    folder = tmp_path_factory.mktemp("demo")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("STRATOSCOPE_", "MAKE"))}
    ended = subprocess.run(
        ["make", "--silent", "demo"],
        cwd=ROOT,
        env=environ | {"OUT": str(folder)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Demo(folder, ended.stdout)


@pytest.fixture(scope="session")
def smollm2_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a server process over SmolLM2-135M in float32."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with local_server(["--model", "smollm2-135m", "--dtype", "float32"], log, say=lambda _: None) as client:
        yield client.base_url
