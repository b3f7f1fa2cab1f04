"""Types: of the model, and of the values given out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from stratoscope_server.engines.protocol import EngineError, Prompt
from stratoscope_wire.dtypes import to_float32
from stratoscope_wire.sites import SITES


def rounded_to_bfloat16(values: Any) -> Any:
    """Round float32 to the nearest bfloat16, ties to even, in integers; return its bits."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def test_bfloat16_values_are_the_nearest_to_float32(
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
) -> None:
    runner = load_tiny("llama")
    prompts = prompts_of(runner, texts, ["all", "mean"])
    for wide, narrow in zip(capture(runner, prompts), capture(runner, prompts, dtype="bfloat16"), strict=True):
        for column, values in narrow.items():
            assert values.dtype == np.uint16
            assert np.array_equal(values, rounded_to_bfloat16(np.ascontiguousarray(wide[column])))


def test_float16_values_are_the_nearest_to_float32(
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
) -> None:
    runner = load_tiny("llama")
    prompts = prompts_of(runner, texts, ["all", "mean"])
    for wide, narrow in zip(capture(runner, prompts), capture(runner, prompts, dtype="float16"), strict=True):
        for column, values in narrow.items():
            assert values.dtype == np.float16
            assert np.array_equal(values, wide[column].astype(np.float16))


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_a_bfloat16_model_is_widened_exactly(
    architecture: str,
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    runner = load_tiny(architecture, "bfloat16")
    assert runner.card.dtype == "bfloat16"
    assert {parameter.dtype for parameter in runner._loaded.module.parameters()} == {torch.bfloat16}
    prompts = prompts_of(runner, texts)
    wide, bits = capture(runner, prompts), capture(runner, prompts, dtype="bfloat16")
    pooled = capture(runner, prompts_of(runner, texts, ["mean"]))
    for states, narrow, means in zip(wide, bits, pooled, strict=True):
        for column, values in states.items():
            assert values.dtype == np.float32
            assert not (np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any()
            assert np.array_equal(values, to_float32(narrow[column], "bfloat16"))
            assert distance(means[column], values.astype(np.float64).mean(0, keepdims=True)) < 1e-6


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "qwen3"])
def test_a_bfloat16_model_is_near_the_float32_model(
    architecture: str,
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    prompts = prompts_of(load_tiny(architecture), texts)
    exact, near = (capture(load_tiny(architecture, dtype), prompts) for dtype in ("float32", "bfloat16"))
    errors = [distance(b[column], a[column]) for a, b in zip(exact, near, strict=True) for column in a]
    assert 1e-4 < max(errors) < 5e-2


def test_auto_is_the_type_of_the_checkpoint(load_tiny: Callable[..., Any]) -> None:
    assert load_tiny("llama", "auto").card.dtype == "float32"


def test_an_overflow_of_float16_names_column_and_stimulus(
    fresh_llama: Any, capture: Callable[..., list[dict[str, Any]]], prompts_of: Callable[..., list[Prompt]]
) -> None:
    prompts = prompts_of(fresh_llama, ["A church", "an organ", "A church"])
    loud = int(prompts[1].token_ids[-1])
    assert loud not in prompts[0].token_ids
    with torch.no_grad():
        fresh_llama._loaded.module.embed_tokens.weight[loud] *= 1e6
    assert capture(fresh_llama, prompts, list(SITES))[1]["embed"].max() > 65504
    capture(fresh_llama, prompts, list(SITES), dtype="bfloat16")
    capture(fresh_llama, prompts, ["heads"], dtype="float16")
    with pytest.raises(EngineError, match=r"column 'embed' of stimulus 's1' .* 65504.*float32") as caught:
        capture(fresh_llama, prompts, list(SITES), dtype="float16")
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("float16_overflow", 422, False)


def test_a_value_that_is_not_finite_is_named_in_every_type(
    fresh_llama: Any, capture: Callable[..., list[dict[str, Any]]], prompts_of: Callable[..., list[Prompt]]
) -> None:
    prompts = prompts_of(fresh_llama, ["A church", "an organ", "A church"])
    odd = int(prompts[1].token_ids[-1])
    assert odd not in prompts[0].token_ids
    with torch.no_grad():
        fresh_llama._loaded.module.embed_tokens.weight[odd, 3] = float("nan")
    assert len(capture(fresh_llama, [prompts[0], prompts[2]])) == 2
    for dtype in ("float32", "bfloat16", "float16"):
        with pytest.raises(EngineError, match="column 'embed' of stimulus 's1'") as caught:
            capture(fresh_llama, prompts, dtype=dtype)
        assert caught.value.code == "non_finite_activation"
