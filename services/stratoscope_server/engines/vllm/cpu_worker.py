"""The capturing worker on a CPU."""

import os
from pathlib import Path

import torch
from vllm.distributed import get_world_group
from vllm.v1.worker.cpu_worker import CPUWorker

from stratoscope_server.engines.vllm.worker import CaptureWorker


class CpuCaptureWorker(CaptureWorker, CPUWorker):
    """vLLM's CPU worker, capturing."""

    def init_device(self) -> None:
        """Set up communication, then take the names off the shared memory that vLLM's ranks use for it.

        All ranks have it open by then, and go on using it; without a name it cannot outlive them if they are killed.
        """
        super().init_device()
        torch.distributed.barrier(get_world_group().cpu_group)
        names = f"{os.environ['VLLM_DIST_IDENT']}-"
        for path in Path("/dev/shm").iterdir():  # noqa: S108 - where POSIX shared memory has its names on Linux
            if path.name.startswith(names) and "-cpushm" in path.name:
                path.unlink(missing_ok=True)
