"""Metrics of a real server, after real requests."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import httpx2
import pytest
from prometheus_client import parser

from stratoscope_server.engines.protocol import Engine
from stratoscope_server.engines.sizes import Sizes
from stratoscope_server.engines.synthetic import load_engine

StartServer = Callable[..., AbstractContextManager[str]]

Labels = frozenset[tuple[str, str]]


def samples(url: str) -> dict[tuple[str, Labels], float]:
    text = httpx2.get(f"{url}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(url: str, name: str, **labels: str) -> float:
    return samples(url)[name, frozenset(labels.items())]


def ask(url: str, *texts: str, status: int = 200) -> None:
    stimuli = [{"id": f"s{index}", "text": text} for index, text in enumerate(texts)]
    answer = httpx2.post(f"{url}/v1/activations", json={"stimuli": stimuli})
    assert answer.status_code == status


def test_sizes_are_counted_into_classes_by_their_upper_bound() -> None:
    sizes = Sizes()
    for size in (1, 2, 2, 3, 1_000_000):
        sizes.add(size)
    read = sizes.read()
    assert [read.at_most[bound] for bound in (1, 2, 4, 8, 131072)] == [1, 3, 4, 4, 4]
    assert (read.n_passes, read.total) == (5, 1_000_008)


def test_each_forward_pass_is_counted_with_its_prompts_and_tokens(start_server: StartServer) -> None:
    with start_server(max_batch_tokens=6) as url:
        assert value(url, "stratoscope_pass_tokens_count") == 0
        # With the start token, three texts of two tokens share a pass of six; one of five has its own.
        ask(url, "a", "b", "c", "one two three four")
        found = samples(url)
    none: Labels = frozenset()
    assert found["stratoscope_pass_prompts_count", none] == found["stratoscope_pass_tokens_count", none] == 2
    assert found["stratoscope_pass_prompts_sum", none] == 4
    assert found["stratoscope_pass_tokens_sum", none] == 11
    assert found["stratoscope_pass_prompts_bucket", frozenset({("le", "1.0")})] == 1
    assert found["stratoscope_pass_tokens_bucket", frozenset({("le", "+Inf")})] == 2


def test_the_engine_is_loading_then_ready_and_after_a_failure_neither(start_server: StartServer) -> None:
    go_on = threading.Event()

    def states(url: str) -> dict[str, float]:
        return {state: value(url, "stratoscope_engine_state", state=state) for state in ("loading", "ready", "failed")}

    def load() -> Engine:
        go_on.wait(60)
        return load_engine(None)

    def fail() -> Engine:
        raise RuntimeError("no such model")

    with start_server(load, wait=False) as url:
        assert states(url) == {"loading": 1, "ready": 0, "failed": 0}
        go_on.set()
        while httpx2.get(f"{url}/readyz").status_code != 200:
            pass
        assert states(url) == {"loading": 0, "ready": 1, "failed": 0}
    with start_server(fail, wait=False) as url:
        while states(url)["loading"]:
            pass
        assert states(url) == {"loading": 0, "ready": 0, "failed": 1}


def test_latencies_and_refusals_are_counted_by_route_and_code(start_server: StartServer) -> None:
    with start_server(max_stimuli=2) as url:
        ask(url, "a")
        ask(url, "a", "b", "c", status=422)
        httpx2.get(f"{url}/nowhere")
        assert value(url, "stratoscope_request_seconds_count", route="/v1/activations") == 2
        assert value(url, "stratoscope_request_seconds_count", route="unmatched") == 1
        assert value(url, "stratoscope_first_byte_seconds_count") == 1
        assert value(url, "stratoscope_queue_wait_seconds_count") == 1
        assert value(url, "stratoscope_refused_total", code="too_many_stimuli") == 1
        assert value(url, "stratoscope_refused_total", code="not_found") == 1
        assert 0 < value(url, "stratoscope_request_seconds_sum", route="/v1/activations") < 60


@pytest.mark.parametrize("name", ["process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"])
def test_the_process_itself_is_measured(name: str, synthetic_url: str) -> None:
    assert value(synthetic_url, name) > 0


def test_a_failure_before_the_first_byte_is_counted_and_answered_under_its_id(start_server: StartServer) -> None:
    class Broken:
        """An engine's tokenizer that fails."""

    def load() -> Engine:
        engine = load_engine(None)
        engine._runner.tokenizer = Broken()  # type: ignore[misc,assignment]
        return engine

    with start_server(load) as url:
        answer = httpx2.post(
            f"{url}/v1/activations",
            json={"stimuli": [{"id": "s1", "text": "A"}]},
            headers={"X-Request-Id": "asked-1"},
        )
        assert (answer.status_code, answer.headers["X-Request-Id"]) == (500, "asked-1")
        assert answer.json()["error"] | {"message": ""} == {
            "code": "internal",
            "message": "",
            "request_id": "asked-1",
            "retryable": False,
        }
        assert value(url, "stratoscope_requests_total", route="/v1/activations", status="500") == 1
        assert value(url, "stratoscope_refused_total", code="internal") == 1
        assert httpx2.get(f"{url}/healthz").status_code == 200
