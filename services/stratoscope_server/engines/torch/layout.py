"""From prompts to the sequences of one forward pass, in which what prompts share stands once."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from stratoscope_server.engines.arranging import Row
from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.torch.batch import Batch, IntArray, check_positions, index_rows, row_owners


def lay_out(prompts: Sequence[Prompt], arrange: Callable[[Sequence[Prompt]], Sequence[Row]]) -> Batch:
    """Lay prompts out as sequences of one length.

    Where each sequence is one prompt, padded on the right, no mask is needed: attention is causal, so that nothing
    after a prompt's last token reaches its states. Where prompts are merged, each token attends to those before it in
    its own prompt, and has its position in it.

    Parameters
    ----------
    prompts
        At least one.
    arrange
        Puts them in rows; see `stratoscope_server.engines.arranging`.

    Raises
    ------
    EngineError
        If a prompt has no tokens or asks for a position it does not have: that row would be another prompt's.
    """
    for prompt in prompts:
        check_positions(prompt)
    rows = arrange(prompts)
    width = max(row.n_tokens for row in rows)
    merged = any(len(row.placed) > 1 for row in rows)
    token_ids = np.zeros((len(rows), width), np.int64)
    positions = np.tile(np.arange(width), (len(rows), 1))
    attended = np.tile(np.eye(width, dtype=np.bool_), (len(rows) if merged else 0, 1, 1))
    places: list[IntArray] = [np.empty(0, np.int64)] * len(prompts)
    for index, row in enumerate(rows):
        nodes = _nodes(prompts, row)
        for placed, path in zip(row.placed, nodes, strict=True):
            token_ids[index, path] = prompts[placed.prompt].token_ids
            positions[index, path] = np.arange(len(path))
            places[placed.prompt] = path + index * width
            if merged:
                _attend(attended[index], path)
        # Padded with a token of its own, not with a pad token: whatever follows a prompt is then as finite as it is.
        token_ids[index, row.n_tokens :] = token_ids[index, row.n_tokens - 1]
    return Batch(
        torch.from_numpy(token_ids),
        torch.from_numpy(positions if merged else positions[:1]),
        torch.from_numpy(attended) if merged else None,
        index_rows(prompts, places),
        row_owners(prompts),
    )


def _nodes(prompts: Sequence[Prompt], row: Row) -> list[IntArray]:
    """Return where each token of each of a row's prompts stands in the row."""
    nodes: list[IntArray] = []
    end = 0
    for placed in row.placed:
        shared = nodes[-1][: placed.n_shared] if nodes else np.empty(0, np.int64)
        n_own = prompts[placed.prompt].n_tokens - placed.n_shared
        nodes.append(np.concatenate([shared, np.arange(end, end + n_own)]))
        end += n_own
    return nodes


def _attend(attended: npt.NDArray[np.bool_], path: IntArray) -> None:
    attended[np.ix_(path, path)] = np.tri(len(path), dtype=np.bool_)
