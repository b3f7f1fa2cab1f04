"""Tiny random models of every supported architecture, captures of them, and a reference written without our code."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.torch import TorchRunner
from stratoscope_server.engines.torch.engine import load_runner
from stratoscope_server.selection import select_rows
from stratoscope_server.settings import Settings
from stratoscope_wire import Selector
from stratoscope_wire.sites import SITES

Floats = npt.NDArray[np.float32]
States = dict[str, Floats]
Captured = list[States]
LoadTiny = Callable[..., TorchRunner]
Capture = Callable[..., Captured]
Refer = Callable[[str, str], States]


def ask(runner: TorchRunner, texts: Sequence[str], select: Sequence[Selector] = ("all",)) -> list[Prompt]:
    """Make the prompts of texts, named s0, s1, ..."""
    prompts = []
    for index, text in enumerate(texts):
        encoded = runner.tokenizer.encode(text, add_special_tokens=True)
        rows = select_rows(select, len(encoded.token_ids), {}, encoded.offsets)
        prompts.append(Prompt(f"s{index}", encoded.token_ids, rows))
    return prompts


def run(runner: TorchRunner, prompts: Sequence[Prompt], sites: Sequence[str] = SITES, **options: Any) -> Captured:
    """Run prompts as one batch and return, per prompt, its rows by column."""
    columns = runner.card.columns(list(sites), options.get("layers", "all"))
    block = runner.run(prompts, columns, options.get("dtype", "float32"))
    ends = np.cumsum([prompt.n_rows for prompt in prompts])
    assert len(block.stimulus_id) == ends[-1]
    split = {c.name: np.split(v, ends[:-1]) for c, v in zip(columns, block.values, strict=True)}
    return [{name: parts[index] for name, parts in split.items()} for index in range(len(prompts))]


@pytest.fixture(scope="session")
def tiny_folder(make_tiny: Callable[..., Path]) -> Callable[[str], Path]:
    """Folder of a tiny random model of an architecture."""
    return make_tiny


@pytest.fixture(scope="session")
def load_tiny(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> LoadTiny:
    """Load a tiny model the way the server does: one per architecture and type, never changed by a test."""
    cache_dir = tmp_path_factory.mktemp("cache")

    @cache
    def load(architecture: str = "llama", dtype: str = "float32") -> TorchRunner:
        folder = str(tiny_folder(architecture))
        return load_runner(folder, revision=None, dtype=dtype, device="cpu", cache_dir=cache_dir)

    return load


@pytest.fixture
def fresh_llama(tiny_folder: Callable[[str], Path], tmp_path: Path) -> TorchRunner:
    """Load a tiny model of the test's own, to be damaged."""
    return load_runner(str(tiny_folder("llama")), revision=None, dtype="float32", device="cpu", cache_dir=tmp_path)


@pytest.fixture(scope="session")
def refer(
    tiny_folder: Callable[[str], Path], load_tiny: LoadTiny, hugging_face: Callable[[Path, tuple[int, ...]], States]
) -> Refer:
    """Hugging Face's states of one text; see `hugging_face`."""

    def states(architecture: str, text: str) -> States:
        token_ids = load_tiny(architecture).tokenizer.encode(text, add_special_tokens=True).token_ids
        return hugging_face(tiny_folder(architecture), tuple(token_ids.tolist()))

    return states


@pytest.fixture(scope="session")
def smollm2() -> TorchRunner:
    """The embedded model in float32; its conversion is kept in the user's cache."""
    return load_runner("smollm2-135m", revision=None, dtype="float32", device="cpu", cache_dir=Settings().cache_dir)


@pytest.fixture(scope="session")
def prompts_of() -> Callable[..., list[Prompt]]:
    """See `ask`."""
    return ask


@pytest.fixture(scope="session")
def capture() -> Capture:
    """See `run`."""
    return run
