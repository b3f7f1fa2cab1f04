"""TransformerLens: ``run_with_cache`` on the three sites of every block, stopped before the unembedding.

Run by the benchmark as ``python -m peers.transformerlens '{"model": FOLDER, "threads": 2, "dtype": "bfloat16"}'``.
"""

from functools import partial
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from peers.batches import Batch
from peers.repeating import Loaded, batched, repeat

HOOKS = {"hook_resid_post": "resid_post", "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out"}


def cached(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Run a batch and take the last token from the cache."""
    _, cache = model.run_with_cache(
        batch.token_ids,
        attention_mask=batch.mask,
        names_filter=lambda name: name.rpartition(".")[2] in HOOKS and name.count(".") == 2,
        return_type=None,
        stop_at_layer=model.cfg.n_layers,
    )
    found = {}
    for name, states in cache.items():
        _, layer, hook = name.split(".")
        found[f"{HOOKS[hook]}.{layer}"] = batch.last(states)
    return found


def load(folder: str, dtype: torch.dtype) -> Loaded:
    """Load the model as it is: nothing folded into its weights."""
    model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=dtype)
    # Its own tokenizer puts a token before every text, which the model was not trained with and the others do not have.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Loaded({"run_with_cache": batched(tokenizer, partial(cached, model))})


if __name__ == "__main__":
    repeat(load, ("transformer-lens", "transformers", "torch"))
