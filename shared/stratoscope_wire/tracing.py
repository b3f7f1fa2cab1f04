"""OpenTelemetry spans, one trace across client and server: the header ``traceparent`` carries it.

Spans are made in a process that has OpenTelemetry's API loaded, and in no other: a program that traces itself gets them
unasked, another one imports nothing. The programs of this project load it if the standard variable
``OTEL_EXPORTER_OTLP_ENDPOINT`` says where to send spans.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from stratoscope_wire.version import __version__

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SCOPE_NAME: Final = "stratoscope"
FLUSH_MILLISECONDS: Final = 5000


def start_tracing(service: str, environ: Mapping[str, str]) -> str | None:
    """Send this process's spans where the environment says, if it says so.

    Parameters
    ----------
    service
        Name of the program in the traces, unless ``OTEL_SERVICE_NAME`` gives another.

    Returns
    -------
    str or None
        What to tell the user if traces are wanted and cannot be sent.
    """
    endpoint = next((name for name in ENDPOINTS if environ.get(name)), None)
    if endpoint is None:
        return None
    try:
        trace: Any = importlib.import_module("opentelemetry.trace")
        sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
        batches: Any = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources: Any = importlib.import_module("opentelemetry.sdk.resources")
    except ModuleNotFoundError as error:
        return f"{endpoint} is set, but no traces are sent: {error.name} is missing; pip install '{service}[otel]'"
    named = {"service.name": environ.get("OTEL_SERVICE_NAME", service), "service.version": __version__}
    provider = sdk.TracerProvider(resource=resources.Resource.create(named))
    provider.add_span_processor(batches.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return None


def flush_tracing() -> None:
    """Send what is left; for a program that ends without Python's own end."""
    trace = _api()
    flush = trace and getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush:
        flush(FLUSH_MILLISECONDS)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Time a piece of work as a span below the one under way; also a decorator."""
    trace = _api()
    if trace is None:
        yield
        return
    with _timed(trace, name):
        yield


@contextmanager
def answering_span(name: str, headers: Mapping[str, str]) -> Iterator[None]:
    """Time the answer to a request as a span of the trace that its headers name."""
    trace = _api()
    if trace is None:
        yield
        return
    above = importlib.import_module("opentelemetry.propagate").extract(headers)
    with _timed(trace, name, context=above, kind=trace.SpanKind.SERVER):
        yield


def trace_headers() -> dict[str, str]:
    """Return the headers with which a server's spans go on with the span under way."""
    headers: dict[str, str] = {}
    if _api() is not None:
        importlib.import_module("opentelemetry.propagate").inject(headers)
    return headers


def describe_span(facts: Mapping[str, str | int | float]) -> None:
    """Put facts on the span under way."""
    trace = _api()
    if trace is not None:
        trace.get_current_span().set_attributes({f"stratoscope.{name}": value for name, value in facts.items()})


@contextmanager
def _timed(trace: Any, name: str, **options: Any) -> Iterator[None]:  # noqa: ANN401
    # By default the message and the traceback of an error go along, and these may quote what was asked.
    quiet = {"record_exception": False, "set_status_on_exception": False}
    with trace.get_tracer(SCOPE_NAME).start_as_current_span(name, **quiet, **options) as timed:
        try:
            yield
        except Exception:
            timed.set_status(trace.StatusCode.ERROR)
            raise


def _api() -> Any:  # noqa: ANN401 - a module that need not be installed
    return sys.modules.get("opentelemetry.trace")
