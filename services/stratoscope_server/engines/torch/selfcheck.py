"""The check at start that the sites are where the map of the architecture says."""

from typing import Final

import numpy as np
import numpy.typing as npt

from stratoscope_server.engines.protocol import EngineError, Prompt, RowSpec
from stratoscope_server.engines.torch.errors import ModelRefusedError
from stratoscope_server.engines.torch.runner import TorchRunner
from stratoscope_wire.sites import SITES

_TEXT: Final = "A church and organ"
# One addition, rounded once: 2^-24 in float32 and 2^-9 in bfloat16, and room for sums that nearly cancel.
_TOLERANCE: Final = {"float32": 1e-5, "bfloat16": 2e-2}

States = dict[str, npt.NDArray[np.float32]]


def check_sites(runner: TorchRunner) -> None:
    """Capture every column of one text and check that the residual stream adds up in every layer.

    Raises
    ------
    ModelRefusedError
        If a column is not computed exactly once with its published width, or
        ``resid_mid = resid_pre + attn_out`` or ``resid_post = resid_mid + mlp_out`` does not hold.
    """
    states = _capture(runner)
    before = states["embed"]
    for layer in range(runner.card.n_layers):
        middle, after = states[f"resid_mid.{layer}"], states[f"resid_post.{layer}"]
        _check_sum(runner, f"resid_mid.{layer}", middle, before + states[f"attn_out.{layer}"])
        _check_sum(runner, f"resid_post.{layer}", after, middle + states[f"mlp_out.{layer}"])
        before = after


def _capture(runner: TorchRunner) -> States:
    token_ids = runner.tokenizer.encode(_TEXT, add_special_tokens=True).token_ids
    rows = RowSpec("all", np.arange(len(token_ids), dtype=np.int32), pooled=False)
    columns = runner.card.columns(list(SITES))
    try:
        block = runner.run([Prompt("self-check", token_ids, (rows,))], columns, "float32")
    except EngineError as error:
        raise ModelRefusedError(f"model {runner.card.model!r} failed the check at start: {error}") from error
    return {column.name: values for column, values in zip(columns, block.values, strict=True)}


def _check_sum(
    runner: TorchRunner, column: str, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]
) -> None:
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not error <= _TOLERANCE[runner.card.dtype]:
        raise ModelRefusedError(
            f"model {runner.card.model!r} failed the check at start: {column} is not the sum of what is added to it "
            f"(relative error {error:.1e}); transformers {runner.card.versions['transformers']} computes "
            f"{runner.card.architecture} differently than this version of the server expects"
        )
