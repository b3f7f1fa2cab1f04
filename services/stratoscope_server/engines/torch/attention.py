"""Attention for many short sequences on a CPU.

torch's fused kernel splits long sequences into tiles, one head at a time. For sequences of up to `MAX_TOKENS` it takes
1.5 to 3 times as long as plain matrix products over all heads that share keys, which are here. Scores and softmax are
in float32, as in the fused kernel.
"""

from typing import Any, Final

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stratoscope_server.engines.torch.architectures import Family

MAX_TOKENS: Final = 128
"""Longest sequences that gain."""

NAME: Final = "sdpa_or_grouped"
"""What a model's config calls it."""


def attention_of(family: Family) -> str:
    """Return the attention that transformers is to load a family's model with, and make ours known to it."""
    if family.attention != "sdpa":
        return family.attention
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,  # noqa: ANN401 - whatever the model passes to any kernel
) -> tuple[torch.Tensor, None]:
    """Attend with plain products where that is faster, and with torch's fused kernel elsewhere.

    Parameters
    ----------
    module
        The attention module.
    query : tensor of shape (n_sequences, n_heads, n_tokens, d_head)
    key, value : tensor of shape (n_sequences, n_kv_heads, n_tokens, d_head)
    attention_mask : tensor of shape (n_sequences or 1, 1, n_tokens, n_tokens), or None
        Added to the scores; or bool, where each token attends; or ``None`` for all up to it.
    scaling
        Of the scores; ``None`` for ``d_head ** -0.5``.

    Returns
    -------
    Tensor of shape (n_sequences, n_tokens, n_heads, d_head), and nothing.
    """
    n_tokens = query.shape[2]
    if query.device.type != "cpu" or n_tokens > MAX_TOKENS:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if attention_mask is None:
        attention_mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    return grouped(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def grouped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attend with one product for all heads that share keys; see `attend`."""
    n_sequences, n_heads, n_tokens, width = query.shape
    stacked = (n_sequences * key.shape[1], -1, width)
    scores = torch.bmm(query.reshape(stacked).float(), key.reshape(stacked).float().transpose(1, 2))
    scores = scores.view(n_sequences, n_heads, n_tokens, n_tokens).mul_(scaling)
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, torch.finfo(torch.float32).min)
    else:
        scores.add_(mask)
    weights = scores.softmax(-1).to(value.dtype).view(n_sequences * key.shape[1], -1, n_tokens)
    attended = torch.bmm(weights, value.reshape(n_sequences * key.shape[1], n_tokens, -1))
    return attended.view(n_sequences, n_heads, n_tokens, -1).transpose(1, 2).contiguous()
