"""A server process of this benchmark, and how much memory a process has taken."""

import os
import re
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


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds now (Linux)."""
    return _status(pid, "VmRSS")


def peak_resident_bytes(pid: int) -> int:
    """Return the most memory that a process has held (Linux)."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Let the peak of a process begin anew (Linux)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    if found is None:
        raise RuntimeError(f"process {pid} does not tell its {name}; this is measured on Linux")
    return int(found[1]) << 10


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
