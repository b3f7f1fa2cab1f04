"""Fixtures that start real servers on real sockets."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from stratoscope_server.__main__ import engine_loader, make_server
from stratoscope_server.app import create_app
from stratoscope_server.engines.protocol import Engine
from stratoscope_server.settings import Settings
from stratoscope_server.station import Station

StartServer = Callable[..., AbstractContextManager[str]]


@contextmanager
def running_server(load: Callable[[], Engine], settings: Settings, *, wait: bool = True) -> Iterator[str]:
    """Run the real app on uvicorn in a thread and give its base URL."""
    failed = threading.Event()
    station = Station(load, failed.set)
    server = make_server(create_app(station, settings), settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started or (wait and station._engine is None):
        assert thread.is_alive(), "the server did not start"
        assert not failed.is_set(), f"the engine did not load: {station.failure}"
        assert time.monotonic() < deadline, "the server did not start in a minute"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def start_server() -> StartServer:
    """Start a server over any engine: ``with start_server(lambda: engine, max_stimuli=3) as url``."""

    def start(
        load: Callable[[], Engine] | None = None, *, wait: bool = True, **settings: object
    ) -> AbstractContextManager[str]:
        chosen = Settings.model_validate({"engine": "synthetic", "port": 0, **settings})
        return running_server(load or engine_loader(chosen), chosen, wait=wait)

    return start


@pytest.fixture(scope="session")
def synthetic_url(start_server: StartServer) -> Iterator[str]:
    """Base URL of a server over the synthetic engine."""
    with start_server() as url:
        yield url


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with two API keys."""
    path = tmp_path / "keys"
    path.write_text("# keys of the lab\nfirst-key-0123456789\n\nsecond-key-0123456789\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Give a port that nothing listens on."""

    def find() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return int(listener.getsockname()[1])

    return find
