"""The health check of the containers, run as Docker runs it, against a real server."""

import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from stratoscope_server.engines.protocol import Engine
from stratoscope_server.engines.synthetic import load_engine
from tests.conftest import StartServer

PROGRAM = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


def check(port: object, key_file: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {
        "STRATOSCOPE_PORT": str(port),
        "STRATOSCOPE_API_KEY_FILE": str(key_file),
        # A proxy that does not exist: the container's own loopback must not be asked for through one.
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    } | more
    command = [sys.executable, "-W", "error", str(PROGRAM)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)


def test_a_server_that_is_ready_is_healthy(start_server: StartServer, key_file: Path) -> None:
    with start_server(api_key_file=key_file) as url:
        ended = check(urlsplit(url).port, key_file)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_server_that_speaks_tls_for_another_name_is_healthy(
    start_server: StartServer, key_file: Path, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    issued = trustme.CA().issue_cert("scope.example.org")
    certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    key.chmod(0o600)
    with start_server(api_key_file=key_file, tls_certificate=certificate, tls_key=key) as url:
        ended = check(urlsplit(url).port, key_file, STRATOSCOPE_TLS_CERTIFICATE=str(certificate))
        plain = check(urlsplit(url).port, key_file)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert plain.returncode == 1


def test_a_server_that_still_loads_is_not_healthy(start_server: StartServer, key_file: Path) -> None:
    loaded = threading.Event()

    def load() -> Engine:
        loaded.wait(60)
        return load_engine(64)

    with start_server(load, api_key_file=key_file, wait=False) as url:
        ended = check(urlsplit(url).port, key_file)
        loaded.set()
    assert ended.returncode == 1
    assert "not ready: HTTP 503" in ended.stderr


def test_a_server_with_other_keys_is_not_healthy(start_server: StartServer, key_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("another-key-0123456789\n", encoding="utf-8")
    with start_server(api_key_file=key_file) as url:
        ended = check(urlsplit(url).port, other)
    assert ended.returncode == 1
    assert "HTTP 401" in ended.stderr
    assert "another-key" not in ended.stderr


def test_a_server_that_is_not_there_is_not_healthy(key_file: Path, free_port: object) -> None:
    assert callable(free_port)
    ended = check(free_port(), key_file)
    assert ended.returncode == 1
    assert "not ready" in ended.stderr


@pytest.mark.parametrize("content", ["", "# only a comment\n"])
def test_a_file_without_a_key_is_not_healthy(tmp_path: Path, content: str) -> None:
    empty = tmp_path / "keys"
    empty.write_text(content, encoding="utf-8")
    assert check(1, empty).returncode == 1
