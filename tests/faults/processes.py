"""The real commands as real processes: a server on a fixed port, and clients."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx2

from tests.faults.fault import ROOT, World

START_S: Final = {"synthetic": 60.0, "torch": 180.0, "vllm": 300.0}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of ours."""
    return {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")} | more


class ServerProcess:
    """A server command that can be killed and started again at the same address; use it as a context manager.

    Parameters
    ----------
    world
        Says which engine, with which interpreter, and where the log goes.
    flags
        Further flags of the command.
    program
        A module to run instead of the server command; it gets the same flags.
    first
        Flags of that program itself, before all others.
    """

    def __init__(
        self, world: World, *flags: str, program: str = "stratoscope_server", first: Sequence[str] = ()
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = world.folder / f"server-{self.port}.log"
        self._start_s = START_S[world.engine]
        self._command = [
            world.python or sys.executable, "-m", program, *first,
            "--engine", world.engine, "--port", str(self.port), *flags,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        self.wait_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    def start(self, *flags: str) -> None:
        """Start it, with more flags if wanted; return at once."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *flags], cwd=ROOT, env=environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self._start_s
        while not self._is_ready():
            assert self.process.poll() is None, f"the server ended: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, "the server was not ready in time"
            time.sleep(0.05)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(120)

    def restart(self) -> None:
        """Start it again after a kill, and wait until it answers."""
        self.start()
        self.wait_ready()

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False


def client_command(*words: str | Path) -> list[str]:
    """The command `stratoscope` of this interpreter."""
    return [str(Path(sys.executable).with_name("stratoscope")), *map(str, words)]


def start_client(words: Sequence[str | Path], log: Path, **environ: str) -> subprocess.Popen[bytes]:
    """Start a client command; its output goes to a file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            client_command(*words), env=environment(**environ), stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )


def run_client(words: Sequence[str | Path], timeout_s: float = 120, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a client command to its end."""
    return subprocess.run(
        client_command(*words), env=environment(**environ), capture_output=True, text=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip
