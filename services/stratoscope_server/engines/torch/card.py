"""The model card of a loaded model."""

import importlib.metadata
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from stratoscope_server.engines.torch.loading import LoadedModel
from stratoscope_server.engines.torch.source import Source
from stratoscope_wire import ModelCard
from stratoscope_wire.card import site_cards


def build_card(source: Source, loaded: LoadedModel, tokenizer_hash: str) -> ModelCard:
    """Describe a loaded model."""
    config = loaded.config
    n_heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return ModelCard(
        model=source.name,
        revision=source.revision,
        architecture=config.model_type,
        dtype=loaded.dtype,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=n_heads,
        d_head=d_head,
        vocab_size=config.vocab_size,
        max_tokens=_max_tokens(config),
        tokenizer_hash=tokenizer_hash,
        engine="torch",
        versions=_versions(loaded),
        sites=site_cards(config.num_hidden_layers, config.hidden_size, n_heads * d_head),
    ).signed()


def _versions(loaded: LoadedModel) -> dict[str, str]:
    device = loaded.device
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "stratoscope-server": importlib.metadata.version("stratoscope-server"),
        "attention": str(loaded.config._attn_implementation),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _max_tokens(config: Any) -> int:  # noqa: ANN401 - transformers publishes no common type of its configs
    """Return the longest prompt whose states depend on nothing but the prompt.

    Rotary embeddings of type ``longrope`` and ``dynamic`` change for every token of a batch once its longest prompt
    is beyond the length of the original training.
    """
    limits = [rope.get("original_max_position_embeddings") for rope in _length_dependent(config)]
    return min([int(config.max_position_embeddings), *(int(limit) for limit in limits if limit)])


def _length_dependent(config: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *parameters.values()):
        if isinstance(rope, dict) and rope.get("rope_type") in ("longrope", "dynamic"):
            yield rope
