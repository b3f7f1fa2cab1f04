"""What a server counts, in Prometheus's text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stratoscope_server.admission import Admitted


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "stratoscope_requests", "Requests by route and status", ["route", "status"], registry=self._registry
        )
        self.streams = Counter(
            "stratoscope_streams", "Answers streamed, by how they ended", ["end"], registry=self._registry
        )
        self.open_streams = Gauge("stratoscope_open_streams", "Answers being streamed", registry=self._registry)
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
