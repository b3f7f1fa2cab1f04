"""Accepting connections on a port of its own, until it is closed."""

import socket
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Listener(ABC):
    """Hands every connection over; use it as a context manager.

    Parameters
    ----------
    backlog
        Connections that may wait to be accepted.
    """

    def __init__(self, backlog: int | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @abstractmethod
    def take(self, connection: socket.socket) -> None:
        """Do what is to be done with a connection; called on the thread that accepts."""

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.take(connection)
