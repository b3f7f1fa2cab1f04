"""What the app says of itself: an OpenAPI document that is true to what the routes accept and answer."""

from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, params
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST

from stratoscope_wire import CONTENT_TYPE, ActivationsRequest, ErrorBody

Responses = dict[int | str, dict[str, Any]]

_SCHEMAS: Final = "#/components/schemas/"

REQUEST_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}{ActivationsRequest.__name__}"}}},
    }
}
"""The body is read and checked by the app itself, under a limit, so that FastAPI does not know it."""

ARROW: Final[Responses] = {200: {"content": {CONTENT_TYPE: {}}, "description": "an Arrow IPC stream"}}
PROMETHEUS: Final[Responses] = {200: {"content": {CONTENT_TYPE_LATEST: {}}, "description": "metrics as text"}}


def errors(*statuses: int) -> Responses:
    """Document statuses that are answered with an `ErrorBody`."""
    return {status: {"model": ErrorBody} for status in statuses}


def bearer(*, needed: bool) -> Sequence[params.Depends]:
    """Document that a key is asked for; whether it is known is for `stratoscope_server.auth` to say."""
    return [params.Security(HTTPBearer(auto_error=False, description="an API key"))] if needed else []


def document(app: FastAPI) -> dict[str, Any]:
    """Return the app's OpenAPI document, with the schema of the request body among its components."""
    spec = app.openapi()
    schema = ActivationsRequest.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    parts = schema.pop("$defs")
    return spec | {
        "components": spec["components"]
        | {"schemas": spec["components"]["schemas"] | parts | {ActivationsRequest.__name__: schema}}
    }
