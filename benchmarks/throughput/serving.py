"""A server process of this benchmark."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stratoscope.client import Client
from stratoscope.errors import APIConnectionError, ServerUnavailableError

HERE: Final = Path(__file__).resolve().parent.parent
START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    pid: int


@contextmanager
def remembered() -> Iterator[Server]:
    """Run the synthetic engine whose answers are computed once, and give it when it is ready.

    Raises
    ------
    RuntimeError
        If it ends before that.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(HERE), *sys.path])
    order = [sys.executable, "-m", "throughput.remembered", "--port", str(port)]
    with subprocess.Popen(order, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process)
            yield Server(url, process.pid)
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    with Client(url, max_retries=0) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.ready()
            except (APIConnectionError, ServerUnavailableError):
                time.sleep(0.1)
            else:
                return
    raise RuntimeError(f"the server is not ready after {START_SECONDS:g} s, or ended with {process.returncode}")
