"""The streamed answer: blocks from the engine become pieces of an Arrow stream, and a failure never looks complete."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stratoscope_server import problems
from stratoscope_server.admission import Admitted
from stratoscope_server.engines.protocol import Engine, EngineError
from stratoscope_server.journal import note
from stratoscope_server.metrics import Metrics
from stratoscope_server.place import Place
from stratoscope_server.problems import ApiError
from stratoscope_server.receipt import Receipt
from stratoscope_server.uncopied import STATE_KEY, Pieces
from stratoscope_wire import CONTENT_TYPE, PROTOCOL_VERSION, Block, BlockError, Limits, StreamEncoder
from stratoscope_wire.compression import COMPRESSIONS, COMPRESSIONS_HEADER
from stratoscope_wire.encoder import Piece
from stratoscope_wire.schema import StreamHeader
from stratoscope_wire.tracing import span

logger = logging.getLogger(__name__)

Blocks = AsyncGenerator[Block, None]


class ActivationsAnswer(Response):
    """Waits for an admitted request's turn and streams its answer.

    Parameters
    ----------
    admitted
        The request and its exact cost.
    place
        Its place in the gate, which is given back when the answer has ended, however it ends.
    engine
        What computes.
    limits
        The deadlines.
    """

    media_type = CONTENT_TYPE

    def __init__(self, admitted: Admitted, place: Place, engine: Engine, limits: Limits, metrics: Metrics) -> None:
        plan, job = admitted.plan, admitted.job
        super().__init__(
            headers={
                "X-Expected-Stimuli": str(len(plan.stimuli)),
                "X-Expected-Bytes": str(plan.bytes),
                "X-Fingerprint": plan.fingerprint,
                COMPRESSIONS_HEADER: ", ".join(COMPRESSIONS),
            }
        )
        del self.headers["content-length"]
        self._admitted = admitted
        self._place = place
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self._began = time.monotonic()
        self._takes_pieces = False
        self._receipt = Receipt(job.prompts)
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
            admitted.compression,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; stop at once when the client is gone, whether it waits, is computed for or is being sent to.

        Raises
        ------
        ApiError
            If the request fails before its first byte.
        """
        self._takes_pieces = bool(scope.get("state", {}).get(STATE_KEY))
        end, problem = "disconnected", None
        with self._place:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
                try:
                    end = await self._answer(send)
                except ApiError as error:
                    # A task group would wrap it, and its handler would not know it.
                    end, problem = "refused", error
                tasks.cancel_scope.cancel()
        self._metrics.streams.labels(end=end).inc()
        note(end=end)
        if problem is not None:
            raise problem

    async def _answer(self, send: Send) -> str:
        with span("queue"):
            await self._place.turn(self._limits.queue_seconds)
        self._metrics.queue_wait.observe(time.monotonic() - self._began)
        async with aclosing(self._engine.capture(self._admitted.job)) as blocks:
            # The first block exists before the status line is sent, so that most failures get a true status.
            try:
                with span("engine"):
                    first = await self._next(blocks, self._limits.first_batch_seconds, "first_batch_timeout")
            except EngineError as error:
                raise problems.engine_problem(error) from error
            self._metrics.first_byte.observe(time.monotonic() - self._began)
            with self._metrics.open_streams.track_inprogress(), span("stream"):
                return await self._stream(first, blocks, send)

    async def _stream(self, first: Block | None, blocks: Blocks, send: Send) -> str:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._send_pieces(send, self._encoder.start())
        try:
            block = first
            while block is not None:
                await self._send_block(send, block)
                block = await self._next(blocks, self._limits.between_batches_seconds, "engine_stalled")
            last = self._encoder.finish()
        except BlockError as error:
            logger.exception("the engine delivered an invalid block")
            return await self._break_off(send, "invalid_block", str(error), retryable=False)
        except EngineError as error:
            return await self._break_off(send, error.code, str(error), retryable=error.retryable)
        except Exception:
            logger.exception("the request failed after its first byte")
            return await self._break_off(send, "internal", "the server failed; its log has the cause", retryable=True)
        await self._send_pieces(send, last)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._metrics.count_answer(self._admitted)
        return "ok"

    async def _next(self, blocks: Blocks, seconds: float, code: str) -> Block | None:
        """Return the engine's next block, or ``None`` after its last, within every deadline that applies."""
        left = self._began + self._limits.request_seconds - time.monotonic()
        with self._place.patience(min(seconds, left)):
            return await anext(blocks, None)
        if self._place.is_over:
            raise EngineError("draining", "the server stops; ask again once it is back", status=503, retryable=True)
        if left <= seconds:
            late = f"the request has taken {self._limits.request_seconds:g} seconds; send fewer stimuli per request"
            raise EngineError("request_timeout", late, status=504, retryable=True)
        late = f"the engine has delivered nothing for {seconds:g} seconds"
        raise EngineError(code, late, status=504, retryable=True)

    async def _send_block(self, send: Send, block: Block) -> None:
        self._receipt.check(block)
        n_bytes = sum(values.nbytes for values in block.values)
        batches = self._encoder.encode(block)
        # Uncompressed, one is encoded while the socket still holds the last: a thread would cost more than it gives.
        if self._admitted.compression is not None:
            await self._send_ahead(send, batches)
        for pieces in batches:
            await self._send_pieces(send, pieces)
        # Returns once nothing is left of what was sent before: the engine may now use the block's memory again.
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        self._place.n_sent += n_bytes

    async def _send_ahead(self, send: Send, batches: Iterator[list[Piece]]) -> None:
        """Send batches while the next one is packed on another thread."""
        pieces = await asyncio.to_thread(next, batches, None)
        while pieces is not None:
            ahead = asyncio.ensure_future(asyncio.to_thread(next, batches, None))
            try:
                await self._send_pieces(send, pieces)
            finally:
                with anyio.CancelScope(shield=True):
                    pieces = await ahead

    async def _break_off(self, send: Send, code: str, message: str, *, retryable: bool) -> str:
        # The body is left without its end: uvicorn then closes the connection without the final chunk.
        await self._send_pieces(send, self._encoder.fail(code, message, retryable=retryable))
        return "error"

    async def _send_pieces(self, send: Send, pieces: list[Piece]) -> None:
        body = Pieces(pieces) if self._takes_pieces else b"".join(pieces)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        # After a disconnect send() returns at once and never yields; this lets the watcher cancel us.
        await asyncio.sleep(0)


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
