"""The check at start that the sites are where the map of the architecture says: one known text, every site."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.protocol import Prompt, RowSpec, Tokenizer
from stratoscope_wire import Block, Column, ModelCard

_TEXT: Final = "A church and organ"
# One addition, rounded once: 2^-24 in float32 and 2^-9 in bfloat16, and room for sums that nearly cancel.
_TOLERANCE: Final = {"float32": 1e-5, "bfloat16": 2e-2}

States = Mapping[str, npt.NDArray[np.float32]]
"""By column name, float32 arrays of shape (n_tokens, width)."""


def known_prompt(tokenizer: Tokenizer) -> Prompt:
    """Return the prompt of the check, all positions of it."""
    token_ids = tokenizer.encode(_TEXT, add_special_tokens=True).token_ids
    rows = RowSpec("all", np.arange(len(token_ids), dtype=np.int32), pooled=False)
    return Prompt("self-check", token_ids, (rows,))


def states_of(block: Block, columns: Sequence[Column]) -> States:
    """Return a float32 block's values by column."""
    return {column.name: values for column, values in zip(columns, block.values, strict=True)}


def check_sums(card: ModelCard, states: States) -> None:
    """Check that the residual stream adds up in every layer.

    Raises
    ------
    ModelRefusedError
        If ``resid_mid = resid_pre + attn_out`` or ``resid_post = resid_mid + mlp_out`` does not hold.
    """
    before = states["embed"]
    for layer in range(card.n_layers):
        middle, after = states[f"resid_mid.{layer}"], states[f"resid_post.{layer}"]
        _check_sum(card, f"resid_mid.{layer}", middle, before + states[f"attn_out.{layer}"])
        _check_sum(card, f"resid_post.{layer}", after, middle + states[f"mlp_out.{layer}"])
        before = after


def check_same(card: ModelCard, states: States, others: States, whose: str) -> None:
    """Check that two captures of the known text agree.

    Raises
    ------
    ModelRefusedError
        If a column differs by more than rounding.
    """
    for column, found in others.items():
        error = relative_error(found, states[column])
        if not error <= _TOLERANCE[card.dtype]:
            raise ModelRefusedError(
                f"model {card.model!r} failed the check at start: {column} differs between {whose} "
                f"(relative error {error:.1e})"
            )


def relative_error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Return the L2 norm of the difference over that of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _check_sum(card: ModelCard, column: str, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    error = relative_error(found, expected)
    if not error <= _TOLERANCE[card.dtype]:
        raise ModelRefusedError(
            f"model {card.model!r} failed the check at start: {column} is not the sum of what is added to it "
            f"(relative error {error:.1e}); {card.engine} {card.versions[_LIBRARY[card.engine]]} computes "
            f"{card.architecture} differently than this version of the server expects"
        )


_LIBRARY: Final = {"torch": "transformers", "vllm": "vllm"}
