"""One HTTP exchange: a call goes out, an answer comes back; whatever fails on the way is in the answer.

The only module that moves bytes. Sending and receiving exist twice, blocking and not; what is sent and what is
accepted are decided here once.
"""

import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import httpx2

from stratoscope.connection import Connection
from stratoscope.errors import CorruptAnswerError, StratoscopeError
from stratoscope.faults import NETWORK_ERRORS, network_error
from stratoscope_wire import CONTENT_TYPE
from stratoscope_wire.digest import DIGEST_HEADER, content_digest
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
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    row_bytes: int = 0
    row_framing_bytes: int = 0
    most_rows: int = 0

    @property
    def is_stream(self) -> bool:
        """Whether an Arrow stream is expected, rather than JSON."""
        return self.row_bytes > 0

    @property
    def content_headers(self) -> dict[str, str]:
        """What is said of the body: its type, and a digest by which the server knows one that was damaged."""
        if self.body is None:
            return {}
        return {"Content-Type": JSON_TYPE, DIGEST_HEADER: content_digest(self.body)}

    def cap_bytes(self, status: int, headers: Mapping[str, str]) -> int:
        """Return how many bytes of an answer are accepted, given its status and headers."""
        if status != 200 or not self.is_stream:
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
        What arrived of the body.
    error
        Why it ended early, or ``None`` if it ended as HTTP says it must.
    """

    url: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | bytearray = b""
    error: StratoscopeError | None = None


class _Receiver:
    """One exchange: what is sent, and the body that comes, of which no more is taken than was announced."""

    def __init__(self, connection: Connection, call: Call) -> None:
        self.url = connection.base_url + call.path
        self.request_id = secrets.token_hex(8)
        self._call = call
        self._accept = CONTENT_TYPE if call.is_stream else JSON_TYPE
        self._connection = connection
        self._began = time.monotonic()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._cap = 0

    @property
    def sent_headers(self) -> dict[str, str]:
        own = {"Accept": self._accept, "X-Request-Id": self.request_id, **self._call.content_headers}
        return {**self._connection.headers, **own, **self._call.headers, **trace_headers()}

    def begin(self, response: httpx2.Response) -> None:
        self._status = response.status_code
        self._headers = {name.lower(): value for name, value in response.headers.items()}
        self._cap = self._call.cap_bytes(self._status, self._headers)

    def take(self, chunk: bytes) -> None:
        if len(self._body) + len(chunk) > self._cap:
            raise CorruptAnswerError(
                f"{self.url} sent more than the {self._cap} bytes that the request and its headers allow for",
                request_id=self._headers.get("x-request-id"),
            )
        self._body += chunk

    def end(self, error: StratoscopeError | None = None) -> Answer:
        seconds = time.monotonic() - self._began
        facts = {
            "request_id": self._headers.get("x-request-id", self.request_id),
            "method": self._call.method,
            "url": self.url,
            "status": self._status,
            "bytes": len(self._body),
            "seconds": round(seconds, 3),
            "error": None if error is None else str(error),
        }
        logger.info("%s %s: %d in %.3f s", self._call.method, self.url, self._status, seconds, extra={"facts": facts})
        return Answer(self.url, self._status, self._headers, self._body, error)


def exchange(client: httpx2.Client, connection: Connection, call: Call) -> Answer:
    """Send a call and receive its answer, blocking. Raises nothing that the network can cause."""
    receiver = _Receiver(connection, call)
    try:
        with (
            span(f"{call.method} {call.path}"),
            client.stream(call.method, receiver.url, content=call.body, headers=receiver.sent_headers) as response,
        ):
            receiver.begin(response)
            for chunk in response.iter_raw():
                receiver.take(chunk)
    except NETWORK_ERRORS as error:
        return receiver.end(network_error(error, receiver.url))
    except CorruptAnswerError as error:
        return receiver.end(error)
    return receiver.end()


async def exchange_async(client: httpx2.AsyncClient, connection: Connection, call: Call) -> Answer:
    """Send a call and receive its answer. Raises nothing that the network can cause."""
    receiver = _Receiver(connection, call)
    try:
        with span(f"{call.method} {call.path}"):
            async with client.stream(
                call.method, receiver.url, content=call.body, headers=receiver.sent_headers
            ) as response:
                receiver.begin(response)
                async for chunk in response.aiter_raw():
                    receiver.take(chunk)
    except NETWORK_ERRORS as error:
        return receiver.end(network_error(error, receiver.url))
    except CorruptAnswerError as error:
        return receiver.end(error)
    return receiver.end()


def content_type_error(answer: Answer, expected: str) -> StratoscopeError | None:
    """Return what is wrong with an answer's declared form, if anything is."""
    found = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if found == expected and encoding == "identity":
        return None
    return CorruptAnswerError(
        f"{answer.url} answered with {found or 'no content type'} ({encoding}) where {expected} was due; "
        "is this the address of a Stratoscope server?",
        request_id=answer.headers.get("x-request-id"),
    )
