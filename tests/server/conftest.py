"""Tiny random models of every supported architecture, and a reference written without our code."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

Floats = npt.NDArray[np.float32]
States = dict[str, Floats]

TEXTS = (
    "A church and organ",
    "one",
    "The organ in the church of the old town plays every day, and the town listens to the organ.",
    "two words",
    "A town and a church and an organ and a day and a town and a church",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def tiny_config(architecture: str, vocab_size: int, **changes: Any) -> Any:
    shape: dict[str, Any] = {**SHAPE, "vocab_size": vocab_size, **changes}
    wide_heads: dict[str, Any] = {**shape, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5, **changes}
    gemma = {**wide_heads, "layer_types": MIXED_LAYERS}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    gpt2 = {"n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 128, "bos_token_id": 0}
    settings: dict[str, dict[str, Any]] = {
        "gemma2": gemma,
        "gemma3": {"text_config": gemma, "vision_config": vision, "mm_tokens_per_image": 4},
        "gemma3_text": gemma,
        "gpt2": {**gpt2, "vocab_size": vocab_size, "eos_token_id": 1},
        "llama": shape,
        "mistral": {**shape, "head_dim": 8, "sliding_window": 5, **changes},
        "mixtral": {**shape, "num_local_experts": 4, "num_experts_per_tok": 2},
        "phi3": {**shape, "sliding_window": 5},
        "qwen2": shape,
        "qwen3": {**shape, "head_dim": 16, **changes},
    }
    return transformers.AutoConfig.for_model(architecture, **settings[architecture])


def tiny_tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )


def save_tiny(architecture: str, folder: Path, **changes: Any) -> Path:
    """Save a random model whose every weight matters: norms and biases are random too."""
    tokenizer = tiny_tokenizer()
    config = tiny_config(architecture, len(tokenizer), **changes)
    random = torch.Generator().manual_seed(7)
    auto: Any = (
        transformers.AutoModelForImageTextToText if architecture == "gemma3" else transformers.AutoModelForCausalLM
    )
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else 0.25 * noise)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reference_states(model: Any, token_ids: npt.NDArray[np.int32]) -> States:
    """Read every site of one unpadded text with Hugging Face's own means."""
    base = getattr(model, "transformer", None) or model.model
    base = getattr(base, "language_model", base)
    blocks = base.h if hasattr(base, "h") else base.layers
    found: dict[str, torch.Tensor] = {}
    handles = []

    def keep(name: str, module: Any, *, entering: bool = False) -> None:
        def before(_module: Any, args: Any) -> None:
            found[name] = args[0].clone()

        def after(_module: Any, _args: Any, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output).clone()

        handles.append(module.register_forward_pre_hook(before) if entering else module.register_forward_hook(after))

    for layer, block in enumerate(blocks):
        attention = block.attn if hasattr(block, "attn") else block.self_attn
        keep(f"heads.{layer}", attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj, entering=True)
        sandwiched = hasattr(block, "post_feedforward_layernorm")
        keep(f"attn_out.{layer}", block.post_attention_layernorm if sandwiched else attention)
        keep(f"mlp_out.{layer}", block.post_feedforward_layernorm if sandwiched else block.mlp)
        keep(f"resid_pre.{layer}", block, entering=True)
        keep(f"resid_post.{layer}", block)
    with torch.no_grad():
        output = model(torch.tensor(token_ids)[None].long(), output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    found |= {f"resid_mid.{i}": found.pop(f"resid_pre.{i}") + found[f"attn_out.{i}"] for i in range(len(blocks))}
    found |= {f"resid_post.{i}": output.hidden_states[i + 1] for i in range(len(blocks) - 1)}
    found |= {"embed": output.hidden_states[0], "final_norm": output.hidden_states[-1]}
    return {name: states[0].cpu().numpy() for name, states in found.items()}


def relative_l2(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    assert found.shape == expected.shape
    difference = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make the folder of a tiny random model of an architecture; keywords change its config."""

    @cache
    def make(architecture: str, **changes: Any) -> Path:
        return save_tiny(architecture, tmp_path_factory.mktemp(architecture), **changes)

    return make


@pytest.fixture(scope="session")
def hugging_face(reference_of: Callable[..., States]) -> Callable[[Path, tuple[int, ...]], States]:
    """Hugging Face's states of one text, from a model loaded for that alone, with the plain attention."""

    @cache
    def model(folder: Path) -> Any:
        multimodal = json.loads((folder / "config.json").read_text())["model_type"] == "gemma3"
        auto: Any = transformers.AutoModelForImageTextToText if multimodal else transformers.AutoModelForCausalLM
        return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    @cache
    def states(folder: Path, token_ids: tuple[int, ...]) -> States:
        return reference_of(model(folder), np.array(token_ids, np.int32))

    return states


@pytest.fixture(scope="session")
def texts() -> Sequence[str]:
    """Texts of different lengths, two of them longer than the sliding windows."""
    return TEXTS


@pytest.fixture(scope="session")
def reference_of() -> Callable[..., States]:
    """See `reference_states`."""
    return reference_states


@pytest.fixture(scope="session")
def distance() -> Callable[..., float]:
    """Relative L2 distance, in float64."""
    return relative_l2
