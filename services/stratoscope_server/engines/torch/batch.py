"""One batch: token ids in, and which of its rows are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from stratoscope_server.engines.protocol import EngineError, Prompt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Which rows of a batch's states become which rows of the answer, as tensors on one device.

    Attributes
    ----------
    plain_source, plain_row : int64 tensors of shape (n_plain,)
        Row of the states, and the row of the answer it becomes.
    pooled_source : int64 tensor of shape (n_pooled_positions,)
        Rows of the states that are averaged, segment after segment.
    pooled_length, pooled_row : int64 tensors of shape (n_pooled,)
        Length of each segment, and the row of the answer its mean becomes.
    """

    plain_source: torch.Tensor
    plain_row: torch.Tensor
    pooled_source: torch.Tensor
    pooled_length: torch.Tensor
    pooled_row: torch.Tensor

    def to(self, device: torch.device) -> Self:
        """Return the same index on another device."""
        return type(self)(
            self.plain_source.to(device),
            self.plain_row.to(device),
            self.pooled_source.to(device),
            self.pooled_length.to(device),
            self.pooled_row.to(device),
        )

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """Copy the rows of the answer out of a batch's states.

        Parameters
        ----------
        states : tensor of shape (n_sequences, n_tokens, width)

        Returns
        -------
        Tensor of shape (n_rows, width), never sharing memory with the states: in their type, or in float32, in which
        means are accumulated, if any row is pooled.
        """
        flat = states.reshape(-1, states.shape[-1])
        plain = flat.index_select(0, self.plain_source)
        if not len(self.pooled_row):
            return plain
        means = torch.segment_reduce(
            flat.index_select(0, self.pooled_source).float(), "mean", lengths=self.pooled_length, axis=0
        )
        rows = torch.empty(len(self.plain_row) + len(self.pooled_row), flat.shape[1], device=flat.device)
        rows.index_copy_(0, self.plain_row, plain.float())
        return rows.index_copy_(0, self.pooled_row, means)


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs in one forward pass.

    Attributes
    ----------
    token_ids : int64 tensor of shape (n_sequences, n_tokens)
    positions : int64 tensor of shape (n_sequences, n_tokens), or (1, n_tokens) where all have the same
        Of each token in its text.
    attended : bool tensor of shape (n_sequences, n_tokens, n_tokens), or None
        Which tokens of its sequence each one attends to; ``None`` for all up to it.
    rows
        On the host.
    owners : sequence of str, length n_rows
        Stimulus id of each row of the answer.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    attended: torch.Tensor | None
    rows: RowIndex
    owners: Sequence[str]


def row_owners(prompts: Sequence[Prompt]) -> list[str]:
    """Return the stimulus id of each row of the answer."""
    return [prompt.stimulus_id for prompt in prompts for _ in range(prompt.n_rows)]


def check_positions(prompt: Prompt) -> None:
    """Refuse a prompt without tokens, or one that asks for a position it does not have."""
    if not prompt.n_tokens:
        raise EngineError("empty_stimulus", f"stimulus {prompt.stimulus_id!r} has no tokens", status=422)
    for spec in prompt.rows:
        if not len(spec.positions) or spec.positions.min() < 0 or spec.positions.max() >= prompt.n_tokens:
            raise EngineError(
                "bad_positions",
                f"stimulus {prompt.stimulus_id!r}: selector {spec.selector!r} asks for positions "
                f"{spec.positions.tolist()} of {prompt.n_tokens} tokens",
            )


def index_rows(prompts: Sequence[Prompt], places: Sequence[IntArray]) -> RowIndex:
    """Say which rows of a batch's states become which rows of the answer.

    Parameters
    ----------
    places
        For each prompt, the row of the states at which each of its tokens is.
    """
    plain_source: list[int] = []
    plain_row: list[int] = []
    pooled_source: list[int] = []
    pooled_length: list[int] = []
    pooled_row: list[int] = []
    row = 0
    for prompt, place in zip(prompts, places, strict=True):
        for spec in prompt.rows:
            sources = place[spec.positions].tolist()
            if spec.pooled:
                pooled_source += sources
                pooled_length.append(len(sources))
                pooled_row.append(row)
            else:
                plain_source += sources
                plain_row += range(row, row + len(sources))
            row += spec.n_rows
    lists = (plain_source, plain_row, pooled_source, pooled_length, pooled_row)
    return RowIndex(*(torch.tensor(numbers, dtype=torch.int64) for numbers in lists))
