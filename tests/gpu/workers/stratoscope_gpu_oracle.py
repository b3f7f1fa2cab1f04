"""The oracle on a GPU; vLLM imports it by name in its own processes."""

from stratoscope_oracle import Oracle

from stratoscope_server.engines.vllm.gpu_worker import GpuCaptureWorker


class OracleWorker(Oracle, GpuCaptureWorker):
    """Captures, and writes every step down."""
