"""The channel between the server and its workers: one local socket per worker, small notes, and the shared memory.

The socket has no name in the file system. Each side sees at once that the other is gone: the server then knows that the
engine is dead, and a worker whose server is gone ends itself.
"""

import array
import contextlib
import os
import socket
import struct
import threading
from typing import Final, Protocol

from pydantic import BaseModel, ConfigDict

_MAX_NOTE: Final = 1 << 20


class _Frame(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hello(_Frame):
    """A worker's first words.

    Attributes
    ----------
    exit, n_exits
        Its place; see `stratoscope_server.engines.vllm.layout.Place`.
    device
        What it computes on.
    """

    exit: int
    n_exits: int
    device: str


class Fault(_Frame):
    """A prompt that cannot be captured; the fields are those of `EngineError`."""

    serial: int
    code: str
    message: str
    status: int = 500


class Note(_Frame):
    """What a worker tells after a step.

    Attributes
    ----------
    written
        Serials of prompts whose rows this worker has all written. It will not touch their region again.
    released
        Serials of requests that ended in the engine. It will not touch their region again.
    faults
        Prompts given up.
    pass_prompts, pass_tokens
        Of the step, all requests in it counted; 0 in a note that is of none.
    """

    written: tuple[int, ...] = ()
    released: tuple[int, ...] = ()
    faults: tuple[Fault, ...] = ()
    pass_prompts: int = 0
    pass_tokens: int = 0


class Subscriber(Protocol):
    """Hears what workers tell."""

    def on_note(self, exit: int, note: Note) -> None:  # noqa: A002 - the word of `Place`
        """Take a note of the worker at an exit."""
        ...

    def on_gone(self, exit: int) -> None:  # noqa: A002
        """Learn that a worker is gone."""
        ...


class Listener:
    """The server's end; takes in workers from the start.

    Parameters
    ----------
    memory
        File descriptor of the shared memory, given to every worker that says hello.

    Attributes
    ----------
    workers
        Hello and process id of each worker, by its exit.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind("")  # the kernel picks a free name outside the file system
        self._socket.listen()
        self._links: list[socket.socket] = []
        self._subscriber: Subscriber | None = None
        self._closed = False
        self.workers: dict[int, tuple[Hello, int]] = {}
        threading.Thread(target=self._accept, name="channel", daemon=True).start()

    @property
    def address(self) -> str:
        """Hex form of the socket's name."""
        return bytes(self._socket.getsockname()).hex()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Pass notes on from now. The subscriber is called from threads of the channel."""
        self._subscriber = subscriber

    def unsubscribe(self) -> None:
        """Pass nothing on any more."""
        self._subscriber = None

    def close(self) -> None:
        """Stop; workers that are still there end themselves."""
        self._closed = True
        for link in [self._socket, *self._links]:
            # Unlike close, this also wakes the thread that reads from it; it fails if the other side was faster.
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            self._links.append(link)
            threading.Thread(target=self._serve, args=(link,), name="worker", daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        pid, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        first = _receive(link) if uid == os.getuid() else None
        if first is None:
            link.close()
            return
        hello = Hello.model_validate_json(first)
        self.workers[hello.exit] = (hello, pid)
        socket.send_fds(link, [b"memory"], [self._memory])
        while (frame := _receive(link)) is not None:
            if (subscriber := self._subscriber) is not None:
                subscriber.on_note(hello.exit, Note.model_validate_json(frame))
        if (subscriber := self._subscriber) is not None:
            subscriber.on_gone(hello.exit)


class WorkerLink:
    """A worker's end.

    Parameters
    ----------
    address
        The listener's.
    hello
        What to say first.

    Attributes
    ----------
    memory
        File descriptor of the shared memory.
    """

    def __init__(self, address: str, hello: Hello) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(bytes.fromhex(address))
        self._socket.send(hello.model_dump_json().encode())
        _, ancillary, _, _ = self._socket.recvmsg(16, socket.CMSG_LEN(array.array("i").itemsize))
        (_, _, data) = ancillary[0]
        self.memory = array.array("i", data[: array.array("i").itemsize])[0]

    def end_with_server(self) -> None:
        """End this process as soon as the server is gone: nobody could read what it computes."""
        threading.Thread(target=self._wait, name="channel", daemon=True).start()

    def send(self, note: Note) -> None:
        """Tell the server."""
        self._socket.send(note.model_dump_json().encode())

    def _wait(self) -> None:
        while _receive(self._socket) is not None:
            pass
        os._exit(1)


def _receive(link: socket.socket) -> bytes | None:
    try:
        return link.recv(_MAX_NOTE) or None
    except OSError:
        return None
