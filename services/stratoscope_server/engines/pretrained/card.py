"""The model card of a pretrained model, whichever engine runs it."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers

from stratoscope_server.engines.pretrained.source import Source
from stratoscope_wire import ModelCard
from stratoscope_wire.card import site_cards


def build_card(
    source: Source,
    config: Any,  # noqa: ANN401 - transformers publishes no common type of its configs
    *,
    dtype: str,
    tokenizer_hash: str,
    engine: str,
    versions: Mapping[str, str],
    max_tokens: int | None = None,
) -> ModelCard:
    """Describe a model.

    Parameters
    ----------
    source
        Where it came from.
    config
        Of the language model.
    dtype
        Type in which the engine computes.
    tokenizer_hash
        Of its tokenizer.
    engine, versions
        What runs it, with everything beside torch, transformers and this package that its numbers depend on.
    max_tokens
        Longest prompt that the engine takes, where that is less than the model's.
    """
    n_heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    longest = longest_prompt(config)
    return ModelCard(
        model=source.name,
        revision=source.revision,
        architecture=config.model_type,
        dtype=dtype,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=n_heads,
        d_head=d_head,
        vocab_size=config.vocab_size,
        max_tokens=longest if max_tokens is None else min(longest, max_tokens),
        tokenizer_hash=tokenizer_hash,
        engine=engine,
        versions={
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "stratoscope-server": importlib.metadata.version("stratoscope-server"),
            "checkpoint": source.contents,
            **versions,
        },
        sites=site_cards(config.num_hidden_layers, config.hidden_size, n_heads * d_head),
    ).signed()


def longest_prompt(config: Any) -> int:  # noqa: ANN401 - transformers publishes no common type of its configs
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
