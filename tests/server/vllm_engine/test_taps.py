"""Rows are copied at the moment they are computed: what a model overwrites later does not reach them.

vLLM's norms on a GPU write their results into their arguments; those on a CPU do not. So a small decoder that does
stands in here for what only a GPU would show.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from stratoscope_server.engines.vllm.taps import FAMILIES, attach

N_LAYERS, D_MODEL = 3, 8


def normed(x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(x / x.norm(dim=-1, keepdim=True))


class InPlaceNorm(nn.Module):
    """Like CUDA's ``fused_add_rms_norm``: results are written over the arguments."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            return normed(x)
        residual.add_(x)
        x.copy_(normed(residual))
        return x, residual


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o_proj = nn.Linear(D_MODEL, D_MODEL)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.o_proj(x.flip(0)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = InPlaceNorm(), InPlaceNorm()
        self.self_attn, self.mlp = Attention(), nn.Linear(D_MODEL, D_MODEL)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual, x = x, self.input_layernorm(x)
        else:
            x, residual = self.input_layernorm(x, residual)
        x, residual = self.post_attention_layernorm(self.self_attn(x), residual)
        return self.mlp(x), residual


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(Block() for _ in range(N_LAYERS))
        self.norm = InPlaceNorm()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Decoder()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = None
        for block in self.model.layers:
            x, residual = block(x, residual)
        return torch.as_tensor(self.model.norm(x, residual)[0])


def plain_states(model: Model, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute every site without any in-place operation."""
    states = {"embed": x.clone()}
    stream = x.clone()

    for layer, block in enumerate(model.model.layers):
        heads = normed(stream).flip(0)
        added = block.self_attn.o_proj(heads)
        stream = stream + added
        states |= {f"heads.{layer}": heads, f"attn_out.{layer}": added, f"resid_mid.{layer}": stream}
        added = block.mlp(normed(stream))
        stream = stream + added
        states |= {f"mlp_out.{layer}": added, f"resid_post.{layer}": stream}
    return states | {"final_norm": normed(stream)}


def capture(keep: Callable[[torch.Tensor], torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    model, found = Model(), {}
    with torch.inference_mode():
        attach(model, FAMILIES["llama"], N_LAYERS, lambda column, states: found.update({column: keep(states)}))
        x = torch.randn(5, D_MODEL)
        expected = plain_states(model, x)
        model(x.clone())
    return found, expected


def test_every_site_is_right_in_a_model_that_overwrites_its_states() -> None:
    found, expected = capture(torch.clone)
    assert found.keys() == expected.keys()
    for column, states in expected.items():
        torch.testing.assert_close(found[column], states, msg=column)


def test_kept_references_would_be_overwritten() -> None:
    found, expected = capture(lambda states: states)
    wrong = {column for column in expected if not torch.allclose(found[column], expected[column])}
    assert {"embed", "attn_out.0", "mlp_out.0", "resid_mid.0", "resid_post.0"} <= wrong


def test_a_model_with_other_modules_is_refused() -> None:
    with pytest.raises(AttributeError, match="pre_feedforward_layernorm"):
        attach(Model(), FAMILIES["gemma2"], N_LAYERS, lambda _column, _states: None)
    with pytest.raises(ValueError, match="the config names 4 layers, vLLM built 3"):
        attach(Model(), FAMILIES["llama"], 4, lambda _column, _states: None)
