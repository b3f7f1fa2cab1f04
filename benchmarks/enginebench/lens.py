"""The baseline: vllm-lens's published way of capturing, re-created on the same vLLM, and its server.

Re-created from UKGovernmentBEIS/vllm-lens 1.2 (``_worker_ext.py``, ``_activations_plugin.py``,
``_helpers/_serialize.py``), step by step:

- a forward hook on every decoder layer, on one rank of a tensor-parallel group, that adds ``hidden + residual`` for the
  whole batch, reads ``query_start_loc`` from the attention metadata with two ``.item()`` per request and layer, and
  appends a blocking ``.cpu()`` copy per request and layer to a dictionary in the worker, kept until the request ends;
- prompts that capture never read the prefix cache;
- one ``collective_rpc("get_captured_states")`` per finished request: ``cat`` over chunks, ``stack`` over layers,
  pickle, zstd level 1, and the bytes travel back through vLLM's own channel; then one ``collective_rpc`` to clean up;
- in the server: decompress, unpickle, then ``tobytes``, zstd level 1 again, base64, one JSON body per prompt;
- the client parses the JSON, decodes base64, decompresses, and copies into an array of its own.

Left out, because nothing here asks for it: steering, generic hooks, pipeline ranks, streaming, and the opt-in binary
transport of later versions. Added: the same hook on ``self_attn`` and ``mlp``, because vllm-lens reads the residual
stream only; and a switch to leave compression out, which is faster on loopback than what is published.
"""

import asyncio
import base64
import pickle
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import torch
import zstandard
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.v1.engine.async_llm import AsyncLLM

from stratoscope_server.engines.pretrained.tokenizing import FastTokenizer
from stratoscope_server.engines.protocol import IntArray
from stratoscope_server.engines.vllm.launch import prefill, tokens

KEY: Final = "output_residual_stream"
MODULES: Final = {"resid_post": "", "attn_out": "self_attn", "mlp_out": "mlp"}
LEVEL: Final = 1

Output = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class LensExtension:
    """Methods that vLLM adds to each worker, as vllm-lens's ``HiddenStatesExtension`` has them."""

    model_runner: Any
    rank: int

    def lens_install(self, sites: list[str]) -> None:
        """Register the hooks of some sites; removes those that are there."""
        for handle in getattr(self, "_lens_handles", []):
            handle.remove()
        self._lens_handles: list[Any] = []
        self._lens_captured: dict[str, dict[str, list[torch.Tensor]]] = {}
        for layer, block in enumerate(self.model_runner.model.model.layers):
            for site in sites:
                hook = partial(self._lens_hook, f"{site}.{layer}")
                self._lens_handles.append(block.get_submodule(MODULES[site]).register_forward_hook(hook))

    def lens_get(self, request_id: str, *, compress: bool) -> bytes | None:
        """Stack, pickle and hand over what a request gave."""
        prefix = f"{request_id}-"
        for key in list(self._lens_captured):
            if key.startswith(prefix):
                parts = self._lens_captured.pop(key)
                stacked = torch.stack([torch.cat(chunks, dim=0) for chunks in parts.values()], dim=0)
                data = pickle.dumps({"activations": {"residual_stream": stacked, "columns": list(parts)}})
                return zstandard.ZstdCompressor(level=LEVEL).compress(data) if compress else data
        return None

    def lens_clear(self, request_id: str) -> None:
        """Drop what is left of a request."""
        for key in list(self._lens_captured):
            if key.startswith(f"{request_id}-"):
                del self._lens_captured[key]

    def _lens_hook(self, column: str, _module: torch.nn.Module, _args: object, output: Output) -> None:
        if self.rank != 0 or not is_forward_context_available():
            return
        runner = self.model_runner
        metadata = get_forward_context().attn_metadata
        if runner.input_batch.num_reqs == 0 or metadata is None:
            return
        starts = next(entry.query_start_loc for entry in metadata.values() if hasattr(entry, "query_start_loc"))
        is_sum = isinstance(output, tuple)
        hidden = output[0] + output[1] if isinstance(output, tuple) else output
        for index in range(runner.input_batch.num_reqs):
            request_id = runner.input_batch.req_ids[index]
            extra = runner.requests[request_id].sampling_params.extra_args
            if not extra or extra.get(KEY) is None:
                continue
            start, end = starts[index].item(), starts[index + 1].item()
            rows = hidden[start:end].cpu()
            # On a GPU `.cpu()` copies. On a CPU it gives a view: good enough of a sum made here, but what a module
            # returned is overwritten by the next fused norm.
            rows = rows if hidden.is_cuda or is_sum else rows.clone()
            self._lens_captured.setdefault(request_id, {}).setdefault(column, []).append(rows)


def encode_tensor(tensor: torch.Tensor, *, compress: bool) -> dict[str, Any]:
    """Return a tensor as vllm-lens's JSON has it."""
    array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    data = array.tobytes()
    if compress:
        data = zstandard.ZstdCompressor(level=LEVEL).compress(data)
    return {
        "data": base64.b64encode(data).decode("ascii"),
        "dtype": str(array.dtype),
        "original_dtype": str(tensor.dtype),
        "shape": list(array.shape),
        "compression": "zstd" if compress else None,
    }


class Lens:
    """The server's side.

    Parameters
    ----------
    llm
        The running engine, with the extension in its workers.
    tokenizer
        The model's.
    """

    def __init__(self, llm: AsyncLLM, tokenizer: FastTokenizer) -> None:
        self._llm = llm
        self._tokenizer = tokenizer
        self._n_runs = 0
        self.app = FastAPI(lifespan=self._lifespan)
        self.app.post("/v1/completions")(self.complete)
        self.app.post("/bench/off")(self.off)
        self.app.post("/bench/hooks")(self.hooks)
        self.app.get("/readyz")(self.ready)

    async def complete(self, order: dict[str, Any]) -> JSONResponse:
        """Run one prompt and answer with its activations."""
        request_id, compress = order["id"], order["compress"]
        prompt = self._encode(order["prompt"])
        await self._generate(prompt, {KEY: True}, request_id)
        states = await self._llm.collective_rpc("lens_get", args=(request_id,), kwargs={"compress": compress})
        data = next(state for state in states if state is not None)
        data = zstandard.ZstdDecompressor().decompress(data) if compress else data
        # Pickled by a worker of this very benchmark.
        found: Mapping[str, Any] = pickle.loads(data)["activations"]
        await self._llm.collective_rpc("lens_clear", args=(request_id,))
        # One token is sampled after the prompt, so that no surplus position is there to be trimmed.
        assert found["residual_stream"].shape[1] == len(prompt)
        tensor = encode_tensor(found["residual_stream"], compress=compress)
        return JSONResponse({"id": request_id, "activations": {"residual_stream": tensor}, "columns": found["columns"]})

    async def off(self, order: dict[str, Any]) -> dict[str, float]:
        """Run texts as plain requests."""
        prompts = [self._encode(text) for text in order["texts"]]
        self._n_runs += 1
        began = time.perf_counter()
        await asyncio.gather(
            *(self._generate(prompt, None, f"off{self._n_runs}x{index}") for index, prompt in enumerate(prompts))
        )
        return {"seconds": time.perf_counter() - began, "tokens": sum(map(len, prompts))}

    async def hooks(self, sites: list[str]) -> None:
        """Install the hooks of some sites, or none."""
        await self._llm.collective_rpc("lens_install", args=(sites,))

    async def ready(self) -> None:
        """Answer: the engine is loaded before this server listens."""

    def _encode(self, text: str) -> IntArray:
        return self._tokenizer.encode(text, add_special_tokens=True).token_ids

    async def _generate(self, prompt: IntArray, extra_args: dict[str, Any] | None, request_id: str) -> None:
        params = prefill(extra_args, may_read_cache=False)
        async for output in self._llm.generate(tokens(prompt), params, request_id):
            assert output.finished

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        yield
        # Otherwise vLLM's processes outlive the server: nothing of theirs looks after it.
        self._llm.shutdown()
