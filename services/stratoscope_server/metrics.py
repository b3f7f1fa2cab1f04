"""What a server counts, in Prometheus's text format."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stratoscope_server.admission import Admitted
from stratoscope_server.engines.protocol import EngineStatus
from stratoscope_server.gate import Gate


class Metrics:
    """Counters of one server, in a registry of their own.

    Parameters
    ----------
    status
        Tells the state of the engine; ``None`` while there is none that answers.
    gate
        Tells who runs and who waits.
    """

    def __init__(self, status: Callable[[], EngineStatus | None], gate: Gate) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(status))
        self._registry.register(_GateCollector(gate))
        self.requests = Counter(
            "stratoscope_requests", "Requests by route and status", ["route", "status"], registry=self._registry
        )
        self.streams = Counter(
            "stratoscope_streams", "Answers streamed, by how they ended", ["end"], registry=self._registry
        )
        self.open_streams = Gauge("stratoscope_open_streams", "Answers being streamed", registry=self._registry)
        self.queue_wait = Histogram(
            "stratoscope_queue_wait_seconds", "Time from a request's admission to its turn", registry=self._registry
        )
        self.refused = Counter(
            "stratoscope_refused", "Requests answered with an error, by its code", ["code"], registry=self._registry
        )
        self.first_byte = Histogram(
            "stratoscope_first_byte_seconds", "Time from a request's arrival to its first byte", registry=self._registry
        )
        self._stimuli = Counter("stratoscope_stimuli", "Stimuli answered", registry=self._registry)
        self._tokens = Counter("stratoscope_tokens", "Tokens answered", registry=self._registry)
        self._rows = Counter("stratoscope_rows", "Rows sent", registry=self._registry)
        self._bytes = Counter("stratoscope_activation_bytes", "Bytes of activations sent", registry=self._registry)

    def count_answer(self, admitted: Admitted) -> None:
        """Count an answer that was sent to its end."""
        self._stimuli.inc(len(admitted.plan.stimuli))
        self._tokens.inc(admitted.plan.n_tokens)
        self._rows.inc(admitted.plan.n_rows)
        self._bytes.inc(admitted.plan.bytes)

    def render(self) -> bytes:
        """Return every metric as text."""
        return generate_latest(self._registry)


class _GateCollector(Collector):
    """Reads the gate when it is asked for."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        gate = self._gate
        yield GaugeMetricFamily("stratoscope_running_requests", "Requests that have their turn", gate.n_running)
        yield GaugeMetricFamily("stratoscope_queued_requests", "Requests that wait for it", gate.n_queued)
        yield GaugeMetricFamily("stratoscope_queued_tokens", "Tokens of these", gate.queued_tokens)
        yield GaugeMetricFamily("stratoscope_bytes_in_flight", "Bytes promised and not sent", gate.bytes_in_flight)


class _EngineCollector(Collector):
    """Reads the engine's state when it is asked for."""

    def __init__(self, status: Callable[[], EngineStatus | None]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily("stratoscope_engine_up", "Whether the engine answers", float(status is not None))
        if status is None:
            return
        yield GaugeMetricFamily("stratoscope_engine_requests", "Prompts in the engine", status.requests)
        yield GaugeMetricFamily("stratoscope_ring_bytes", "Memory in which rows wait", status.ring_bytes)
        yield GaugeMetricFamily("stratoscope_ring_used_bytes", "Of it in use", status.ring_used_bytes)
        yield CounterMetricFamily(
            "stratoscope_ring_wait_seconds", "Time that prompts waited for room in it", status.ring_wait_seconds
        )
