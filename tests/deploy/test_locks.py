"""The locks: every release by its hash, from the public index, and what our distributions ask for."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.dockerfiles import read

ROOT = Path(__file__).parents[2]
LOCKS = (
    "locks/build.txt",
    "locks/client.txt",
    "locks/model.txt",
    "locks/server-cpu.txt",
    "deploy/requirements-gpu.txt",
)
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)(?: ; .*?)? \\$", re.MULTILINE)

each_lock = pytest.mark.parametrize("lock", LOCKS)


def text_of(lock: str) -> str:
    return (ROOT / lock).read_text(encoding="utf-8")


def pins(lock: str) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in PIN.findall(text_of(lock))}


def project(folder: str) -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"])


@each_lock
def test_every_release_of_a_lock_is_known_by_its_hash(lock: str) -> None:
    lines = [line for line in text_of(lock).splitlines() if line and not line.startswith("#")]
    starts = [index for index, line in enumerate(lines) if not line.startswith("    --hash=sha256:")]
    assert starts
    assert len(starts) == len(pins(lock))
    for start in starts:
        assert PIN.match(lines[start] + "\n"), lines[start]
        assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", lines[start + 1])


@each_lock
def test_a_lock_names_no_index_no_address_and_no_folder(lock: str) -> None:
    content = "\n".join(line for line in text_of(lock).splitlines() if not line.startswith("#"))
    assert not re.search(r"://|--(extra-)?index|find-links|\bfile:|@ |^-e|^\.", content, re.MULTILINE)


@pytest.mark.parametrize(
    ("folder", "extras", "lock"),
    [
        ("shared", [], "locks/client.txt"),
        ("client", ["otel"], "locks/client.txt"),
        ("shared", [], "locks/server-cpu.txt"),
        ("services", ["torch", "otel"], "locks/server-cpu.txt"),
        ("services", ["vllm", "otel"], "deploy/requirements-gpu.txt"),
    ],
)
def test_a_lock_gives_our_distributions_what_they_ask_for(folder: str, extras: list[str], lock: str) -> None:
    declared = project(folder)
    wanted = [
        *declared["dependencies"],
        *(need for extra in extras for need in declared["optional-dependencies"][extra]),
    ]
    locked = pins(lock)
    assert len(wanted) >= 4
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != "stratoscope-wire":
            assert requirement.specifier.contains(locked[name], prereleases=True), requirement


@pytest.mark.parametrize("lock", ["locks/client.txt", "locks/server-cpu.txt", "locks/model.txt"])
def test_a_lock_holds_the_versions_that_were_tested(lock: str) -> None:
    tested = dict(line.split("==") for line in text_of("constraints.txt").splitlines() if "==" in line)
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    both = tested.keys() & pins(lock).keys()
    # The rest is for other systems than the tests run on.
    assert pins(lock).keys() - both <= {"colorama", "httpx2-jsfetch", "setuptools"}
    assert {name: pins(lock)[name].removesuffix("+cpu") for name in both} == {name: tested[name] for name in both}


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_an_image_installs_nothing_from_an_index_without_its_hash(name: str) -> None:
    installs = [
        words
        for step in read(name)
        if step.word == "RUN"
        for words in re.findall(r"pip install (.*?)(?= &&|$)", step.rest)
    ]
    assert len(installs) >= 3
    for words in installs:
        assert "--require-hashes" in words or words.rstrip().endswith("--no-deps /wheels/*.whl"), words


@contextmanager
def database(faulty: dict[str, str]) -> Iterator[str]:
    """A database of known faults that answers as OSV does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["package"]["name"]
            known = faulty.get(name) == asked["version"]
            package = {"name": name, "ecosystem": "PyPI"}
            fault = {"id": "GHSA-test", "summary": "planted", "affected": [{"package": package}]}
            body = json.dumps({"vulns": [fault]} if known else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def audit(url: str, **more: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"AUDIT_OSV_URL": url, "NO_PROXY": "127.0.0.1"} | more
    command = [sys.executable, str(ROOT / "locks" / "audit.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environ)


def test_an_audit_without_findings_says_how_many_locks_it_audited() -> None:
    with database({"jinja2": "2.4.1"}) as url:
        ended = audit(url)
    assert (ended.returncode, ended.stdout) == (0, f"audited {len(LOCKS)} locks: 0 known faults\n"), ended.stderr


def test_an_audit_fails_on_a_known_fault_and_names_the_lock() -> None:
    with database({"jinja2": "2.4.1", "xxhash": pins("locks/client.txt")["xxhash"]}) as url:
        ended = audit(url, AUDIT_OFFLINE="warn")
    assert ended.returncode == 1
    assert "locks/client.txt: xxhash " in ended.stdout
    assert "locks/server-cpu.txt: xxhash " in ended.stdout


def test_a_database_that_is_not_reached_or_knows_nothing_is_no_audit(free_port: Any) -> None:
    with database({}) as silent:
        for url, words in (
            (silent, "knows of no fault in jinja2==2.4.1"),
            (f"http://127.0.0.1:{free_port()}", "refused"),
        ):
            ended = audit(url)
            assert ended.returncode == 3
            assert ended.stderr.startswith("NOT AUDITED: ")
            assert words in ended.stderr
            assert audit(url, AUDIT_OFFLINE="warn").returncode == 0
