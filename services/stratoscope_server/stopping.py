"""The server process: told to stop, it first lets what runs end."""

import asyncio
from types import FrameType

import uvicorn

from stratoscope_server.gate import Gate

FLUSH_SECONDS = 5
"""For the last bytes of answers that were given up, after everything else had its time."""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains before it stops.

    At the first signal the gate is closed: new requests get a 503 and ``/readyz`` says no, while the socket still
    listens, so that they can be told. It stops once nothing runs or the time is up; at a second signal, at once.

    Parameters
    ----------
    config
        As uvicorn has it.
    gate
        Where requests come in.
    drain_seconds
        For running requests to end.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, drain_seconds: float) -> None:
        super().__init__(config)
        self._gate = gate
        self._drain_seconds = drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: object = None) -> None:
        """Remember the loop in which signals are to be acted on."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second."""
        if self._loop is None or self._gate.is_draining:
            super().handle_exit(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self._drain, sig)

    def _drain(self, sig: int) -> None:
        async def drain() -> None:
            await self._gate.drain(self._drain_seconds)
            uvicorn.Server.handle_exit(self, sig, None)

        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(drain())
