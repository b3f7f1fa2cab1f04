"""Every site, layer and position of every architecture against Hugging Face and against its own algebra."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from stratoscope_server.engines.protocol import Prompt
from stratoscope_wire.sites import LAYER_SITES
from tests.server.architectures import ARCHITECTURES

BOUND = 1e-5


def norm(architecture: str, states: Any, weights: dict[str, Any], name: str) -> Any:
    """Apply a norm in float64."""
    weight = weights[f"{name}.weight"].astype(np.float64)
    if architecture == "gpt2":
        centred = states - states.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + weights[f"{name}.bias"]
    scaled = states / np.sqrt((states**2).mean(-1, keepdims=True) + (1e-5 if architecture in EPS_5 else 1e-6))
    return scaled * (1 + weight if architecture.startswith("gemma") else weight)


EPS_5 = ("mixtral", "phi3")


def weights_of(folder: Any) -> dict[str, Any]:
    prefixes = ("model.language_model.", "language_model.model.", "transformer.", "model.")
    weights = {}
    for name, value in load_file(folder / "model.safetensors").items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        weights[name.removeprefix(prefix)] = value
    return weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_site_of_every_layer_equals_hugging_face_alone_and_unpadded(
    architecture: str,
    load_tiny: Callable[..., Any],
    refer: Callable[[str, str], dict[str, Any]],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    runner = load_tiny(architecture)
    assert runner.card.architecture.startswith(architecture)
    prompts = prompts_of(runner, texts)
    assert len({prompt.n_tokens for prompt in prompts}) > 3, "the batch must be padded"
    found = capture(runner, prompts)
    expected = [refer(architecture, text) for text in texts]
    assert found[0].keys() == expected[0].keys()
    assert len(found[0]) == len(LAYER_SITES) * 3 + 2
    for column in found[0]:
        error = distance(
            np.concatenate([states[column] for states in found]), np.concatenate([s[column] for s in expected])
        )
        assert error <= BOUND, (column, error)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3", "gemma3_text", "phi3"])
def test_the_texts_are_longer_than_the_sliding_window(
    architecture: str, load_tiny: Callable[..., Any], prompts_of: Callable[..., list[Prompt]], texts: Sequence[str]
) -> None:
    runner = load_tiny(architecture)
    window = runner._loaded.config.sliding_window
    assert window == 5
    assert sum(prompt.n_tokens > 2 * window for prompt in prompts_of(runner, texts)) >= 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_residual_stream_adds_up(
    architecture: str,
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    runner = load_tiny(architecture)
    for states in capture(runner, prompts_of(runner, texts)):
        wide = {name: values.astype(np.float64) for name, values in states.items()}
        before = wide["embed"]
        for layer in range(3):
            assert distance(wide[f"resid_mid.{layer}"], before + wide[f"attn_out.{layer}"]) < 1e-6
            before = wide[f"resid_post.{layer}"]
            assert distance(before, wide[f"resid_mid.{layer}"] + wide[f"mlp_out.{layer}"]) < 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_final_norm_and_attention_output_follow_from_the_saved_weights(
    architecture: str,
    load_tiny: Callable[..., Any],
    tiny_folder: Callable[[str], Path],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    runner, weights = load_tiny(architecture), weights_of(tiny_folder(architecture))
    assert (runner.card.sites[-1].site, runner.card.n_layers) == ("final_norm", 3)
    for states in capture(runner, prompts_of(runner, texts)):
        wide = {name: values.astype(np.float64) for name, values in states.items()}
        name = "ln_f" if architecture == "gpt2" else "norm"
        assert distance(wide["final_norm"], norm(architecture, wide["resid_post.2"], weights, name)) < 1e-5
        for layer in range(3):
            expected = projected(architecture, wide[f"heads.{layer}"], weights, layer)
            assert distance(wide[f"attn_out.{layer}"], expected) < 1e-5


def projected(architecture: str, heads: Any, weights: dict[str, Any], layer: int) -> Any:
    if architecture == "gpt2":
        name = f"h.{layer}.attn.c_proj"
        return heads @ weights[f"{name}.weight"].astype(np.float64) + weights[f"{name}.bias"]
    output = heads @ weights[f"layers.{layer}.self_attn.o_proj.weight"].astype(np.float64).T
    if architecture.startswith("gemma"):
        return norm(architecture, output, weights, f"layers.{layer}.post_attention_layernorm")
    return output


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_text_in_a_padded_batch_equals_the_text_alone(
    architecture: str,
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    runner = load_tiny(architecture)
    prompts = prompts_of(runner, texts)
    for prompt, together in zip(prompts, capture(runner, prompts), strict=True):
        alone = capture(runner, [prompt])[0]
        for column in together:
            assert distance(together[column], alone[column]) <= BOUND, column


def test_the_card_says_which_hugging_face_state_a_column_is(
    load_tiny: Callable[..., Any],
    tiny_folder: Callable[[str], Path],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    distance: Callable[..., float],
) -> None:

    runner = load_tiny("llama")
    [prompt] = prompts_of(runner, ["A church and organ"])
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    with torch.no_grad():
        hidden = model(torch.tensor(prompt.token_ids)[None].long(), output_hidden_states=True).hidden_states
    [states] = capture(runner, [prompt])
    columns = runner.card.columns(["embed", "resid_post", "final_norm"])
    assert [column.hf_index for column in columns] == [0, 1, 2, None, 3]
    for column in columns:
        if column.hf_index is not None:
            assert distance(states[column.name], hidden[column.hf_index][0].numpy()) <= BOUND
