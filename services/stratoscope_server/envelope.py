"""What is refused about a request before any of our routes sees it: too long an address, too many headers."""

from starlette.types import ASGIApp, Receive, Scope, Send

from stratoscope_server import problems
from stratoscope_server.problems import ApiError
from stratoscope_server.settings import Settings


class Envelope:
    """ASGI middleware that holds the request line and the headers against their limits.

    The HTTP parser has a limit of its own, but only on what has not arrived whole.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 414 or 431."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await problems.body(scope, problem)(scope, receive, send)

    def _problem(self, scope: Scope) -> ApiError | None:
        settings = self._settings
        n_url = len(scope["raw_path"]) + len(scope["query_string"])
        if n_url > settings.max_url_bytes:
            return _too_large(414, "url_too_long", "the address", n_url, settings.max_url_bytes, "bytes")
        headers = scope["headers"]
        if len(headers) > settings.max_headers:
            return _too_large(431, "too_many_headers", "the request", len(headers), settings.max_headers, "headers")
        n_bytes = sum(len(name) + len(value) + len(b": \r\n") for name, value in headers)
        if n_bytes > settings.max_header_bytes:
            what = "the headers"
            return _too_large(431, "headers_too_large", what, n_bytes, settings.max_header_bytes, "bytes")
        return None


def _too_large(status: int, code: str, what: str, value: int, limit: int, unit: str) -> ApiError:
    verb = "have" if what.endswith("s") and what != "the address" else "has"
    message = f"{what} {verb} {value} {unit}; at most {limit} are accepted"
    return ApiError(status, code, message, limit=limit, value=value, headers={"Connection": "close"})
