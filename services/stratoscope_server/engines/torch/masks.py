"""Attention masks of a forest, in the form that each family of models takes."""

from typing import Any

import torch

from stratoscope_server.engines.torch.architectures import Family
from stratoscope_server.engines.torch.batch import Batch


def attention_mask(batch: Batch, family: Family, config: Any, dtype: torch.dtype) -> Any:
    """Return what to give to the model as ``attention_mask``.

    Parameters
    ----------
    config
        The language model's.
    dtype
        Of the computation.

    Returns
    -------
    ``None`` where a token attends to all before it; else a tensor of shape (1, 1, n_tokens, n_tokens), added to the
    scores, or one for each type of layer, by its name.
    """
    if batch.ancestors is None:
        return None
    window = getattr(config, "sliding_window", None)
    near = batch.ancestors
    if window is not None:
        depths = batch.positions[0]
        near = batch.ancestors & (depths[:, None] - depths[None, :] < window)
    if family.masks == "by layer type":
        return {"full_attention": _additive(batch.ancestors, dtype), "sliding_attention": _additive(near, dtype)}
    return _additive(near, dtype)


def _additive(attended: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(attended.shape, dtype=dtype)
    return mask.masked_fill_(~attended, torch.finfo(dtype).min)[None, None]
