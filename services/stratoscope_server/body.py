"""Reading a request's body under a limit, and parsing it."""

import re
from typing import Final

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from stratoscope_server.problems import ApiError, invalid_request
from stratoscope_wire import ActivationsRequest
from stratoscope_wire.digest import DIGEST_HEADER, is_contradicted

MARKS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[,\[\]{}]', re.DOTALL)
"""Strings, of which one without an end goes on to the end of all, and what is between values."""


def parse_request(data: bytes, max_depth: int, max_values: int) -> ActivationsRequest:
    """Parse a body.

    Raises
    ------
    ApiError
        400 if it is not JSON in UTF-8, 413 if it has too many values, 422 if it is too deep or no such request.
    """
    _check_shape(data, max_depth, max_values)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_utf8", f"the body is not UTF-8: byte {error.start} is {error.reason}") from None
    try:
        return ActivationsRequest.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ApiError:
    if error.error_count() == 1:
        (fault,) = error.errors(include_url=False)
        if fault["type"] == "json_invalid":
            return ApiError(400, "invalid_json", f"the body is not JSON: {fault['ctx']['error']}")
    return invalid_request(error)


def _check_shape(data: bytes, max_depth: int, max_values: int) -> None:
    """Refuse what is too deep or has too many values.

    Done without parsing: a parser would build what is to be refused, and takes a hundred times a value's bytes for it.
    """
    depth, n_values = 0, 1
    for mark in MARKS.finditer(data):
        sign = data[mark.start() : mark.start() + 1]
        if sign in b"[{":
            depth += 1
        elif sign in b"]}":
            depth -= 1
        n_values += sign in b",[{"
        if depth > max_depth:
            message = f"the body has more than {max_depth} objects and arrays inside one another; a request needs 5"
            raise ApiError(422, "too_deep", message, field="body", limit=max_depth)
        if n_values > max_values:
            message = f"the body has more than {max_values} values: send fewer stimuli per request"
            raise ApiError(413, "too_many_values", message, field="body", limit=max_values)


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """Read a body.

    Raises
    ------
    ApiError
        413 as soon as it is too large, 499 if the client leaves; 400 if it is not the one that its ``Content-Digest``
        describes.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes, int(declared))
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_body_bytes:
                raise _too_large(max_body_bytes, None)
    except ClientDisconnect:
        # Nobody reads this: it is for the log and the metrics, where it must not pass for a fault of the server.
        raise ApiError(499, "client_gone", "the client left before its request had arrived") from None
    body = bytes(data)
    if is_contradicted(request.headers.get(DIGEST_HEADER, ""), body):
        message = (
            f"the body is not the one that its {DIGEST_HEADER} describes: it was damaged on the way, send it again"
        )
        raise ApiError(400, "body_damaged", message, field=DIGEST_HEADER, retryable=True)
    return body


def _too_large(limit: int, value: int | None) -> ApiError:
    size = "more than that" if value is None else f"{value}"
    message = f"a request body may have {limit} bytes, this one has {size}: send fewer stimuli per request"
    return ApiError(413, "body_too_large", message, field="body", limit=limit, value=value)
