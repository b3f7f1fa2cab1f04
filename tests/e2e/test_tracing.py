"""One trace crosses client and server: two real processes send their spans to a collector of the test."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.listening import read_address


@dataclass(frozen=True)
class Span:
    """A span as the collector got it."""

    service: str
    name: str
    trace: bytes
    id: bytes
    parent: bytes
    facts: dict[str, Any]
    failed: bool


@dataclass
class Collector:
    """Where spans are sent, and what has come."""

    url: str
    spans: list[Span] = field(default_factory=list)
    received: bytes = b""

    def take(self, body: bytes) -> None:
        self.received += body
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {a.key: a.value.string_value for a in of_resource.resource.attributes}
            for span in (span for of_scope in of_resource.scope_spans for span in of_scope.spans):
                facts = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
                ids = (span.trace_id, span.span_id, span.parent_span_id)
                self.spans.append(Span(named["service.name"], span.name, *ids, facts, failed=span.status.code == 2))


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on a free port that speaks OTLP over HTTP."""
    taken = Collector("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                taken.take(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        taken.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield taken
        server.shutdown()


def environ(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("STRATOSCOPE_", "OTEL_"))}
    return kept | {"NO_PROXY": "127.0.0.1"} | more


@contextmanager
def serving(**more: str) -> Iterator[str]:
    command = [sys.executable, "-m", "stratoscope_server", "--engine", "synthetic", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ(**more)) as process:
        url, log = read_address(process)
        try:
            yield url
        finally:
            process.terminate()
            log += process.communicate(timeout=60)[1]
            assert "Traceback" not in log, log


def collect(url: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    table = folder / "words.csv"
    table.write_text("text\nA church and organ\n", encoding="utf-8")
    command = [
        Path(sys.executable).with_name("stratoscope"),
        "collect",
        table,
        "--out",
        folder / "run",
        "--server",
        url,
    ]
    return subprocess.run(
        [*map(str, command), "--layers", "3"], capture_output=True, text=True, timeout=120, check=False,
        env=environ(**more),
    )  # fmt: skip


def test_the_spans_of_a_collection_are_one_trace_over_both_sides(collector: Collector, tmp_path: Path) -> None:
    with serving(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as url:
        ended = collect(url, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        assert ended.returncode == 0, ended.stderr
    by_id = {span.id: span for span in collector.spans}
    (whole,) = [span for span in collector.spans if span.name == "collect"]
    assert whole.parent == b""
    (sent,) = [span for span in collector.spans if span.name == "POST /v1/activations"]
    (answered,) = [span for span in collector.spans if span.facts.get("stratoscope.route") == "/v1/activations"]
    assert (sent.service, answered.service) == ("stratoscope", "stratoscope-server")
    assert by_id[answered.parent] is sent
    assert [answered.facts[f"stratoscope.{name}"] for name in ("stimuli", "tokens")] == [1, 5]
    assert answered.facts["stratoscope.end"] == "ok"
    # FastAPI's own spans are not among them.
    below = {span.name for span in collector.spans if span.parent == answered.id}
    assert below == {"admit", "queue", "engine", "stream"}
    in_trace = [span for span in collector.spans if span.trace == whole.trace]
    assert {"collect", "commit", "POST /v1/activations", "answer", "engine"} <= {span.name for span in in_trace}


def test_a_request_that_fails_is_marked_and_nothing_that_it_said_is_sent(collector: Collector) -> None:
    secret = "a-very-private-sentence"
    with serving(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as url:
        body = {"stimuli": [{"id": secret, "text": secret}], "capture": {"select": [99]}}
        answer = httpx2.post(f"{url}/v1/activations?note={secret}", json=body)
        assert answer.status_code == 422
        assert secret in answer.json()["error"]["message"]
    (admitting,) = [span for span in collector.spans if span.name == "admit"]
    (answered,) = [span for span in collector.spans if span.id == admitting.parent]
    assert admitting.failed
    assert answered.facts["stratoscope.code"] == "invalid_selection"
    assert secret.encode() not in collector.received


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported_and_no_header_is_sent() -> None:
    program = (
        "import sys, stratoscope, stratoscope.cli\n"
        "from stratoscope_wire.tracing import span, start_tracing, trace_headers\n"
        "assert start_tracing('stratoscope', {}) is None\n"
        "with span('work'): assert trace_headers() == {}\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
        # FastAPI imports the API itself, which by itself does nothing.
        "import stratoscope_server.__main__\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])\n"
        "print(trace_headers())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ())
    assert ended.stdout.split("\n") == ["[]", "{}", ""]


def test_an_endpoint_without_the_packages_is_said_and_costs_nothing_else() -> None:
    program = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk'] = None\n"
        "from stratoscope_wire.tracing import span, start_tracing\n"
        "print(start_tracing('stratoscope', {'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:1'}))\n"
        "with span('work'): pass\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ())
    assert "no traces are sent: opentelemetry.sdk" in ended.stdout
    assert "pip install 'stratoscope[otel]'" in ended.stdout


def test_a_collector_that_is_gone_does_not_disturb_a_collection(free_port: Callable[[], int], tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with serving(OTEL_EXPORTER_OTLP_ENDPOINT=nowhere) as url:
        ended = collect(url, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=nowhere, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert ended.returncode == 0, ended.stderr
    assert "1 of 1 stimuli" in ended.stdout
