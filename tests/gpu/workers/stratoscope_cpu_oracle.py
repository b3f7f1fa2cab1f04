"""The oracle on a CPU, for a dry run; vLLM imports it by name in its own processes."""

from stratoscope_oracle import Oracle

from stratoscope_server.engines.vllm.cpu_worker import CpuCaptureWorker


class OracleWorker(Oracle, CpuCaptureWorker):
    """Captures, and writes every step down."""
