"""Server and client as processes of their own, and how much memory each takes."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx2

from throughput.resident import peak_resident_bytes, resident_bytes

START_SECONDS = 120.0
TICK_SECONDS = 0.05
MIB = 1 << 20


@contextmanager
def served(folder: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """Run a server on a free port; give its address and process id once it is ready.

    Raises
    ------
    RuntimeError
        If it is not ready in time.
    """
    log = folder / "server.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "stratoscope_server", "--port", "0", *flags]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=plain_environment())
    try:
        yield _address(process, log), process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def plain_environment() -> dict[str, str]:
    """Return this process's environment without settings of ours."""
    return {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")}


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        words = [word for word in log.read_text().split() if word.startswith("http://127.0.0.1:")]
        if words:
            url = words[0].rstrip("/,;.")
            if httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return url
        time.sleep(TICK_SECONDS)
    raise RuntimeError(f"the server was not ready: {log.read_text()[-2000:]}")


@dataclass(slots=True)
class Watch:
    """Samples the memory of a process while it lives; use it as a context manager.

    Attributes
    ----------
    samples
        Resident MiB over time.
    peak
        The most there ever was, as the kernel counts it.
    """

    pid: int
    samples: list[float] = field(default_factory=list)
    peak: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join()

    def at(self, share: float) -> float:
        """Return the median around a share of the time: allocators give back in steps."""
        middle, half = share * (len(self.samples) - 1), max(1, len(self.samples) // 20)
        around = sorted(self.samples[max(0, int(middle) - half) : int(middle) + half + 1])
        return around[len(around) // 2]

    def _work(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            try:
                self.samples.append(resident_bytes(self.pid) / MIB)
                self.peak = peak_resident_bytes(self.pid) / MIB
            except (OSError, RuntimeError):
                # It has ended.
                return


def run_watched(command: Sequence[str]) -> Watch:
    """Run a command to its end and watch it.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    process = subprocess.Popen(command, env=plain_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with Watch(process.pid) as watch:
        _, told = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {told.decode()[-2000:]}")
    return watch
