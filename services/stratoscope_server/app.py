"""The HTTP routes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from stratoscope_server import problems
from stratoscope_server.admission import Admitted, admit
from stratoscope_server.answer import ActivationsAnswer
from stratoscope_server.auth import KeyRing
from stratoscope_server.body import read_request
from stratoscope_server.engines.protocol import EngineError
from stratoscope_server.metrics import Metrics
from stratoscope_server.problems import ApiError
from stratoscope_server.requests import RequestContext
from stratoscope_server.settings import Settings
from stratoscope_server.station import Station
from stratoscope_wire import CONTENT_TYPE, ActivationsRequest, ErrorBody, Limits, ModelCard, Plan, __version__

BODY_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ActivationsRequest.model_json_schema()}},
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (400, 401, 409, 413, 422, 503)}


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
    """
    metrics = Metrics(lambda: station.status)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with station.running():
            yield

    app = FastAPI(
        title="Stratoscope", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    problems.install(app)
    app.add_middleware(RequestContext, metrics=metrics)
    app.include_router(_open_routes())
    # Keys are asked for on the router, so that a new route is closed unless it is put with the open ones.
    guarded = APIRouter(dependencies=[Depends(KeyRing(settings.api_key_file))])
    _add_activations(guarded, station, settings, metrics)
    _add_descriptions(guarded, station, settings)
    _add_service_routes(guarded, station, metrics, app)
    app.include_router(guarded)
    return app


def _open_routes() -> APIRouter:
    router = APIRouter()

    @router.get("/healthz", summary="The process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    return router


def _add_activations(router: APIRouter, station: Station, settings: Settings, metrics: Metrics) -> None:
    async def admitted(request: Request) -> Admitted:
        engine = station.engine
        wanted = request.headers.get("x-fingerprint")
        if wanted not in (None, engine.card.fingerprint):
            message = f"this server has fingerprint {engine.card.fingerprint}, the request expects {wanted}"
            raise ApiError(409, "fingerprint_mismatch", message, field="X-Fingerprint")
        body = await read_request(request, settings.max_body_bytes)
        limits = settings.limits(engine.card)
        return await asyncio.to_thread(admit, body, request.state.request_id, engine, limits)

    @router.post(
        "/v1/activations",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE: {}}, "description": "an Arrow IPC stream"}, **ERRORS},
        openapi_extra=BODY_SCHEMA,
        summary="Hidden states of stimuli, as an Arrow stream",
    )
    async def activations(request: Request) -> Response:
        if request.scope["http_version"] == "1.0":
            # Without chunked encoding a cut answer ends like a whole one.
            raise ApiError(505, "http_version", "HTTP/1.0 cannot tell a cut answer from a whole one: use HTTP/1.1")
        began = time.monotonic()
        admission = await admitted(request)
        blocks = station.engine.capture(admission.job)
        try:
            first = await anext(blocks)
        except EngineError as error:
            raise problems.engine_problem(error) from error
        metrics.first_byte.observe(time.monotonic() - began)
        return ActivationsAnswer(admission, first, blocks, metrics)

    @router.post("/v1/plan", responses=ERRORS, openapi_extra=BODY_SCHEMA, summary="What a request would cost")
    async def plan(request: Request) -> Plan:
        return (await admitted(request)).plan


def _add_descriptions(router: APIRouter, station: Station, settings: Settings) -> None:
    @router.get("/v1/model", summary="The model card")
    async def model() -> ModelCard:
        return station.engine.card

    @router.get("/v1/limits", summary="Every limit in force")
    async def limits() -> Limits:
        return settings.limits(station.engine.card)


def _add_service_routes(router: APIRouter, station: Station, metrics: Metrics, app: FastAPI) -> None:
    @router.get("/readyz", summary="The model is loaded and the engine answers")
    async def readyz() -> dict[str, str]:
        await station.check_ready()
        return {"status": "ready"}

    @router.get("/metrics", summary="Prometheus metrics")
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="openapi.json", title="Stratoscope")
