"""The production engine: vLLM, tensor-parallel, read inside its workers."""

from stratoscope_server.engines.vllm.load import load_engine
from stratoscope_server.engines.vllm.options import VllmOptions

__all__ = ["VllmOptions", "load_engine"]
