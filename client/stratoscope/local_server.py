"""A server of one's own: starts `stratoscope-server` as a child process and stops it again."""

import importlib.util
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from stratoscope.client import Client
from stratoscope.errors import APIConnectionError, ConfigurationError, ServerUnavailableError
from stratoscope.retries import RetryPolicy

ADDRESS: Final = re.compile(r"running on (http://\S+)")

HOW_TO_INSTALL: Final = (
    "the server is not installed here. Install it with: pip install 'stratoscope-server[torch]', or give the address "
    "of a running one with --server"
)


def server_command(args: Sequence[str]) -> list[str]:
    """Return the command that runs the server with some flags.

    Raises
    ------
    ConfigurationError
        If the server is not installed in this environment.
    """
    if importlib.util.find_spec("stratoscope_server") is None:
        raise ConfigurationError(HOW_TO_INSTALL)
    return [sys.executable, "-m", "stratoscope_server", *args]


@contextmanager
def local_server(
    args: Sequence[str], log: Path, *, say: Callable[[str], None], start_seconds: float = 600
) -> Iterator[Client]:
    """Run a server on a free port of this machine and give a client of it.

    Parameters
    ----------
    args
        Flags of the server.
    log
        File that receives what the server prints.
    say
        Receives the lines that concern the person who waits.
    start_seconds
        How long loading the model may take.

    Raises
    ------
    ConfigurationError
        If the server is not installed, or does not come up; the message ends with the last lines of its log.
    """
    command = server_command([*args, "--host", "127.0.0.1", "--port", "0"])
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
        address: list[str] = []
        assert process.stderr is not None
        pump = threading.Thread(target=_pump, args=(process.stderr, file, address, say), daemon=True)
        pump.start()
        try:
            with _ready_client(process, address, time.monotonic() + start_seconds, log) as client:
                yield client
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
            pump.join(timeout=10)
            process.stderr.close()


def _pump(lines: IO[str], file: IO[str], address: list[str], say: Callable[[str], None]) -> None:
    for line in lines:
        file.write(line)
        file.flush()
        if found := ADDRESS.search(line):
            address.append(found.group(1))
        if line.startswith("stratoscope"):
            say(line.rstrip().partition(": ")[2])


def _ready_client(process: subprocess.Popen[str], address: list[str], deadline: float, log: Path) -> Client:
    while time.monotonic() < deadline and process.poll() is None:
        if address:
            with Client(address[0], max_retries=RetryPolicy(max_retries=0)) as probe:
                try:
                    probe.ready()
                except (ServerUnavailableError, APIConnectionError):
                    pass
                else:
                    return Client(address[0])
        time.sleep(0.2)
    state = "is not ready in time" if process.poll() is None else f"ended with code {process.returncode}"
    last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
    raise ConfigurationError(f"the server {state}; the end of {log}:\n{last}")
