"""Hugging Face transformers: the model without its unembedding, with its own hidden states or with three hooks a block.

Run by the benchmark as ``python -m peers.huggingface '{"model": FOLDER, "threads": 2, "dtype": "bfloat16"}'``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from peers.batches import Batch
from peers.repeating import Loaded, States, batched, repeat


class Hooked:
    """A model with a hook on every block, its attention and its MLP, each of which keeps the last token."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._batch: Batch | None = None
        self._kept: dict[str, torch.Tensor] = {}
        for layer, block in enumerate(model.layers):
            for site, module in (("resid_post", block), ("attn_out", block.self_attn), ("mlp_out", block.mlp)):
                module.register_forward_hook(partial(self._keep, f"{site}.{layer}"))

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Run a batch."""
        self._batch, self._kept = batch, {}
        self._model(input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False)
        return self._kept

    def _keep(self, name: str, _module: object, _args: object, output: Any) -> None:
        assert self._batch is not None
        self._kept[name] = self._batch.last(output[0] if isinstance(output, tuple) else output)


def hidden_states(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Run a batch with ``output_hidden_states``: one site instead of three, and of the last layer the normed state."""
    found = model(
        input_ids=batch.token_ids, attention_mask=batch.mask, use_cache=False, output_hidden_states=True
    ).hidden_states
    names = ["embed", *(f"resid_post.{layer}" for layer in range(len(found) - 2)), "final_norm"]
    return {name: batch.last(states) for name, states in zip(names, found, strict=True)}


def load(folder: str, dtype: torch.dtype) -> Loaded:
    """Load the model twice, once with hooks; the weights are mapped from the same file."""
    plain = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    hooked = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    runs: dict[str, Callable[[Batch], States]] = {
        "hooks": Hooked(hooked),
        "output_hidden_states": partial(hidden_states, plain),
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Loaded({name: batched(tokenizer, run) for name, run in runs.items()})


if __name__ == "__main__":
    repeat(load, ("transformers", "torch"))
