"""From what the network, the server or the wire report to the errors of this package."""

import email.utils
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import httpx2
from pydantic import ValidationError

from stratoscope.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    CorruptAnswerError,
    IncompleteAnswerError,
    ModelChangedError,
    NotFoundError,
    RateLimitedError,
    ServerError,
    ServerUnavailableError,
    StratoscopeError,
    TooLargeError,
    UnprocessableRequestError,
)
from stratoscope_wire import ErrorBody, ErrorDetail, FingerprintMismatchError, RemoteStreamError, StreamError
from stratoscope_wire.errors import StreamCorruptError, WireError

STATUS_ERRORS: Final[Mapping[int, type[APIError]]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    422: UnprocessableRequestError,
    429: RateLimitedError,
    503: ServerUnavailableError,
}

RETRYABLE_STATUSES: Final = frozenset({408, 429, 502, 503, 504})
"""Statuses that say "later". A 400, 409 or another 5xx is tried again only if its body says that it is retryable."""

EXCERPT_CHARACTERS: Final = 200

NETWORK_ERRORS: Final = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, httpx2.CookieConflict)
"""Roots of everything that httpx2 raises while a request is made."""

PERMANENT_NETWORK_ERRORS: Final = (
    httpx2.UnsupportedProtocol,
    httpx2.LocalProtocolError,
    httpx2.TooManyRedirects,
    httpx2.DecodingError,
    httpx2.HTTPStatusError,
)


def network_error(error: Exception, url: str) -> APIConnectionError:
    """Translate an exception of httpx2.

    Parameters
    ----------
    error
        One of `NETWORK_ERRORS`.
    url
        Address asked, for the message.
    """
    reason = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        message = f"no server answers at {url} ({reason}); start one with 'stratoscope serve', or set another address"
    elif isinstance(error, httpx2.TimeoutException):
        message = f"{url} was silent for too long ({reason}); a larger timeout may help"
    else:
        message = f"the connection to {url} failed ({reason})"
    if isinstance(error, httpx2.TimeoutException):
        return APITimeoutError(message)
    retryable = isinstance(error, httpx2.RequestError) and not isinstance(error, PERMANENT_NETWORK_ERRORS)
    return APIConnectionError(message, retryable=retryable)


def status_error(status: int, headers: Mapping[str, str], body: bytes, url: str) -> StratoscopeError:
    """Translate an answer that is not a success.

    Parameters
    ----------
    headers
        With names in lower case.
    """
    kind = STATUS_ERRORS.get(status, ServerError if status >= 500 else APIError)
    detail = _detail(body)
    retry_after_s = retry_after(headers.get("retry-after"))
    if detail is None:
        excerpt = body[:EXCERPT_CHARACTERS].decode("utf-8", "replace").strip()
        hint = f" (redirects to {headers['location']})" if "location" in headers else ""
        return kind(
            f"{url} answered {status}{hint} without an error that a Stratoscope server would send: {excerpt!r}",
            status=status,
            request_id=headers.get("x-request-id"),
            retryable=status in RETRYABLE_STATUSES,
            retry_after_s=retry_after_s,
        )
    message = f"{detail.message} [{status} {detail.code}, request {detail.request_id}]"
    if status == 409 and detail.code == "fingerprint_mismatch":
        return ModelChangedError(message, request_id=detail.request_id)
    return kind(
        message,
        status=status,
        code=detail.code,
        request_id=detail.request_id,
        retryable=status in RETRYABLE_STATUSES or (detail.retryable and (status in (400, 409) or status >= 500)),
        retry_after_s=retry_after_s,
        stimulus=detail.stimulus,
        limit=detail.limit,
        value=detail.value,
    )


def wire_error(error: WireError, request_id: str | None) -> StratoscopeError:
    """Translate an error of the stream's decoder.

    A cut is tried again. So is a failure that the server calls retryable. A corrupt answer is not: TCP and the
    checksum would both have had to miss it, so it points to failing hardware or a bug that should be seen.
    """
    message = str(error) if request_id is None or request_id in str(error) else f"{error} [request {request_id}]"
    if isinstance(error, FingerprintMismatchError):
        return ModelChangedError(message, request_id=request_id)
    if isinstance(error, RemoteStreamError):
        return IncompleteAnswerError(message, retryable=error.retryable, request_id=request_id)
    if isinstance(error, StreamCorruptError) or not isinstance(error, StreamError):
        return CorruptAnswerError(message, request_id=request_id)
    return IncompleteAnswerError(message, retryable=True, request_id=request_id)


def retry_after(value: str | None) -> float | None:
    """Read a ``Retry-After`` header, seconds or an HTTP date, as seconds from now; ``None`` if it says nothing."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _detail(body: bytes) -> ErrorDetail | None:
    try:
        return ErrorBody.model_validate_json(body).error
    except ValidationError:
        return None
