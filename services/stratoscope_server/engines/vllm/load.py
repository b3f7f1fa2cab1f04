"""From options to a running engine."""

import os
from typing import Any, Final

import torch
from transformers import AutoConfig

from stratoscope_server.engines.pretrained.card import build_card, longest_prompt
from stratoscope_server.engines.pretrained.checkpoint import check_config
from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.pretrained.source import resolve_source
from stratoscope_server.engines.pretrained.tokenizing import FastTokenizer
from stratoscope_server.engines.protocol import Engine
from stratoscope_server.engines.vllm.arena import Arena
from stratoscope_server.engines.vllm.channel import Listener
from stratoscope_server.engines.vllm.options import (
    VllmOptions,
    check_environment,
    check_parallelism,
    describe,
    engine_arguments,
    prepare_environment,
)
from stratoscope_server.engines.vllm.taps import FAMILIES

_DTYPES: Final = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def load_engine(options: VllmOptions) -> Engine:
    """Start vLLM over a model; returns once it is loaded in every worker.

    Raises
    ------
    ModelRefusedError
        If it cannot be served, or not correctly.
    """
    version = check_environment(os.environ, options.unproved_vllm)
    check_parallelism(options)
    source = resolve_source(
        options.model, options.revision, options.cache_dir, supported=FAMILIES, sums=options.checkpoint_sha256
    )
    family = check_config(source.folder / "config.json", FAMILIES)["model_type"]
    tokenizer = FastTokenizer(source.folder)
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    text = config.get_text_config()
    dtype = _resolve_dtype(options.dtype, text)
    # vLLM counts the one token it must sample as part of the length.
    max_model_len = min(longest_prompt(text), options.max_tokens_per_text + 1)
    versions = describe(options, version)

    def card(device: str) -> Any:  # noqa: ANN401
        return build_card(
            source,
            text,
            dtype=dtype,
            tokenizer_hash=tokenizer.hash,
            engine="vllm",
            versions={**versions, "device": device},
            max_tokens=max_model_len - 1,
        )

    prepare_environment(options.tensor_parallel_size)
    # These import vLLM, which reads its environment when it is imported.
    from stratoscope_server.engines.vllm.engine import VllmEngine
    from stratoscope_server.engines.vllm.launch import launch
    from stratoscope_server.engines.vllm.worker import host_key

    arena = Arena(options.ring_bytes)
    listener = Listener(arena.fd)
    capture = {
        "address": listener.address,
        "host_key": str(host_key()),
        "card": card("").model_dump_json(),
        "family": family,
    }
    try:
        llm = launch(engine_arguments(options, dtype, source.folder, max_model_len, capture))
    except BaseException:
        listener.close()
        arena.close()
        raise
    if not listener.workers:
        llm.shutdown()
        listener.close()
        arena.close()
        raise ModelRefusedError(
            "no worker runs on this host, so that none can share memory with the server; start the server on a node "
            "that has at least one of the model's GPUs"
        )
    device = listener.workers[0][0].device
    return VllmEngine(llm, card(device), tokenizer, arena, listener, options.stall_seconds)


def _resolve_dtype(dtype: str, config: Any) -> str:  # noqa: ANN401 - transformers publishes no common type of its configs
    """Return the type to compute in; ``auto`` is the checkpoint's own, which vLLM's is not always."""
    if dtype != "auto":
        return dtype
    if config.dtype not in _DTYPES:
        raise ModelRefusedError(f"the checkpoint is {config.dtype}; ask for dtype float32 or bfloat16")
    return _DTYPES[config.dtype]
