"""What a server counts, in Prometheus's text format."""

from collections.abc import Callable, Iterator
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stratoscope_server.admission import Admitted
from stratoscope_server.engines.protocol import EngineStatus
from stratoscope_server.engines.sizes import Distribution
from stratoscope_server.gate import Gate
from stratoscope_server.station import EngineState

SECONDS: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
)
"""Classes of the latencies: from a health check to the longest request there may be."""


class Metrics:
    """Counters of one server, in a registry of their own.

    Parameters
    ----------
    status
        Tells what can be measured of the engine; ``None`` while there is none that answers.
    state
        Tells where the engine is between loading and its end.
    gate
        Tells who runs and who waits.
    """

    def __init__(self, status: Callable[[], EngineStatus | None], state: Callable[[], EngineState], gate: Gate) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(status, state))
        self._registry.register(_GateCollector(gate))
        # Memory, file descriptors and processor time of this process.
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "stratoscope_requests", "Requests by route and status", ["route", "status"], registry=self._registry
        )
        self.streams = Counter(
            "stratoscope_streams", "Answers streamed, by how they ended", ["end"], registry=self._registry
        )
        self.open_streams = Gauge("stratoscope_open_streams", "Answers being streamed", registry=self._registry)
        self.queue_wait = Histogram(
            "stratoscope_queue_wait_seconds",
            "Time from a request's admission to its turn",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.refused = Counter(
            "stratoscope_refused", "Requests answered with an error, by its code", ["code"], registry=self._registry
        )
        self.first_byte = Histogram(
            "stratoscope_first_byte_seconds",
            "Time from a request's arrival to its first byte",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "stratoscope_request_seconds",
            "Time from a request's arrival to the end of its answer, by route",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
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

    def __init__(self, status: Callable[[], EngineStatus | None], state: Callable[[], EngineState]) -> None:
        self._status = status
        self._state = state

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily("stratoscope_engine_up", "Whether the engine answers", float(status is not None))
        yield _states(self._state())
        if status is None:
            return
        yield GaugeMetricFamily("stratoscope_engine_requests", "Prompts in the engine", status.requests)
        yield GaugeMetricFamily("stratoscope_ring_bytes", "Memory in which rows wait", status.ring_bytes)
        yield GaugeMetricFamily("stratoscope_ring_used_bytes", "Of it in use", status.ring_used_bytes)
        yield CounterMetricFamily(
            "stratoscope_ring_wait_seconds", "Time that prompts waited for room in it", status.ring_wait_seconds
        )
        yield from _sizes("stratoscope_pass_prompts", "Prompts per forward pass of the model", status.pass_prompts)
        yield from _sizes("stratoscope_pass_tokens", "Tokens per forward pass of the model", status.pass_tokens)


def _states(state: EngineState) -> Metric:
    family = GaugeMetricFamily("stratoscope_engine_state", "1 for the state that the engine is in", labels=["state"])
    for one in get_args(EngineState):
        family.add_metric([one], float(one == state))
    return family


def _sizes(name: str, text: str, sizes: Distribution | None) -> Iterator[Metric]:
    if sizes is not None:
        buckets = [(str(float(bound)), float(count)) for bound, count in sizes.at_most.items()]
        buckets.append(("+Inf", float(sizes.n_passes)))
        yield HistogramMetricFamily(name, text, buckets=buckets, sum_value=sizes.total)
