"""What surrounds every request: its id, its log line, its count and its span."""

import logging
import re
import secrets
import time
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stratoscope_server import problems
from stratoscope_server.journal import Entry, entry
from stratoscope_server.metrics import Metrics
from stratoscope_wire.tracing import answering_span, describe_span

logger = logging.getLogger(__name__)

GIVEN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_LOGGED_PATH: Final = 200


class RequestContext:
    """ASGI middleware: gives each request an id, sends it back, logs, counts and traces the answer."""

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
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with entry(request_id) as made, answering_span("answer", headers):
            await self._answer(scope, receive, send, made)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, made: Entry) -> None:
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = made.request_id
            await send(message)

        began = time.monotonic()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Once an answer has begun, its connection must break: only then can nobody take it for whole.
            if status:
                raise
            logger.exception("the request failed")
            await problems.bug(scope)(scope, receive, send_with_id)
        finally:
            route, seconds = _route(scope), time.monotonic() - began
            self._metrics.requests.labels(route=route, status=status or "none").inc()
            self._metrics.request_seconds.labels(route=route).observe(seconds)
            facts = {"route": route, "status": status, "seconds": round(seconds, 6), **_known(scope), **made.facts}
            if "code" in facts:
                self._metrics.refused.labels(code=facts["code"]).inc()
            describe_span(facts)
            logger.info("%s %s", scope["method"], _path(scope), extra={"fields": facts})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and GIVEN_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return secrets.token_hex(8)


def _route(scope: Scope) -> str:
    # The matched pattern, never the raw path: a metric label must not grow with what strangers ask for.
    return getattr(scope.get("route"), "path", "unmatched")


def _known(scope: Scope) -> dict[str, str]:
    noted = {"key": scope["state"].get("key"), "code": scope["state"].get("error_code")}
    return {name: value for name, value in noted.items() if value is not None}


def _path(scope: Scope) -> str:
    # As it was sent, with its escapes: once decoded, it could hold a line break and forge a line of the log.
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return ascii(raw.decode("latin-1"))[1:-1][:MAX_LOGGED_PATH]
