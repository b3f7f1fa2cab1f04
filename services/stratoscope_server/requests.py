"""What surrounds every request: its id, its log line and its count."""

import logging
import re
import secrets
import time
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stratoscope_server.metrics import Metrics

logger = logging.getLogger(__name__)

GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """ASGI middleware: gives each request an id, sends it back, logs and counts the answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        began = time.monotonic()
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._metrics.requests.labels(route=_route(scope), status=status or "none").inc()
            if (code := scope["state"].get("error_code")) is not None:
                self._metrics.refused.labels(code=code).inc()
            seconds = time.monotonic() - began
            logger.info("%s %s %s %d %.3fs", request_id, scope["method"], scope["path"], status, seconds)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and GIVEN_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return secrets.token_hex(8)


def _route(scope: Scope) -> str:
    # The matched pattern, never the raw path: a metric label must not grow with what strangers ask for.
    return getattr(scope.get("route"), "path", "unmatched")
