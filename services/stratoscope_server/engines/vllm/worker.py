"""The worker: vLLM's own, which also captures. One per rank; `cpu_worker` and `gpu_worker` name the two kinds."""

import hashlib
from pathlib import Path
from typing import Any, Final

import torch
from vllm.distributed import get_tp_group

from stratoscope_server.engines.vllm.channel import Hello, WorkerLink
from stratoscope_server.engines.vllm.delivery import Courier
from stratoscope_server.engines.vllm.layout import Place
from stratoscope_server.engines.vllm.recorder import Recorder
from stratoscope_server.engines.vllm.runner_v1 import check_runner, listen, on_forward_end
from stratoscope_server.engines.vllm.staging import Staging
from stratoscope_server.engines.vllm.taps import FAMILIES, attach
from stratoscope_wire import ModelCard
from stratoscope_wire.sites import SITES

CONFIG_KEY: Final = "stratoscope"
"""Key of our settings in vLLM's ``additional_config``."""


def host_key() -> int:
    """Return a number that is the same for all processes that can share memory, and differs between hosts."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return int.from_bytes(hashlib.sha256(boot).digest()[:7], "little")


class CaptureWorker:
    """Comes before one of vLLM's workers in a class's bases, and captures what it computes."""

    model_runner: Any
    vllm_config: Any
    device: torch.device
    recorder: Recorder

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load the model, then attach the capture, so that vLLM's memory profile includes it."""
        super().load_model(load_dummy_weights=load_dummy_weights)  # type: ignore[misc]
        self.attach_capture()

    def attach_capture(self) -> int:
        """Attach taps, buffers and courier; return the bytes set aside on the device."""
        settings = self.vllm_config.additional_config[CONFIG_KEY]
        card = ModelCard.model_validate_json(settings["card"])
        columns = card.columns(list(SITES))
        runner = check_runner(self.model_runner)
        place = self.find_place(int(settings["host_key"]))
        max_tokens = self.vllm_config.scheduler_config.max_num_batched_tokens
        staging = Staging(columns, place, max_tokens, self.vllm_config.model_config.dtype, self.device)
        courier = None
        if place.exit is not None:
            hello = Hello(exit=place.exit, n_exits=place.n_exits, device=_name(self.device))
            link = WorkerLink(settings["address"], hello)
            link.end_with_server()
            courier = Courier(link, columns, place, staging)
        self.recorder = recorder = Recorder(runner, columns, place, staging, courier)
        attach(runner.model, FAMILIES[settings["family"]], card.n_layers, recorder.on_states)
        on_forward_end(runner, recorder.on_forward_end)
        listen(runner, recorder)
        return staging.device_bytes

    def find_place(self, server_host: int) -> Place:
        """Find out which ranks share a host with the server."""
        group = get_tp_group()
        mine = torch.tensor([self.host_key()], dtype=torch.int64)
        keys = [torch.zeros_like(mine) for _ in range(group.world_size)]
        torch.distributed.all_gather(keys, mine, group=group.cpu_group)
        exits = [rank for rank, key in enumerate(keys) if int(key) == server_host]
        rank = group.rank_in_group
        return Place(rank, group.world_size, exits.index(rank) if rank in exits else None, len(exits))

    def host_key(self) -> int:
        """Return this worker's `host_key`."""
        return host_key()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
