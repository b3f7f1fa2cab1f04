"""Fetching one request until every stimulus has come, as a dialogue that performs no I/O.

A dialogue is a generator: it yields what is to be done, a `Call` or a `Pause`, and is sent the `Answer` of a call.
`stratoscope.client` and `stratoscope.async_client` perform the steps; everything that is decided is decided here.
"""

import hashlib
import logging
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import pyarrow as pa

from stratoscope.captures import capture_columns, most_rows, most_tokens, row_bytes, to_json
from stratoscope.errors import APIConnectionError, StratoscopeError
from stratoscope.faults import status_error, wire_error
from stratoscope.link import Link
from stratoscope.retries import RetryPolicy
from stratoscope.transport import JSON_TYPE, Answer, Call, content_type_error
from stratoscope_wire import CONTENT_TYPE, ActivationsRequest, Column, Expected, ModelCard, Stimulus, StreamCorruptError
from stratoscope_wire.compression import COMPRESSIONS_HEADER

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Pause(NamedTuple):
    """Wait before the next step."""

    seconds: float


Steps = Generator[Call | Pause, Answer | None, T]
"""A dialogue that ends with a `T`."""

FRAMING_BYTES_PER_ROW = 2048
"""Most that a row's id, selector, position and token id take."""

FRAMING_BYTES_PER_VALUE = 256
"""Most that Arrow says about one column of one batch; every row may come in a batch of its own."""

LARGEST_EXPANSION = 12
"""Unicode's normal forms make a text eleven times as long at most, in UTF-8, before a tokenizer sees it."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of a request.

    Attributes
    ----------
    request
        As it was first asked.
    batches
        Verified record batches, in the request's dtype; every stimulus in them is complete, and comes from one answer.
    missing
        Ids of the stimuli that did not come.
    error
        Why they did not; ``None`` if nothing is missing.
    n_calls
        Requests it took.
    """

    request: ActivationsRequest
    batches: list[pa.RecordBatch]
    missing: tuple[str, ...]
    error: StratoscopeError | None
    n_calls: int


def ask(call: Call, policy: RetryPolicy) -> Steps[Answer]:
    """Ask for JSON until it comes.

    Raises
    ------
    StratoscopeError
        The last failure, when it is not worth another attempt.
    """
    n_failures = 0
    while True:
        answer = yield call
        assert answer is not None
        error = answer_error(answer, JSON_TYPE) or answer.error
        if error is None:
            return answer
        n_failures += 1
        wait_s = policy.wait_s(error, n_failures)
        if wait_s is None:
            raise error
        yield _pause(wait_s, error)


def fetch(request: ActivationsRequest, card: ModelCard, policy: RetryPolicy, asker: str, link: Link) -> Steps[Fetched]:
    """Ask for activations until every stimulus has come.

    After a cut, complete stimuli are kept and only the others are asked for again: a stimulus is never put together
    from two answers. Failures that are not worth another attempt end up in the result, next to what did come.

    Parameters
    ----------
    card
        Of the model that must answer.
    asker
        See `idempotency_key`.
    link
        Decides how answers are packed where the request does not.
    """
    columns = capture_columns(request.capture, card)
    batches: list[pa.RecordBatch] = []
    remaining = request
    n_failures = n_calls = 0
    while True:
        answer = yield _activations_call(remaining, columns, card.fingerprint, asker, link)
        assert answer is not None
        n_calls += 1
        link.learn(answer.transfer, answer.headers.get(COMPRESSIONS_HEADER.lower(), ""))
        came, error = read_answer(answer)
        batches += came
        left = without(remaining, came)
        if not left:
            return Fetched(request, batches, (), None, n_calls)
        assert error is not None
        n_failures = 1 if came else n_failures + 1
        wait_s = policy.wait_s(error, n_failures)
        remaining = remaining.model_copy(update={"stimuli": left})
        if wait_s is None:
            return Fetched(request, batches, tuple(stimulus.id for stimulus in left), error, n_calls)
        yield _pause(wait_s, error)


def idempotency_key(request: ActivationsRequest, fingerprint: str, asker: str) -> str:
    """Name a request, so that a server can tell that it is already working on the very same one.

    Parameters
    ----------
    asker
        Who asks; the same question of somebody else is no repetition.

    Returns
    -------
    str
        SHA-256 over asker, model, stimuli and everything else that is asked, as 64 hex digits.
    """
    return hashlib.sha256(f"{asker} {fingerprint} ".encode() + to_json(request)).hexdigest()


def read_answer(answer: Answer) -> tuple[list[pa.RecordBatch], StratoscopeError | None]:
    """Return the batches of a stream to keep, and what is wrong with it."""
    error = answer_error(answer, CONTENT_TYPE)
    if error is not None:
        return [], error
    batches = list(answer.batches)
    if isinstance(answer.fault, StreamCorruptError):
        return [], wire_error(answer.fault, answer.headers.get("x-request-id"))
    if answer.fault is not None:
        cut = wire_error(answer.fault, answer.headers.get("x-request-id"))
        cut.__cause__ = answer.error
        return batches, cut
    if answer.error is not None:
        # Three ends must agree, and one did not; but every stimulus is proved complete without it.
        request_id = answer.headers.get("x-request-id")
        logger.warning(
            "an answer of %s was complete, but its connection broke: %s [request %s]",
            answer.url,
            answer.error,
            request_id,
            extra={"facts": {"request_id": request_id}},
        )
    return batches, None


def answer_error(answer: Answer, content_type: str) -> StratoscopeError | None:
    """Return why an answer cannot be read at all, if it cannot."""
    if answer.status == 0:
        return answer.error
    if answer.status != 200:
        return status_error(answer.status, answer.headers, bytes(answer.body), answer.url)
    # What came before a broken connection may still hold complete stimuli; what came before any other error does not.
    if answer.error is not None and not isinstance(answer.error, APIConnectionError):
        return answer.error
    return content_type_error(answer, content_type)


def without(request: ActivationsRequest, batches: list[pa.RecordBatch]) -> list[Stimulus]:
    """Return the stimuli of a request that are not in the batches."""
    came = {stimulus_id for batch in batches for stimulus_id in batch.column(0).unique().to_pylist()}
    return [stimulus for stimulus in request.stimuli if stimulus.id not in came]


def _pause(wait_s: float, error: StratoscopeError) -> Pause:
    facts = {"seconds": round(wait_s, 3), "error": str(error), "request_id": getattr(error, "request_id", None)}
    logger.info("trying again in %.1f s: %s", wait_s, error, extra={"facts": facts})
    return Pause(wait_s)


def _activations_call(
    request: ActivationsRequest, columns: tuple[Column, ...], fingerprint: str, asker: str, link: Link
) -> Call:
    packed = request.model_copy(update={"compression": request.compression or link.compression})
    return Call(
        "POST",
        "/v1/activations",
        to_json(packed),
        headers={"X-Fingerprint": fingerprint, "Idempotency-Key": idempotency_key(request, fingerprint, asker)},
        row_bytes=row_bytes(columns, request.dtype),
        row_framing_bytes=FRAMING_BYTES_PER_ROW + FRAMING_BYTES_PER_VALUE * len(columns),
        most_rows=sum(most_rows(request.capture, LARGEST_EXPANSION * most_tokens(s)) for s in request.stimuli),
        expected=Expected.of(packed, columns, fingerprint),
    )
