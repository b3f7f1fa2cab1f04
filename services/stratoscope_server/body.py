"""Reading a request's body under a limit, and parsing it."""

import re
from typing import Final

from fastapi import Request
from pydantic import ValidationError

from stratoscope_server.problems import ApiError, invalid_request
from stratoscope_wire import ActivationsRequest
from stratoscope_wire.digest import DIGEST_HEADER, is_contradicted

STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
ALL_BUT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]")


def parse_request(data: bytes, max_depth: int) -> ActivationsRequest:
    """Parse a body.

    Raises
    ------
    ApiError
        400 if it is not JSON in UTF-8, 422 if it is too deep or no such request.
    """
    if is_deeper(data, max_depth):
        message = f"the body has more than {max_depth} objects and arrays inside one another; a request needs 5"
        raise ApiError(422, "too_deep", message, field="body", limit=max_depth)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_utf8", f"the body is not UTF-8: byte {error.start} is {error.reason}") from None
    try:
        return ActivationsRequest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise ApiError(400, "invalid_json", f"the body is not JSON: {first['ctx']['error']}") from None
        raise invalid_request(error) from None


def is_deeper(data: bytes, max_depth: int) -> bool:
    """Tell whether JSON has more than so many objects and arrays inside one another.

    Done without parsing, in a few passes over the bytes: a parser would build what is to be refused.
    """
    brackets = STRINGS.sub(b"", data).translate(BRACKETS).translate(None, ALL_BUT_BRACKETS)
    for _ in range(max_depth):
        # Takes away every innermost pair, and so one level of all that is left.
        brackets = brackets.replace(b"[]", b"")
    return b"[]" in brackets


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """Read a body.

    Raises
    ------
    ApiError
        413 as soon as it is too large; 400 if it is not the one that its ``Content-Digest`` describes.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes, int(declared))
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_body_bytes:
            raise _too_large(max_body_bytes, None)
    body = bytes(data)
    if is_contradicted(request.headers.get(DIGEST_HEADER, ""), body):
        message = (
            f"the body is not the one that its {DIGEST_HEADER} describes: it was damaged on the way, send it again"
        )
        raise ApiError(400, "body_damaged", message, field=DIGEST_HEADER)
    return body


def _too_large(limit: int, value: int | None) -> ApiError:
    size = "more than that" if value is None else f"{value}"
    message = f"a request body may have {limit} bytes, this one has {size}: send fewer stimuli per request"
    return ApiError(413, "body_too_large", message, field="body", limit=limit, value=value)
