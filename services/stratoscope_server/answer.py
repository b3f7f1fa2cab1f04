"""The streamed answer: blocks from the engine become pieces of an Arrow stream, and a failure never looks complete."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stratoscope_server.admission import Admitted
from stratoscope_server.engines.protocol import EngineError
from stratoscope_server.metrics import Metrics
from stratoscope_wire import CONTENT_TYPE, PROTOCOL_VERSION, Block, BlockError, StreamEncoder
from stratoscope_wire.encoder import Piece
from stratoscope_wire.schema import StreamHeader

logger = logging.getLogger(__name__)

MAX_CHUNK_BYTES = 4 << 20


class ActivationsAnswer(Response):
    """Streams one admitted request.

    Parameters
    ----------
    admitted
        The request and its exact cost.
    first
        The engine's first block: it exists before the status line is sent, so that most failures get a true status.
    rest
        The engine's generator, positioned after `first`.
    """

    media_type = CONTENT_TYPE

    def __init__(self, admitted: Admitted, first: Block, rest: AsyncGenerator[Block, None], metrics: Metrics) -> None:
        plan, job = admitted.plan, admitted.job
        super().__init__(
            headers={
                "X-Expected-Stimuli": str(len(plan.stimuli)),
                "X-Expected-Bytes": str(plan.bytes),
                "X-Fingerprint": plan.fingerprint,
            }
        )
        del self.headers["content-length"]
        self._admitted = admitted
        self._first = first
        self._rest = rest
        self._metrics = metrics
        self._encoder = StreamEncoder(
            job.columns,
            StreamHeader(
                protocol=PROTOCOL_VERSION,
                fingerprint=plan.fingerprint,
                request_id=job.request_id,
                dtype=job.dtype,
                stimuli=len(plan.stimuli),
                rows=plan.n_rows,
                bytes=plan.bytes,
            ),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; stop at once when the client is gone."""
        del scope
        end = "disconnected"
        with self._metrics.open_streams.track_inprogress():
            async with aclosing(self._rest), anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
                end = await self._stream(send)
                tasks.cancel_scope.cancel()
        self._metrics.streams.labels(end=end).inc()

    async def _stream(self, send: Send) -> str:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _send_pieces(send, self._encoder.start())
        try:
            await self._send_block(send, self._first)
            async for block in self._rest:
                await self._send_block(send, block)
            last = self._encoder.finish()
        except BlockError as error:
            logger.exception("request %s: the engine delivered an invalid block", self._admitted.job.request_id)
            return await self._break_off(send, "invalid_block", str(error), retryable=False)
        except EngineError as error:
            return await self._break_off(send, error.code, str(error), retryable=error.retryable)
        except Exception:
            logger.exception("request %s failed after its first byte", self._admitted.job.request_id)
            return await self._break_off(send, "internal", "the server failed; its log has the cause", retryable=True)
        await _send_pieces(send, last)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._metrics.count_answer(self._admitted)
        return "ok"

    async def _send_block(self, send: Send, block: Block) -> None:
        for pieces in self._encoder.encode(block):
            await _send_pieces(send, pieces)

    async def _break_off(self, send: Send, code: str, message: str, *, retryable: bool) -> str:
        # The body is left without its end: uvicorn then closes the connection without the final chunk.
        await _send_pieces(send, self._encoder.fail(code, message, retryable=retryable))
        return "error"


async def _send_pieces(send: Send, pieces: list[Piece]) -> None:
    for chunk in _chunks(b"".join(pieces)):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        # After a disconnect send() returns at once and never yields; this lets the watcher cancel us.
        await asyncio.sleep(0)


def _chunks(data: bytes) -> Iterator[bytes | memoryview]:
    if len(data) <= MAX_CHUNK_BYTES:
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(view), MAX_CHUNK_BYTES):
        yield view[start : start + MAX_CHUNK_BYTES]


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
