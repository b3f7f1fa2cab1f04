"""The server under test: the real app over one vLLM engine, and two routes that run the same engine without HTTP.

Run by `benchmarks/engine.py` as a process of its own: ``python -m enginebench.host '{"model": ...}'``.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import uvicorn
from fastapi import APIRouter

from stratoscope_server.app import create_app
from stratoscope_server.engines.protocol import Job, Prompt
from stratoscope_server.engines.vllm import VllmOptions, load_engine
from stratoscope_server.engines.vllm.engine import VllmEngine
from stratoscope_server.engines.vllm.launch import prefill, tokens
from stratoscope_server.selection import select_rows
from stratoscope_server.settings import Settings
from stratoscope_server.station import Station
from stratoscope_wire.request import Dtype
from stratoscope_wire.selectors import Selector


class Bench:
    """Runs texts on the server's own engine, in the server's own event loop."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._n_runs = 0
        self.routes = APIRouter()
        self.routes.post("/bench/off")(self.off)
        self.routes.post("/bench/consumed")(self.consumed)

    @property
    def _engine(self) -> VllmEngine:
        engine = self._station.engine
        assert isinstance(engine, VllmEngine)
        return engine

    async def off(self, order: dict[str, Any]) -> dict[str, float]:
        """Run texts as plain vLLM requests for one token: no ticket, nothing captured."""
        prompts = self._prompts(order["texts"], "last")
        self._n_runs += 1
        params = prefill(None, may_read_cache=False)

        async def run(index: int, prompt: Prompt) -> None:
            request_id = f"off{self._n_runs}x{index}"
            async for output in self._engine._llm.generate(tokens(prompt.token_ids), params, request_id):
                assert output.finished

        began = time.perf_counter()
        await asyncio.gather(*(run(index, prompt) for index, prompt in enumerate(prompts)))
        return _result(prompts, began)

    async def consumed(self, order: dict[str, Any]) -> dict[str, float]:
        """Capture texts, in requests as a client would send them, and let the blocks go as they come."""
        prompts = self._prompts(order["texts"], order["select"])
        columns = self._engine.card.columns(order["sites"])
        dtype: Dtype = order["dtype"]
        size = order["stimuli_per_request"]
        room = asyncio.Semaphore(order["concurrency"])

        async def run(part: Sequence[Prompt]) -> int:
            n_rows = 0
            job = Job("bench", tuple(part), columns, dtype)
            async with room, aclosing(self._engine.capture(job)) as blocks:
                async for block in blocks:
                    n_rows += len(block.stimulus_id)
            return n_rows

        began = time.perf_counter()
        rows = await asyncio.gather(*(run(prompts[i : i + size]) for i in range(0, len(prompts), size)))
        result = _result(prompts, began)
        assert sum(rows) == sum(prompt.n_rows for prompt in prompts)
        return result

    def _prompts(self, texts: Sequence[str], select: Selector) -> list[Prompt]:
        prompts = []
        for index, text in enumerate(texts):
            encoded = self._engine.tokenizer.encode(text, add_special_tokens=True)
            rows = select_rows([select], len(encoded.token_ids), {}, encoded.offsets)
            prompts.append(Prompt(f"t{index}", encoded.token_ids, rows))
        return prompts


def _result(prompts: Sequence[Prompt], began: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - began, "tokens": sum(prompt.n_tokens for prompt in prompts)}


def main() -> None:
    """Serve until stopped."""
    order: dict[str, Any] = json.loads(sys.argv[1])
    port = order.pop("port")
    settings = Settings(port=port)
    options = VllmOptions(revision=None, cache_dir=settings.cache_dir, **order)

    def stop() -> None:
        server.should_exit = True

    station = Station(lambda: load_engine(options), stop)
    app = create_app(station, settings)
    app.include_router(Bench(station).routes)
    server = uvicorn.Server(
        uvicorn.Config(app, host=settings.host, port=port, http="h11", log_config=None, access_log=False)
    )
    server.run()
    if station.failure is not None:
        raise station.failure


if __name__ == "__main__":
    main()
