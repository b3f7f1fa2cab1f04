"""The nginx of docs/deployment.md in front of a real server: TLS outside, streams whole, failures not hidden."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import numpy as np
import pyarrow as pa
import pytest
import trustme

from stratoscope import Client
from stratoscope_server.engines import synthetic
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import EngineError
from stratoscope_wire import Block
from tests.conftest import StartServer

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

KEY = "first-key-0123456789"


def documented() -> str:
    """The server block of the page, as it stands there."""
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    return str(block)


class FailsLate(synthetic.SyntheticRunner):
    """Gives one batch, and no second."""

    n_batches = 0

    def run(self, *args: object) -> Block:
        self.n_batches += 1
        if self.n_batches > 1:
            raise EngineError("broken", "the second batch fails")
        return super().run(*args)  # type: ignore[arg-type]


@pytest.fixture
def in_front(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Callable[[str], str]]:
    """Start nginx as documented in front of a server, and give its address."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "scope.pem")
    issued.private_key_pem.write_to_path(tmp_path / "scope.key")
    running: list[subprocess.Popen[bytes]] = []

    def start(url: str) -> str:
        port = free_port()
        block = documented()
        for there, here in (
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("/etc/ssl/scope.pem", str(tmp_path / "scope.pem")),
            ("/etc/ssl/scope.key", str(tmp_path / "scope.key")),
            ("http://127.0.0.1:8000", url),
        ):
            assert block.count(there) == 1, there
            block = block.replace(there, here)
        temporary = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # Else nginx would change to a user that may not enter the test's folder.
        user = "user root;\n" if os.geteuid() == 0 else ""
        config = tmp_path / "nginx.conf"
        config.write_text(
            f"{user}daemon off; pid {tmp_path}/pid; error_log {tmp_path}/errors;\nevents {{}}\n"
            f"http {{ access_log off;\n{temporary}{block} }}"
        )
        assert NGINX is not None
        running.append(subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(config)]))
        address = f"https://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx2.get(f"{address}/healthz", verify=False)
            except httpx2.ConnectError:
                assert time.monotonic() < deadline, (tmp_path / "errors").read_text()
                time.sleep(0.05)
            else:
                return address

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATOSCOPE_CA_FILE", str(tmp_path / "authority.pem"))


@pytest.mark.usefixtures("trusted")
def test_a_stream_comes_whole_through_the_documented_proxy_and_keys_are_asked_for_behind_it(
    in_front: Callable[[str], str], start_server: StartServer, key_file: Path, tmp_path: Path
) -> None:
    with start_server(api_key_file=key_file, max_batch_tokens=64) as url:
        address = in_front(url)
        assert httpx2.get(f"{address}/v1/model", verify=False).status_code == 401
        texts = [f"A church and organ number {number}" for number in range(300)]
        with Client(address, KEY) as client, Client(url, KEY) as direct:
            through, straight = (one.activations(texts, sites=["resid_post"]) for one in (client, direct))
    columns = [(through["resid_post", layer], straight["resid_post", layer]) for layer in range(12)]
    assert all(np.array_equal(one, other) for one, other in columns)
    assert sum(np.asarray(one).nbytes for one, _ in columns) > 900_000
    # With buffering, nginx would have kept the answer in this folder.
    assert list((tmp_path / "proxy").rglob("*")) == []


def test_a_failure_after_the_first_byte_is_one_behind_the_proxy_too(
    in_front: Callable[[str], str], start_server: StartServer
) -> None:
    with start_server(lambda: BatchedEngine(FailsLate(), max_batch_tokens=1)) as url:
        address = in_front(url)
        body = {"stimuli": [{"id": "s1", "text": "A"}, {"id": "s2", "text": "A church"}]}
        arrived: list[bytes] = []
        with httpx2.stream("POST", f"{address}/v1/activations", json=body, verify=False) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx2.RemoteProtocolError):
                arrived.extend(answer.iter_raw())
    stream = pa.ipc.open_stream(b"".join(arrived))
    with pytest.raises(pa.ArrowInvalid):
        stream.read_all()
