"""The forest: prompts that begin alike, laid out so that what they share is computed once.

The tokens of all prompts form trees, one for each first token: a token's parent is the one before it, and prompts that
begin with the same tokens go the same way until they part. Causal attention makes the state of a token a function of
the tokens up to it, so that one node stands for that token of every prompt that goes through it. All nodes form one
sequence, each with its depth as its position, and each attends to its ancestors and itself. So no token is computed
twice, and none is padding.

After tree attention in speculative decoding (SpecInfer, arXiv 2305.09781) and radix trees of prefixes (SGLang, arXiv
2312.07104), here for the forward pass of one batch.
"""

from collections.abc import Sequence

import numpy as np
import torch

from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.torch.batch import Batch, IntArray, check_positions, index_rows, row_owners


class Forest:
    """Prompts merged by what they begin with."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}
        self.tokens: list[int] = []
        self.parents: list[int] = []

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.tokens)

    def add(self, prompt: Prompt) -> IntArray:
        """Add a prompt; return the node of each of its tokens, int64 of shape (n_tokens,)."""
        path, parent = [], -1
        for token in prompt.token_ids.tolist():
            node = self._nodes.setdefault((parent, token), len(self.tokens))
            if node == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(parent)
            path.append(node)
            parent = node
        return np.array(path, np.int64)

    def ancestors(self) -> torch.Tensor:
        """Return which nodes each node attends to: bool tensor of shape (n_nodes, n_nodes)."""
        seen = torch.zeros(len(self), len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        return seen

    def depths(self) -> IntArray:
        """Return the position of each node in its text, int64 of shape (n_nodes,)."""
        depths = np.zeros(len(self), np.int64)
        for node, parent in enumerate(self.parents):
            depths[node] = 0 if parent < 0 else depths[parent] + 1
        return depths


def merge(prompts: Sequence[Prompt]) -> Batch:
    """Lay prompts out as one sequence in which every shared prefix stands once.

    Raises
    ------
    EngineError
        If a prompt has no tokens or asks for a position it does not have.
    """
    for prompt in prompts:
        check_positions(prompt)
    forest = Forest()
    places = [forest.add(prompt) for prompt in prompts]
    return Batch(
        torch.tensor(forest.tokens, dtype=torch.int64)[None],
        torch.from_numpy(forest.depths())[None],
        forest.ancestors(),
        index_rows(prompts, places),
        row_owners(prompts),
    )
