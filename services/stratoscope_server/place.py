"""A place in the gate: what one request holds, from the moment it is let in until it leaves."""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

if TYPE_CHECKING:
    from stratoscope_server.gate import Gate


@dataclass(eq=False, slots=True)
class Place:
    """A request inside the gate; use it as a context manager, which leaves on the way out.

    Attributes
    ----------
    key
        Name of the API key.
    token
        The request's ``Idempotency-Key``, if it has one.
    n_tokens, n_bytes
        What it costs; known from `claim` on.
    n_sent
        Bytes of activations that have left.
    is_over
        Whether the time is up in which it could be answered, since the server stops.
    """

    gate: "Gate"
    key: str
    token: str | None
    n_tokens: int = 0
    n_bytes: int = 0
    n_sent: int = 0
    is_over: bool = False
    is_running: bool = False
    _turn: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: anyio.CancelScope | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.leave(self)

    def claim(self, n_tokens: int, n_bytes: int) -> None:
        """Reserve what the request will cost, and stand in line.

        Raises
        ------
        ApiError
            429 if that is more than there is room for now.
        """
        self.gate.claim(self, n_tokens, n_bytes)

    def begin(self) -> None:
        """Take the turn."""
        self.is_running = True
        self._turn.set()

    async def turn(self, seconds: float) -> None:
        """Wait for the request's turn.

        Raises
        ------
        ApiError
            503 if it does not come in time.
        """
        with self.patience(seconds):
            await self._turn.wait()
        if self.is_over:
            raise self.gate.draining()
        if not self.is_running:
            message = f"the request waited {seconds:g} seconds for its turn; send it again later"
            raise self.gate.refusal(503, "queue_timeout", message)

    def patience(self, seconds: float) -> anyio.CancelScope:
        """Return a scope in which to wait so long; it ends at once when the time of the whole server is up."""
        self._waiting = anyio.move_on_after(0 if self.is_over else seconds)
        return self._waiting

    def end(self) -> None:
        """Let the request be given up: the time is up."""
        self.is_over = True
        if self._waiting is not None:
            self._waiting.cancel()
