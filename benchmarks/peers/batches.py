"""Texts to padded batches, the same way for every peer: sorted by length, padded on the right, with a mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """Some texts, padded to the longest.

    Attributes
    ----------
    rows
        Numbers of the texts.
    token_ids, mask : int64 tensors of shape (n_texts, n_tokens)
    """

    rows: list[int]
    token_ids: torch.Tensor
    mask: torch.Tensor

    @property
    def n_tokens(self) -> int:
        """Number of tokens, padding not counted."""
        return int(self.mask.sum())

    def last(self, states: torch.Tensor) -> torch.Tensor:
        """Return a copy of the last token's rows of states (n_texts, n_tokens, d_model)."""
        return states[torch.arange(len(self.rows)), self.mask.sum(dim=1) - 1]


def batches(tokenizer: Any, texts: Sequence[str], size: int) -> Iterator[Batch]:
    """Yield texts in batches of `size`, longest first."""
    ids: list[list[int]] = tokenizer(list(texts))["input_ids"]
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = len(ids[rows[0]])
        token_ids = torch.zeros((len(rows), width), dtype=torch.int64)
        mask = torch.zeros_like(token_ids)
        for place, row in enumerate(rows):
            token_ids[place, : len(ids[row])] = torch.tensor(ids[row])
            mask[place, : len(ids[row])] = 1
        yield Batch(rows, token_ids, mask)
