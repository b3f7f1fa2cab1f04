"""The files of the deployment, read once."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"

RunCompose = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def compose_program() -> Path:
    """Docker Compose, as the development environment has it."""
    return Path(sys.executable).with_name("docker-compose")


@pytest.fixture(scope="session")
def run_compose(compose_program: Path) -> RunCompose:
    """Run the real Docker Compose, which needs no engine to read a file: ``run_compose("config")``.

    Nothing but PATH comes from this process's environment: a variable of the shell would go before one of the file.
    """

    def run(
        *arguments: str, env_file: Path = ROOT / ".env.example", environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        files = ["--file", str(COMPOSE_FILE), "--project-directory", str(ROOT), "--env-file", str(env_file)]
        environ = {"PATH": "/usr/bin:/bin", **(environ or {})}
        command = [str(compose_program), *files, *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(scope="session")
def project(run_compose: RunCompose) -> dict[str, Any]:
    """Return the compose file as Docker Compose understands it with .env.example, every profile on."""
    ended = run_compose("--profile", "*", "config", "--format", "json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return dict(json.loads(ended.stdout))


@pytest.fixture(scope="session")
def compose_file() -> dict[str, Any]:
    """Return the compose file as YAML, before anything is filled in."""
    return dict(yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def env_example() -> dict[str, str]:
    """Every variable of .env.example, those that are commented out too."""
    variables = {}
    for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines():
        name, equals, value = line.removeprefix("# ").partition("=")
        if equals and name.isupper() and " " not in name:
            variables[name] = value
    return variables
