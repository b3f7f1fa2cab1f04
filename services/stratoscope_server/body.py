"""Reading a request's body under a limit, and parsing it."""

from fastapi import Request
from pydantic import ValidationError

from stratoscope_server.problems import ApiError, invalid_request
from stratoscope_wire import ActivationsRequest


async def read_request(request: Request, max_body_bytes: int) -> ActivationsRequest:
    """Read and parse a body.

    Raises
    ------
    ApiError
        413 as soon as the body is too large, 400 if it is not JSON in UTF-8, 422 if it is no such request.
    """
    return parse_request(await _read(request, max_body_bytes))


def parse_request(data: bytes) -> ActivationsRequest:
    """Parse a body; see `read_request`."""
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


async def _read(request: Request, max_body_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes, int(declared))
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_body_bytes:
            raise _too_large(max_body_bytes, None)
    return bytes(data)


def _too_large(limit: int, value: int | None) -> ApiError:
    size = "more than that" if value is None else f"{value}"
    message = f"a request body may have {limit} bytes, this one has {size}: send fewer stimuli per request"
    return ApiError(413, "body_too_large", message, field="body", limit=limit, value=value)
