"""Where each site is in each family of models: data, and the lookup in it.

Written against the modelling files of transformers 5.23; `stratoscope_server.engines.selfcheck` proves at start
that the version at hand still agrees.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

Attention = Literal["sdpa", "eager"]


@dataclass(frozen=True, slots=True)
class Family:
    """Names of the modules at whose input or output the sites are read.

    Names of ``blocks`` and ``final_norm`` start at the language model, all others at a block. ``embed`` is the input
    of block 0, so that scaled and position embeddings are part of it, and ``resid_post`` is the output of a block.

    Attributes
    ----------
    blocks, final_norm
        The list of decoder blocks, and the norm after the last.
    heads
        Attention's output projection; its input is ``heads``.
    attn_out, mlp_out
        Modules whose output is added to the residual stream: behind the post-norm where there is one.
    mlp_norm
        The norm before the MLP; its input is ``resid_mid``.
    attention
        Implementation of attention: ``eager`` where torch's fused kernel cannot express what the family computes.
    masks
        How the model takes an attention mask of its own: one for all layers, or one for each type of layer.
    language_model
        Path of the language model in what ``AutoModel`` loads; empty where that is the language model.
    """

    blocks: str
    final_norm: str
    heads: str
    attn_out: str
    mlp_out: str
    mlp_norm: str
    attention: Attention = "sdpa"
    masks: Literal["one", "by layer type"] = "one"
    language_model: str = ""


_LLAMA: Final = Family(
    blocks="layers",
    final_norm="norm",
    heads="self_attn.o_proj",
    attn_out="self_attn.o_proj",
    mlp_out="mlp",
    mlp_norm="post_attention_layernorm",
)
_GPT2: Final = Family(
    blocks="h",
    final_norm="ln_f",
    heads="attn.c_proj",
    attn_out="attn.c_proj",
    mlp_out="mlp",
    mlp_norm="ln_2",
)
_GEMMA3_TEXT: Final = Family(
    blocks="layers",
    final_norm="norm",
    heads="self_attn.o_proj",
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    masks="by layer type",
)
_QWEN: Final = replace(_LLAMA, masks="by layer type")
_GEMMA3: Final = replace(_GEMMA3_TEXT, language_model="language_model")
# Its attention scores are soft-capped before the softmax, which the fused kernel cannot do.
_GEMMA2: Final = replace(_GEMMA3_TEXT, attention="eager")

FAMILIES: Final[dict[str, Family]] = {
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3_TEXT,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "phi3": _LLAMA,
    "qwen2": _QWEN,
    "qwen3": _QWEN,
}
"""Families by the ``model_type`` of a model's config."""
