"""One HTTP exchange: a call goes out, an answer comes back; whatever fails on the way is in the answer.

The only module that moves bytes. Sending and receiving exist twice, blocking and not; what is sent and what is
accepted are decided here once.
"""

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx2
import pyarrow as pa

from stratoscope.async_direct import async_direct_body
from stratoscope.connection import Connection
from stratoscope.direct import direct_body
from stratoscope.errors import CorruptAnswerError, StratoscopeError
from stratoscope.faults import NETWORK_ERRORS, network_error
from stratoscope.link import NOTHING, Transfer
from stratoscope_wire import CONTENT_TYPE, Expected, StreamError, StreamIntake
from stratoscope_wire.digest import DIGEST_HEADER, content_digest
from stratoscope_wire.memory import MessageMemory
from stratoscope_wire.tracing import span, trace_headers

JSON_TYPE: Final = "application/json"

JSON_CAP_BYTES: Final = 64 << 20
"""Longest JSON accepted; a plan of a large request is the longest there is."""

LARGEST_CAP_BYTES: Final = 16 << 30
"""Longest stream accepted whatever a server announces; it is held in memory."""

MAX_DIGITS: Final = 20
"""Of an announced length; Python refuses to read numbers of thousands of digits."""

FRAMING_BYTES: Final = 1 << 20
"""Allowed in any stream on top of the activations, next to what each row may take."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """A request to be sent.

    Attributes
    ----------
    row_bytes, row_framing_bytes
        Of a stream: bytes of activations per row, and at most how many more its ids and framing may take.
    most_rows
        Of a stream: rows that what was asked for cannot exceed, whatever a server announces.
    expected
        Of a stream: what it is held against while it arrives.
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    row_bytes: int = 0
    row_framing_bytes: int = 0
    most_rows: int = 0
    expected: Expected | None = None

    @property
    def content_type(self) -> str:
        """What is expected: an Arrow stream or JSON."""
        return JSON_TYPE if self.expected is None else CONTENT_TYPE

    @property
    def content_headers(self) -> dict[str, str]:
        """What is said of the body: its type, and a digest by which the server knows one that was damaged."""
        if self.body is None:
            return {}
        return {"Content-Type": JSON_TYPE, DIGEST_HEADER: content_digest(self.body)}

    def cap_bytes(self, status: int, headers: Mapping[str, str]) -> int:
        """Return how many bytes of an answer are accepted, given its status and headers."""
        if status != 200 or self.expected is None:
            return JSON_CAP_BYTES
        declared = headers.get("x-expected-bytes", "")
        announced = declared.isascii() and declared.isdigit() and len(declared) < MAX_DIGITS
        n_rows = min(self.most_rows, int(declared) // self.row_bytes) if announced else self.most_rows
        return min(FRAMING_BYTES + n_rows * (self.row_bytes + self.row_framing_bytes), LARGEST_CAP_BYTES)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes
    ----------
    status
        HTTP status; 0 if there was none.
    headers
        With names in lower case.
    body
        What arrived of the body, if it is not the stream that was expected.
    error
        Why it ended early, or ``None`` if it ended as HTTP says it must.
    batches
        What arrived of the stream: batches in which every stimulus is complete and verified.
    fault
        What is wrong with the stream, if anything is; it says whether the batches may be kept.
    transfer
        Of what came of the stream while a message of it was coming: the server's own pauses are left out.
    """

    url: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | bytearray = b""
    error: StratoscopeError | None = None
    batches: Sequence[pa.RecordBatch] = ()
    fault: StreamError | None = None
    transfer: Transfer = NOTHING


class _Receiver:
    """One exchange: what is sent, and the body that comes, of which no more is taken than was announced."""

    def __init__(self, connection: Connection, call: Call, memory: MessageMemory) -> None:
        self.url = connection.base_url + call.path
        self.request_id = secrets.token_hex(8)
        self._call = call
        self._connection = connection
        self._memory = memory
        self._began = time.monotonic()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._intake: StreamIntake | None = None
        self._batches: list[pa.RecordBatch] = []
        self._n_bytes = 0
        self._cap = 0
        self._transfer = NOTHING
        self._waiting_since: float | None = None

    @property
    def sent_headers(self) -> dict[str, str]:
        own = {"Accept": self._call.content_type, "X-Request-Id": self.request_id, **self._call.content_headers}
        return {**self._connection.headers, **own, **self._call.headers, **trace_headers()}

    def begin(self, response: httpx2.Response) -> None:
        self._status = response.status_code
        self._headers = {name.lower(): value for name, value in response.headers.items()}
        self._cap = self._call.cap_bytes(self._status, self._headers)
        if self._status == 200 and self._call.expected is not None and has_content_type(self._headers, CONTENT_TYPE):
            self._intake = StreamIntake(self._call.expected, self._memory)
        self._wait()

    def take(self, chunk: bytes) -> None:
        self._came(len(chunk))
        if self._intake is None:
            self._body += chunk
            return
        # What was complete before a fault in the same chunk is kept: extend() takes one batch after the other.
        self._batches.extend(self._intake.write(chunk))
        self._wait()

    def take_direct(self, response: httpx2.Response) -> None:
        """Receive a stream into the memory where it stays, if the connection allows that."""
        body = direct_body(response, self._connection.timeout.read)
        if body is None or self._intake is None:
            return
        while n_bytes := body.read_into(self._intake.room):
            self._came(n_bytes)
            self._batches += self._intake.filled(n_bytes)
            self._wait()

    async def take_direct_async(self, response: httpx2.Response) -> None:
        """As `take_direct`."""
        body = async_direct_body(response, self._connection.timeout.read)
        if body is None or self._intake is None:
            return
        while n_bytes := await body.read_into(self._intake.room):
            self._came(n_bytes)
            self._batches += self._intake.filled(n_bytes)
            self._wait()

    def end(self, problem: Exception | None = None) -> Answer:
        """Return what came, given what ended it if it did not end by itself."""
        fault = problem if isinstance(problem, StreamError) else self._unfinished()
        error = self._error(problem)
        seconds = time.monotonic() - self._began
        facts = {
            "request_id": self._headers.get("x-request-id", self.request_id),
            "method": self._call.method,
            "url": self.url,
            "status": self._status,
            "bytes": self._n_bytes,
            "compression": None
            if self._intake is None or self._call.expected is None
            else self._call.expected.compression,
            "seconds": round(seconds, 3),
            "error": None if error is None else str(error),
        }
        logger.info("%s %s: %d in %.3f s", self._call.method, self.url, self._status, seconds, extra={"facts": facts})
        return Answer(self.url, self._status, self._headers, self._body, error, self._batches, fault, self._transfer)

    def _wait(self) -> None:
        """Begin to wait for more, if what comes next tells how fast the link is."""
        self._waiting_since = time.perf_counter() if self._intake is not None and self._intake.is_within else None

    def _came(self, n_bytes: int) -> None:
        if self._waiting_since is not None:
            self._transfer += Transfer(n_bytes, time.perf_counter() - self._waiting_since)
        self._n_bytes += n_bytes
        if self._n_bytes > self._cap:
            raise CorruptAnswerError(
                f"{self.url} sent more than the {self._cap} bytes that the request and its headers allow for",
                request_id=self._headers.get("x-request-id"),
            )

    def _unfinished(self) -> StreamError | None:
        if self._intake is None:
            return None
        try:
            self._intake.close()
        except StreamError as fault:
            return fault
        return None

    def _error(self, problem: Exception | None) -> StratoscopeError | None:
        if isinstance(problem, NETWORK_ERRORS):
            return network_error(problem, self.url)
        return problem if isinstance(problem, StratoscopeError) else None


ENDINGS: Final = (*NETWORK_ERRORS, StreamError, CorruptAnswerError)
"""What may end an exchange early."""


def exchange(client: httpx2.Client, connection: Connection, call: Call, memory: MessageMemory) -> Answer:
    """Send a call and receive its answer, blocking. Raises nothing that the network can cause."""
    receiver = _Receiver(connection, call, memory)
    try:
        with (
            span(f"{call.method} {call.path}"),
            client.stream(call.method, receiver.url, content=call.body, headers=receiver.sent_headers) as response,
        ):
            receiver.begin(response)
            receiver.take_direct(response)
            for chunk in response.iter_raw():
                receiver.take(chunk)
    except ENDINGS as problem:
        return receiver.end(problem)
    return receiver.end()


async def exchange_async(
    client: httpx2.AsyncClient, connection: Connection, call: Call, memory: MessageMemory
) -> Answer:
    """Send a call and receive its answer. Raises nothing that the network can cause."""
    receiver = _Receiver(connection, call, memory)
    try:
        with span(f"{call.method} {call.path}"):
            async with client.stream(
                call.method, receiver.url, content=call.body, headers=receiver.sent_headers
            ) as response:
                receiver.begin(response)
                await receiver.take_direct_async(response)
                async for chunk in response.aiter_raw():
                    receiver.take(chunk)
    except ENDINGS as problem:
        return receiver.end(problem)
    return receiver.end()


def has_content_type(headers: Mapping[str, str], expected: str) -> bool:
    """Tell whether an answer has the form that is due, unpacked."""
    found = headers.get("content-type", "").partition(";")[0].strip().lower()
    return found == expected and headers.get("content-encoding", "identity").strip().lower() == "identity"


def content_type_error(answer: Answer, expected: str) -> StratoscopeError | None:
    """Return what is wrong with an answer's declared form, if anything is."""
    if has_content_type(answer.headers, expected):
        return None
    found = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    return CorruptAnswerError(
        f"{answer.url} answered with {found or 'no content type'} ({encoding}) where {expected} was due; "
        "is this the address of a Stratoscope server?",
        request_id=answer.headers.get("x-request-id"),
    )
