"""Running vLLM engines on real weights, and what is asked of them. Runs in the environment that has vLLM."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from stratoscope_server.engines.protocol import Job, Prompt
from stratoscope_server.engines.vllm import VllmOptions, load_engine
from stratoscope_server.engines.vllm.engine import VllmEngine
from stratoscope_server.selection import select_rows
from stratoscope_server.settings import Settings
from stratoscope_wire import Block, Selector
from stratoscope_wire.request import Dtype
from stratoscope_wire.sites import SITES

Floats = npt.NDArray[np.float32]
States = dict[str, Floats]
_T = TypeVar("_T")

WIDE = {"hidden_size": 128, "intermediate_size": 96, "head_dim": 32, "query_pre_attn_scalar": 32}
"""vLLM's kernels want heads of at least 32."""


class Running:
    """One engine in an event loop of its own, to be used from a test's thread."""

    def __init__(self, options: VllmOptions) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.options = options
        engine = load_engine(options)
        assert isinstance(engine, VllmEngine)
        self.engine = engine
        self.do(engine.start())

    def do(self, work: Coroutine[Any, Any, _T], seconds: float = 180) -> _T:
        """Run a coroutine and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def prompts(self, texts: Sequence[str], select: Sequence[Selector] = ("all",)) -> list[Prompt]:
        """Make the prompts of texts, named s0, s1 ..."""
        made = []
        for index, text in enumerate(texts):
            encoded = self.engine.tokenizer.encode(text, add_special_tokens=True)
            rows = select_rows(select, len(encoded.token_ids), {}, encoded.offsets)
            made.append(Prompt(f"s{index}", encoded.token_ids, rows))
        return made

    def job(self, prompts: Sequence[Prompt], sites: Sequence[str] = SITES, dtype: Dtype = "float32") -> Job:
        """Make a request."""
        return Job("test", tuple(prompts), self.engine.card.columns(list(sites)), dtype)

    def capture(
        self, prompts: Sequence[Prompt], sites: Sequence[str] = SITES, dtype: Dtype = "float32"
    ) -> dict[str, States]:
        """Capture prompts as one request, and return the rows of each by column."""
        return self.do(self.capture_async(self.job(prompts, sites, dtype)))

    async def capture_async(self, job: Job) -> dict[str, States]:
        """Capture a request, and return the rows of each prompt by column."""
        found: dict[str, States] = {}
        async with aclosing(self.engine.capture(job)) as blocks:
            async for block in blocks:
                split = split_block(job, block)
                assert not split.keys() & found.keys(), "a prompt came twice"
                found |= split
        assert found.keys() == {prompt.stimulus_id for prompt in job.prompts}
        return found

    def tell(self, method: str, *args: str) -> list[Any]:
        """Call a method of the test's workers, and return each one's answer."""
        return self.do(self.engine._llm.collective_rpc(method, args=args))

    def report(self) -> dict[str, Any]:
        """Return what the first `WatchedWorker` has written down since the last report."""
        told: dict[str, Any] = json.loads(self.tell("report")[0])
        return told

    def close(self) -> None:
        """Stop the engine and its loop."""
        self.do(self.engine.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=30)
        self.loop.close()


def split_block(job: Job, block: Block) -> dict[str, States]:
    """Copy a block's rows out, by prompt and column."""
    ids = np.array(block.stimulus_id)
    return {
        str(stimulus): {
            column.name: np.array(values[ids == stimulus])
            for column, values in zip(job.columns, block.values, strict=True)
        }
        for stimulus in dict.fromkeys(block.stimulus_id)
    }


@contextmanager
def run_engine(model: Path | str, **options: Any) -> Iterator[Running]:
    """Start an engine and stop it."""
    options = {"ring_bytes": 256 << 20, "max_batch_tokens": 64, "stall_seconds": 60.0, **options}
    # Child processes get this process's path with them.
    workers = str(Path(__file__).parent / "workers")
    if workers not in sys.path:
        sys.path.append(workers)
    running = Running(VllmOptions(str(model), None, options.pop("dtype", "float32"), Settings().cache_dir, **options))
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def start_engine() -> Callable[..., Any]:
    """See `run_engine`."""
    return run_engine


@pytest.fixture(scope="session")
def vllm_folder(make_tiny: Callable[..., Path]) -> Callable[[str], Path]:
    """Folder of a tiny random model that vLLM's kernels can run."""
    return cache(lambda architecture: make_tiny(architecture, **WIDE))


@pytest.fixture(scope="session")
def reference(
    hugging_face: Callable[[Path, tuple[int, ...]], States],
) -> Callable[[Path, Prompt], States]:
    """Hugging Face's states of a prompt: every site, layer and position."""
    return lambda folder, prompt: hugging_face(folder, tuple(prompt.token_ids.tolist()))


@pytest.fixture(scope="module")
def llama(vllm_folder: Callable[[str], Path]) -> Iterator[Running]:
    """An engine over the tiny Llama: grouped-query attention, 64 tokens a step."""
    with run_engine(vllm_folder("llama")) as running:
        yield running
