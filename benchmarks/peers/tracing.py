"""nnsight: one trace a batch, in which the last token of three sites of every block is saved.

Run by the benchmark as ``python -m peers.tracing '{"model": FOLDER, "threads": 2, "dtype": "bfloat16"}'``.
"""

from functools import partial
from typing import Any

import torch
from nnsight import TransformersModel, save

from peers.batches import Batch
from peers.repeating import Loaded, batched, repeat


def traced(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Run a batch; the trace stops before the unembedding, which nothing asks for."""
    inputs = {"input_ids": batch.token_ids, "attention_mask": batch.mask, "use_cache": False}
    with model.trace(inputs) as tracer:
        saved: dict[str, torch.Tensor] = save({})
        for layer, block in enumerate(model.model.layers):
            saved[f"attn_out.{layer}"] = batch.last(block.self_attn.output[0])
            saved[f"mlp_out.{layer}"] = batch.last(block.mlp.output)
            saved[f"resid_post.{layer}"] = batch.last(block.output)
        tracer.stop()
    return saved


def load(folder: str, dtype: torch.dtype) -> Loaded:
    """Load the model on the CPU."""
    model = TransformersModel(folder, task="text-generation", device_map="cpu", dtype=dtype, dispatch=True)
    return Loaded({"trace": batched(model.tokenizer, partial(traced, model))})


if __name__ == "__main__":
    repeat(load, ("nnsight", "transformers", "torch"))
