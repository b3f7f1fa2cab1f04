"""The HTTP routes."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from stratoscope_server import openapi, problems
from stratoscope_server.admission import Admitted, admit
from stratoscope_server.answer import ActivationsAnswer
from stratoscope_server.auth import KeyRing
from stratoscope_server.body import parse_request, read_body
from stratoscope_server.engines.protocol import Engine
from stratoscope_server.envelope import Envelope
from stratoscope_server.gate import Gate
from stratoscope_server.journal import note
from stratoscope_server.metrics import Metrics
from stratoscope_server.place import Place
from stratoscope_server.problems import ApiError
from stratoscope_server.requests import RequestContext
from stratoscope_server.routes import refuse_open_routes
from stratoscope_server.settings import Settings
from stratoscope_server.station import Station
from stratoscope_wire import Limits, ModelCard, Plan, __version__
from stratoscope_wire.tracing import flush_tracing, span

REFUSALS: Final = openapi.errors(400, 401, 409, 413, 414, 422, 429, 431, 503)
# Untyped: an older FastAPI knows no such argument and takes it for one of no meaning.
NO_TELEMETRY: Final[Any] = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
"""FastAPI would send spans beside ours, and messages of failures, which may quote a request."""
IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")


def create_app(station: Station, settings: Settings) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    station
        Holds the engine; it is run by the app's lifespan.
    settings
        Limits and keys.

    Raises
    ------
    ValueError
        If the key file cannot be used.
    RuntimeError
        If a route would be open that is not named open.
    """
    keys = KeyRing(settings.api_key_file)
    gate = Gate(settings, keys.n_keys)
    metrics = Metrics(lambda: station.status, lambda: station.state, gate)

    def limits_of(engine: Engine) -> Limits:
        return settings.limits(engine.card, keys.n_keys, engine.max_stimulus_bytes)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with station.running():
            yield
        await asyncio.to_thread(flush_tracing)

    app = FastAPI(
        title="Stratoscope",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry=NO_TELEMETRY,
    )
    app.state.gate = gate
    problems.install(app)
    # The one that is added last sees a request first.
    app.add_middleware(Envelope, settings=settings)
    app.add_middleware(RequestContext, metrics=metrics)
    app.include_router(_open_routes())
    # Keys are asked for on the router, so that a new route is closed unless it is put with the open ones.
    guarded = APIRouter(
        dependencies=[Depends(keys), *openapi.bearer(needed=settings.api_key_file is not None)],
        responses=openapi.errors(401, 414, 431, 503),
    )
    _add_activations(guarded, station, limits_of, gate, metrics)
    _add_descriptions(guarded, station, limits_of)
    _add_service_routes(guarded, station, gate, metrics, app)
    app.include_router(guarded)
    refuse_open_routes(app)
    return app


def _open_routes() -> APIRouter:
    router = APIRouter()

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    return router


def _add_activations(
    router: APIRouter, station: Station, limits_of: Callable[[Engine], Limits], gate: Gate, metrics: Metrics
) -> None:
    async def entered(request: Request) -> tuple[Engine, Limits, Place, bytes]:
        engine = station.engine
        limits = limits_of(engine)
        wanted = request.headers.get("x-fingerprint")
        if wanted not in (None, engine.card.fingerprint):
            message = f"this server has fingerprint {engine.card.fingerprint}, the request expects {wanted}"
            raise ApiError(409, "fingerprint_mismatch", message, field="X-Fingerprint")
        gate.check_open()
        # Read before a place is taken: a place is not to be held by whoever sends a body slowly.
        body = await read_body(request, limits.max_body_bytes)
        return engine, limits, gate.enter(request.state.key, _idempotency_key(request)), body

    @span("admit")
    def admitted(body: bytes, request_id: str, engine: Engine, limits: Limits) -> Admitted:
        body_limits = (limits.max_json_depth, limits.max_json_values)
        admission = admit(parse_request(body, *body_limits), request_id, engine, limits)
        _note_plan(admission.plan)
        return admission

    @router.post(
        "/v1/activations",
        response_class=Response,
        responses=openapi.ARROW | REFUSALS | openapi.errors(504, 505),
        openapi_extra=openapi.REQUEST_BODY,
        summary="Hidden states of stimuli, as an Arrow stream",
    )
    async def activations(request: Request) -> Response:
        if request.scope["http_version"] == "1.0":
            # Without chunked encoding a cut answer ends like a whole one.
            raise ApiError(505, "http_version", "HTTP/1.0 cannot tell a cut answer from a whole one: use HTTP/1.1")
        engine, limits, place, body = await entered(request)
        try:
            admission = await asyncio.to_thread(admitted, body, request.state.request_id, engine, limits)
            place.claim(admission.plan.n_tokens, admission.plan.bytes)
        except BaseException:
            gate.leave(place)
            raise
        return ActivationsAnswer(admission, place, engine, limits, metrics)

    @router.post(
        "/v1/plan", responses=REFUSALS, openapi_extra=openapi.REQUEST_BODY, summary="What a request would cost"
    )
    async def plan(request: Request) -> Plan:
        engine, limits, place, body = await entered(request)
        with place:
            return (await asyncio.to_thread(admitted, body, request.state.request_id, engine, limits)).plan


def _idempotency_key(request: Request) -> str | None:
    given = request.headers.get("idempotency-key")
    if given is not None and not IDEMPOTENCY_KEY.fullmatch(given):
        message = "Idempotency-Key: at most 128 visible ASCII characters are accepted"
        raise ApiError(422, "invalid_request", message, field="Idempotency-Key", limit=128, value=len(given))
    return given


def _note_plan(plan: Plan) -> None:
    note(stimuli=len(plan.stimuli), tokens=plan.n_tokens, rows=plan.n_rows, bytes=plan.bytes)


def _add_descriptions(router: APIRouter, station: Station, limits_of: Callable[[Engine], Limits]) -> None:
    @router.get("/v1/model", summary="The model card")
    async def model() -> ModelCard:
        return station.engine.card

    @router.get("/v1/limits", summary="Every limit in force")
    async def limits() -> Limits:
        return limits_of(station.engine)


def _add_service_routes(router: APIRouter, station: Station, gate: Gate, metrics: Metrics, app: FastAPI) -> None:
    @router.get("/readyz", summary="The model is loaded and the engine answers")
    async def readyz() -> dict[str, str]:
        gate.check_open()
        await station.check_ready()
        return {"status": "ready"}

    @router.get("/metrics", response_class=Response, responses=openapi.PROMETHEUS, summary="Prometheus metrics")
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/openapi.json", include_in_schema=False, summary="The routes as OpenAPI")
    async def description() -> JSONResponse:
        return JSONResponse(openapi.document(app))

    @router.get("/docs", include_in_schema=False, summary="The routes as a page")
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="openapi.json", title="Stratoscope")
