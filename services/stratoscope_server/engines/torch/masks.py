"""Attention masks of merged prompts, in the form that each family of models takes."""

from typing import Any

import torch

from stratoscope_server.engines.torch.architectures import Family
from stratoscope_server.engines.torch.batch import Batch


def attention_mask(
    batch: Batch,
    family: Family,
    config: Any,  # noqa: ANN401 - transformers publishes no common type of its configs
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor | dict[str, torch.Tensor] | None:
    """Return what a model is given as its ``attention_mask``.

    Parameters
    ----------
    batch
        What runs.
    family
        Of the model.
    config
        The language model's.
    dtype
        In which it computes.
    device
        On which the mask is to be.

    Returns
    -------
    ``None`` where a token attends to all up to it; else a tensor of shape (n_sequences, 1, n_tokens, n_tokens) that is
    added to the scores, or one for each type of layer, by its name. Within a sliding window is what is near in the
    text, wherever it stands in the sequence.
    """
    if batch.attended is None:
        return None
    attended, positions = batch.attended.to(device), batch.positions.to(device)
    near = attended
    if (window := getattr(config, "sliding_window", None)) is not None:
        near = near & (positions[:, :, None] - positions[:, None, :] < window)
    if family.masks == "by layer type":
        return {"full_attention": _additive(attended, dtype), "sliding_attention": _additive(near, dtype)}
    return _additive(near, dtype)


def _additive(attended: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(attended.shape, dtype=dtype, device=attended.device)
    return mask.masked_fill_(~attended, torch.finfo(dtype).min)[:, None]
