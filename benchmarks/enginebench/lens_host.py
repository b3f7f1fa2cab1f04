"""Serving the baseline; run by `benchmarks/engine.py` as ``python -m enginebench.lens_host '{"model": ...}'``."""

import json
import sys
from typing import Any

import uvicorn
from transformers import AutoConfig

from stratoscope_server.engines.pretrained.source import resolve_source
from stratoscope_server.engines.pretrained.tokenizing import FastTokenizer
from stratoscope_server.engines.vllm.options import VllmOptions, engine_arguments, prepare_environment
from stratoscope_server.engines.vllm.taps import FAMILIES
from stratoscope_server.settings import Settings


def main() -> None:
    """Serve until stopped."""
    order: dict[str, Any] = json.loads(sys.argv[1])
    settings = Settings(port=order.pop("port"))
    options = VllmOptions(revision=None, cache_dir=settings.cache_dir, **order)
    folder = resolve_source(options.model, None, options.cache_dir, supported=FAMILIES).folder
    length = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().max_position_embeddings
    limit = min(length, options.max_tokens_per_text + 1)
    arguments = engine_arguments(options, options.dtype, folder, limit, {})
    # vLLM's own worker: nothing of ours is in it.
    del arguments["worker_cls"], arguments["additional_config"]
    prepare_environment(options.tensor_parallel_size)
    # These import vLLM, which reads its environment when it is imported.
    from enginebench.lens import Lens, LensExtension
    from stratoscope_server.engines.vllm.launch import launch

    extension = f"{LensExtension.__module__}.{LensExtension.__qualname__}"
    lens = Lens(launch(arguments | {"worker_extension_cls": extension}), FastTokenizer(folder))
    uvicorn.run(lens.app, host=settings.host, port=settings.port, http="h11", log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
