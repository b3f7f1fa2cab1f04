"""The capturing worker on a GPU."""

from vllm.v1.worker.gpu_worker import Worker

from stratoscope_server.engines.vllm.worker import CaptureWorker


class GpuCaptureWorker(CaptureWorker, Worker):
    """vLLM's GPU worker, capturing."""

    def attach_capture(self) -> int:
        """Attach, and count what was set aside as part of the model, so that the KV cache leaves room for it."""
        n_bytes = super().attach_capture()
        self.model_runner.model_memory_usage += n_bytes
        return n_bytes
