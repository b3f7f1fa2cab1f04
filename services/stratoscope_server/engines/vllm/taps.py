"""Taps: the hooks that read each site where vLLM computes it, at the moment it is computed.

vLLM's decoder blocks carry the residual stream beside what is to be added to it, and the norms do the adding: a norm
called with ``(x, residual)`` gives ``(norm(x + residual), x + residual)``, and overwrites both its arguments. So the
input of a norm is what attention or MLP added, and its second output *is* the residual stream, the very tensor that the
next block uses. Each tap copies the rows it needs at once and keeps no reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

Sink = Callable[[str, torch.Tensor], None]
"""Takes a column's name and its states of shape (n_tokens, width), which are only valid during the call."""


@dataclass(frozen=True, slots=True)
class Family:
    """Names of the modules that matter, for models whose blocks carry ``(hidden, residual)``.

    Attributes
    ----------
    model
        Path of the language model in what vLLM loads.
    mlp_norm
        The norm in a block that adds attention's output to the residual stream.
    """

    model: str = "model"
    mlp_norm: str = "post_attention_layernorm"


_LLAMA: Final = Family()
_GEMMA: Final = Family(mlp_norm="pre_feedforward_layernorm")

FAMILIES: Final[dict[str, Family]] = {
    "gemma2": _GEMMA,
    "gemma3": Family("language_model.model", "pre_feedforward_layernorm"),
    "gemma3_text": _GEMMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""Families by the ``model_type`` of a model's config. Written against the model files of vLLM 0.32."""


def attach(model: nn.Module, family: Family, n_layers: int, sink: Sink) -> None:
    """Tap every column of a model.

    Raises
    ------
    AttributeError
        If the model has not the modules of its family.
    ValueError
        If it has not as many blocks as its config says.
    """
    decoder = model.get_submodule(family.model)
    blocks = list(decoder.get_submodule("layers").children())
    if len(blocks) != n_layers:
        raise ValueError(f"the config names {n_layers} layers, vLLM built {len(blocks)}")
    _tap_norm(blocks[0].get_submodule("input_layernorm"), entering="embed", sink=sink)
    for layer, block in enumerate(blocks):
        following = blocks[layer + 1].get_submodule("input_layernorm") if layer + 1 < n_layers else None
        _tap_input(block.get_submodule("self_attn.o_proj"), f"heads.{layer}", sink)
        middle = block.get_submodule(family.mlp_norm)
        _tap_norm(middle, entering=f"attn_out.{layer}", residual=f"resid_mid.{layer}", sink=sink)
        if following is not None:
            _tap_norm(following, entering=f"mlp_out.{layer}", residual=f"resid_post.{layer}", sink=sink)
    last = n_layers - 1
    norm = decoder.get_submodule("norm")
    _tap_norm(norm, entering=f"mlp_out.{last}", residual=f"resid_post.{last}", normed="final_norm", sink=sink)


def _tap_norm(
    norm: nn.Module, *, entering: str, sink: Sink, residual: str | None = None, normed: str | None = None
) -> None:
    _tap_input(norm, entering, sink)

    def after(_module: nn.Module, _args: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        hidden, stream = output
        assert residual is not None
        sink(residual, stream)
        if normed is not None:
            sink(normed, hidden)

    if residual is not None:
        norm.register_forward_hook(after)


def _tap_input(module: nn.Module, column: str, sink: Sink) -> None:
    def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
        sink(column, args[0])

    module.register_forward_pre_hook(before)
