"""Starting and stopping the two servers."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

HERE: Final = Path(__file__).resolve().parent.parent
START_SECONDS: Final = 900


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    pid: int


@contextmanager
def running(module: str, options: Mapping[str, Any]) -> Iterator[Server]:
    """Run a module of this package as a server and give it once it is ready.

    Raises
    ------
    RuntimeError
        If it ends before that.
    """
    port = _free_port()
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    order = json.dumps({**options, "port": port})
    process = subprocess.Popen(
        [sys.executable, "-m", f"enginebench.{module}", order], env={**os.environ, "PYTHONPATH": path}
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process)
        yield Server(url, process.pid)
    finally:
        process.terminate()
        process.wait(timeout=120)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}; its log has the cause")
        try:
            if httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the server was not ready in {START_SECONDS} seconds")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
