"""Reading requests leaves nothing behind."""

import gc
import json
import tracemalloc

from stratoscope_wire import ActivationsRequest, Stimulus


def read_requests(first: int, n: int) -> None:
    for index in range(first, first + n):
        stimulus = {"id": f"stimulus-{index}", "text": f"a text of its own, number {index}"}
        body = json.dumps({"stimuli": [stimulus], "capture": {"sites": ["resid_post"], "layers": "all"}})
        assert ActivationsRequest.model_validate_json(body).stimuli[0].id == f"stimulus-{index}"
        assert Stimulus.model_validate_json(json.dumps(stimulus)).id == f"stimulus-{index}"


def test_ids_and_texts_are_not_kept_once_they_were_read() -> None:
    read_requests(0, 10)
    tracemalloc.start()
    try:
        read_requests(10, 10)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        read_requests(20, 2000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000, "not even ten bytes for each request"
