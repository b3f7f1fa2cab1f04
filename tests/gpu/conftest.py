"""The vLLM engine on a GPU, on random-weight models of the shape of real ones. One command, no network::

    python -m pytest tests/gpu

Where there is no GPU or no vLLM everything is skipped, with the reason. Two variables change what runs:

``GPU_TESTS_VLLM=0.26.0``
    Accept this version of vLLM too, which the engine otherwise refuses: its version guard has an override for these
    tests alone.
``GPU_TESTS_ON_CPU=1``
    Dry run: a tiny model, on a CPU build of vLLM.

CUDA graphs are off throughout, as they are in production: the taps are Python hooks, which need ``enforce_eager``.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DRY_RUN = os.environ.get("GPU_TESTS_ON_CPU") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RING_BYTES = 1 << 28 if DRY_RUN else 6 << 30


def missing() -> str | None:
    """Return why nothing can run here, if nothing can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed in this environment"
    if DEVICE == "cpu" and not DRY_RUN:
        return "torch sees no GPU (GPU_TESTS_ON_CPU=1 tries the tests out on a tiny model)"
    return None


@pytest.fixture(scope="session", autouse=True)
def _needs_gpu() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture
def needs_ranks() -> Callable[[int], None]:
    """Skip a test that needs more GPUs, or CPUs in a dry run, than there are."""

    def check(n_ranks: int) -> None:
        found = torch.cuda.device_count() if DEVICE == "cuda" else len(os.sched_getaffinity(0))
        if found < n_ranks:
            pytest.skip(f"tensor parallelism of {n_ranks} needs as many devices; this machine has {found}")

    return check


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the checkpoint of a shape, made once."""
    from enginebench.shapes import provide

    root = tmp_path_factory.mktemp("shapes")
    return lambda shape: provide("tiny" if DRY_RUN else shape, root, DEVICE)


@pytest.fixture(scope="session")
def start_engine() -> Callable[..., AbstractContextManager[Any]]:
    """Start an engine in bfloat16, 256 tokens a step."""
    from tests.server.vllm_engine.conftest import run_engine

    sys.path.append(str(Path(__file__).parent / "workers"))  # child processes get this process's path with them
    chosen = {
        "dtype": "bfloat16",
        "max_batch_tokens": 256,
        "max_tokens_per_text": 2048,
        "ring_bytes": RING_BYTES,
        "gpu_memory_utilization": 0.5,
        "stall_seconds": 300.0,
        "unproved_vllm": os.environ.get("GPU_TESTS_VLLM"),
    }

    @contextmanager
    def start(folder: Path, **options: Any) -> Iterator[Any]:
        with run_engine(folder, **{**chosen, **options}) as running:
            yield running

    return start


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Texts of a few tokens and of more than a step's."""
    from enginebench.workload import Shape

    return Shape(6, 3, 400).texts(1)


@pytest.fixture(scope="session")
def reference() -> Callable[[Path, list[Any]], list[dict[str, np.ndarray]]]:
    """Hugging Face's states of prompts in float32, on the device; the model is gone when they are there."""
    import transformers

    from tests.server.conftest import reference_states

    def states(folder: Path, prompts: list[Any]) -> list[dict[str, np.ndarray]]:
        options = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
        torch.backends.cuda.matmul.allow_tf32 = False
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        model.eval().to(DEVICE)
        with torch.device(DEVICE):
            found = [reference_states(model, prompt.token_ids) for prompt in prompts]
        del model
        torch.cuda.empty_cache()
        return found

    return states
