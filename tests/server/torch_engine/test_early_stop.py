"""A pass ends with the last column asked for, and that changes no bit."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from stratoscope_server.engines.protocol import Prompt

CountCalls = Callable[[Any], AbstractContextManager[Counter[str]]]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "mixtral", "phi3", "gemma3"])
@pytest.mark.parametrize("column", ["embed", "heads.1", "attn_out.1", "resid_mid.1", "mlp_out.1", "resid_post.1"])
def test_stopping_early_gives_the_bits_of_a_full_pass(
    architecture: str,
    column: str,
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    count_calls: CountCalls,
) -> None:
    runner = load_tiny(architecture)
    prompts = prompts_of(runner, texts)
    site, _, layer = column.partition(".")
    with count_calls(runner) as calls:
        full = capture(runner, prompts)
        assert calls == {"block.0": 1, "block.1": 1, "block.2": 1, "final_norm": 1}
        calls.clear()
        early = capture(runner, prompts, [site], layers=[int(layer)] if layer else "all")
    # Counted before it is read. A block that is left in its middle has not run to its end.
    ended = {"embed": 0, "resid_post.1": 2}.get(column, 1)
    assert calls == {f"block.{index}": 1 for index in range(ended)}
    for whole, part in zip(full, early, strict=True):
        assert part.keys() == {column}
        assert np.array_equal(whole[column], part[column])


def test_final_norm_runs_the_whole_model(
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    count_calls: CountCalls,
) -> None:
    runner = load_tiny("llama")
    with count_calls(runner) as calls:
        capture(runner, prompts_of(runner, texts), ["final_norm"])
    assert calls == {"block.0": 1, "block.1": 1, "block.2": 1, "final_norm": 1}


def test_a_pass_that_nobody_reads_runs_to_its_end(
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    count_calls: CountCalls,
) -> None:
    runner = load_tiny("llama")
    capture(runner, prompts_of(runner, texts), ["embed"])
    with count_calls(runner) as calls:
        runner._loaded.module(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False)
    assert calls == {"block.0": 1, "block.1": 1, "block.2": 1, "final_norm": 1}


@pytest.fixture
def count_calls() -> CountCalls:
    """Count how often blocks and the final norm of a runner ran to their end."""

    @contextmanager
    def counting(runner: Any) -> Iterator[Counter[str]]:
        calls: Counter[str] = Counter()
        language_model = runner._loaded.module
        names = {"final_norm": runner._loaded.family.final_norm}
        names |= {f"block.{index}": f"{runner._loaded.family.blocks}.{index}" for index in range(runner.card.n_layers)}
        with ExitStack() as handles:
            for name, path in names.items():
                module = language_model.get_submodule(path)
                handle = module.register_forward_hook(lambda *_, name=name: calls.update([name]), prepend=True)
                handles.callback(handle.remove)
            yield calls

    return counting
