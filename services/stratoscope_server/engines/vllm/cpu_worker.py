"""The capturing worker on a CPU."""

from vllm.v1.worker.cpu_worker import CPUWorker

from stratoscope_server.engines.vllm.worker import CaptureWorker


class CpuCaptureWorker(CaptureWorker, CPUWorker):
    """vLLM's CPU worker, capturing."""
