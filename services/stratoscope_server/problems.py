"""Errors of the HTTP side: what a request can do wrong, and the JSON body that says so."""

import difflib
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from stratoscope_server.engines.protocol import EngineError
from stratoscope_wire import ActivationsRequest, Capture, ErrorBody, ErrorDetail, Message, SpanSelector, Stimulus

MAX_LISTED_ERRORS = 10
MAX_FAULTS = 1000
"""Beyond so many, faults are counted but not described, which takes a kilobyte each."""


class ApiError(Exception):
    """A request that is answered with an error.

    Parameters
    ----------
    status
        HTTP status.
    code
        Stable name of the fault.
    message
        Names the item, the limit and the fix.
    headers
        Of the answer.
    details
        Further fields of `stratoscope_wire.ErrorDetail`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: dict[str, str] | None = None,
        **details: str | int | list[dict[str, str]] | None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers
        self.details = details


def invalid_request(error: ValidationError) -> ApiError:
    """Turn pydantic's findings into one 422 that names the fields."""
    if error.error_count() > MAX_FAULTS:
        message = f"the request has {error.error_count()} faults; a request of fewer stimuli is told what they are"
        return ApiError(422, "invalid_request", message)
    messages: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        field, message = _path(fault["loc"]), _message(fault["type"], fault["loc"], fault["msg"])
        # A value that fits no member of a union is reported once per member.
        messages[field] = f"{messages[field]}, or: {message}" if field in messages else message
    faults = [{"field": field, "message": message} for field, message in messages.items()][:MAX_LISTED_ERRORS]
    field = _most_precise(list(messages))
    return ApiError(422, "invalid_request", f"{field or 'body'}: {messages[field]}", field=field or None, errors=faults)


def engine_problem(error: EngineError) -> ApiError:
    """Turn an engine's refusal into an answer."""
    headers = {"Retry-After": "1"} if error.retryable else None
    return ApiError(error.status, error.code, str(error), headers=headers, retryable=error.retryable)


def install(app: FastAPI) -> None:
    """Make every error that the app raises on purpose answer with an `ErrorBody`; see `bug` for the others."""
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)


def body(scope: Scope, error: ApiError) -> JSONResponse:
    """Return the JSON answer to a request for an error, and note in its scope which one it was."""
    scope["state"]["error_code"] = error.code
    request_id = scope["state"]["request_id"]
    detail = ErrorDetail(code=error.code, message=error.message, request_id=request_id, **error.details)
    content = ErrorBody(error=detail).model_dump(exclude_none=True)
    return JSONResponse(content, status_code=error.status, headers=error.headers)


def bug(scope: Scope) -> JSONResponse:
    """Return the JSON answer for a failure of the server itself."""
    return body(scope, ApiError(500, "internal", "the server failed; its log has the cause under this request id"))


async def _answer_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return body(request.scope, error)


async def _answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers) if error.headers else None
    return body(request.scope, ApiError(error.status_code, code, message, headers=headers))


def _most_precise(fields: list[str]) -> str:
    return max((field for field in fields if field.startswith(fields[0])), key=len)


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        # Between a union's name and its members pydantic puts tags such as "literal['last']"; they are no field.
        if isinstance(part, str) and not part.isidentifier() and not path.endswith("spans"):
            continue
        if part in ("int", "str", "SpanSelector"):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _message(kind: str, location: Sequence[int | str], message: str) -> str:
    if kind != "extra_forbidden":
        return message.removeprefix("Value error, ")
    models: tuple[type[BaseModel], ...] = (ActivationsRequest, Stimulus, Capture, Message, SpanSelector)
    known = sorted({name for model in models for name in model.model_fields})
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return "unknown field" + (f"; did you mean {close[0]!r}?" if close else "")
