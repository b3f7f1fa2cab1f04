"""A server whose fresh and reused memory holds canaries: `python -m tests.faults.canaried FLAGS OF THE SERVER`.

Whatever leaves the server without having been written for the request would hold some of them.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from stratoscope_server.__main__ import serve
from stratoscope_server.settings import Settings
from tests.faults.ill import fall_ill

CANARY: Final = 0x7F


def plant_in_numpy() -> None:
    """Let numpy's uninitialised memory hold canaries."""
    empty, empty_like = np.empty, np.empty_like

    def canaried(make: Callable[..., Any]) -> Callable[..., Any]:
        def fill(*args: Any, **options: Any) -> Any:
            array = make(*args, **options)
            if array.dtype != object:
                array.view(np.uint8 if array.flags.c_contiguous and array.ndim else array.dtype)[...] = CANARY
            return array

        return fill

    vars(np).update(empty=canaried(empty), empty_like=canaried(empty_like))


def plant_in_torch() -> None:
    """Let torch's uninitialised memory hold canaries, and what it takes for a step of vLLM's."""
    import torch

    empty = torch.empty

    def canaried(*args: Any, **options: Any) -> Any:
        tensor = empty(*args, **options)
        if tensor.numel() and tensor.device.type == "cpu" and tensor.is_contiguous():
            tensor.view(torch.uint8).fill_(CANARY) if tensor.dim() else tensor.fill_(CANARY)
        return tensor

    vars(torch).update(empty=canaried)


def plant_in_ring() -> None:
    """Let the regions of vLLM's ring hold canaries when they are handed out."""
    from stratoscope_server.engines.vllm import arena

    arena._UNWRITTEN = CANARY


def main(arguments: list[str]) -> int:
    """Serve; with ``--leak``, values that nobody wrote."""
    leaks = "--leak" in arguments
    settings = Settings.from_args([word for word in arguments if word != "--leak"], os.environ)
    plant_in_numpy()
    if settings.engine == "torch":
        plant_in_torch()
    if settings.engine == "vllm":
        plant_in_ring()
    return serve(settings, (lambda: fall_ill(settings, "unwritten", 0, 1 << 30)) if leaks else None)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)
