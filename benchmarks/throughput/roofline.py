"""The matrix-product rate of this machine: what a model's forward pass can reach at most."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

N_TOKENS: Final = (128, 256, 512, 1024, 2048)
"""Tokens multiplied at once; the best counts."""

SQUARE: Final = 2048


@dataclass(frozen=True, slots=True)
class Work:
    """The matrix products of a model's blocks.

    Attributes
    ----------
    shapes
        How often each (inputs, outputs) occurs.
    n_layers, attention_width
        Of the products of queries, keys and values.
    dtype
        Of the weights.
    """

    shapes: Counter[tuple[int, int]]
    n_layers: int
    attention_width: int
    dtype: torch.dtype

    @classmethod
    def of(cls, blocks: nn.Module, config: Any) -> "Work":
        """Count the linear maps of a model's blocks."""
        linears = [module for module in blocks.modules() if isinstance(module, nn.Linear)]
        shapes = Counter((linear.in_features, linear.out_features) for linear in linears)
        width = config.num_attention_heads * config.hidden_size // config.num_attention_heads
        return cls(shapes, config.num_hidden_layers, width, linears[0].weight.dtype)

    @property
    def linear_operations(self) -> int:
        """Operations of a token in the linear maps: two for each weight."""
        return 2 * sum(n_in * n_out * count for (n_in, n_out), count in self.shapes.items())

    def operations(self, n_tokens: list[int]) -> float:
        """Operations of texts of these lengths: two products over the tokens up to each one, and the linear maps."""
        seen = sum(n * (n + 1) // 2 for n in n_tokens)
        return self.linear_operations * sum(n_tokens) + 4 * self.attention_width * self.n_layers * seen


def product_rate(work: Work, seconds: float) -> float:
    """Return operations per second of the model's own matrix products, at the best number of tokens.

    Parameters
    ----------
    seconds
        To measure each number of tokens for, at least.
    """
    return max(_rate(list(_products(work, n)), work.linear_operations * n, seconds) for n in N_TOKENS)


def square_rate(dtype: torch.dtype, seconds: float) -> float:
    """Return operations per second of one large square product."""
    a, b = torch.randn(SQUARE, SQUARE).to(dtype), torch.randn(SQUARE, SQUARE).to(dtype)
    return _rate([(a, b, 1)], 2 * SQUARE**3, seconds)


Product = tuple[torch.Tensor, torch.Tensor, int]


def _products(work: Work, n_tokens: int) -> Iterator[Product]:
    for (n_in, n_out), count in work.shapes.items():
        yield torch.randn(n_tokens, n_in).to(work.dtype), torch.randn(n_out, n_in).to(work.dtype), count


@torch.inference_mode()
def _rate(products: list[Product], operations: float, seconds: float) -> float:
    _multiply(products)
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until or not best:
        began = time.perf_counter()
        _multiply(products)
        best = max(best, operations / (time.perf_counter() - began))
    return best


def _multiply(products: list[Product]) -> None:
    for rows, weights, count in products:
        for _ in range(count):
            nn.functional.linear(rows, weights)
