"""The server command over the synthetic engine in the shape of a real model, whose answers are computed once.

The synthetic values take longer to compute than to send. Here the columns of a text are kept after the first request
for it, so that what is measured is the stream and not the arithmetic; the values are the synthetic engine's own.
Run as ``python -m throughput.remembered --port 0``.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

import numpy as np

from stratoscope_server import __main__ as command
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.synthetic import SyntheticTokenizer, activations, to_wire
from stratoscope_server.selection import row_keys
from stratoscope_server.settings import Settings
from stratoscope_wire import Block, Column, ModelCard, __version__
from stratoscope_wire.card import site_cards
from stratoscope_wire.dtypes import Values
from stratoscope_wire.request import Dtype

N_LAYERS: Final = 16
D_MODEL: Final = 2048
N_HEADS: Final = 32
"""Those of a model of a billion parameters."""


class RememberingRunner:
    """Gives every position of a text at the sites asked for, computed when it is first asked for."""

    tokenizer = SyntheticTokenizer()

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, str, Dtype], Values] = {}

    @property
    def card(self) -> ModelCard:
        """A card like that of a small Llama."""
        return ModelCard(
            model="synthetic-remembered",
            revision="1",
            architecture="synthetic",
            dtype="float32",
            n_layers=N_LAYERS,
            d_model=D_MODEL,
            n_heads=N_HEADS,
            d_head=D_MODEL // N_HEADS,
            vocab_size=50_000,
            max_tokens=4096,
            tokenizer_hash="crc32-words-1",
            engine="synthetic",
            versions={"stratoscope-server": __version__},
            sites=site_cards(N_LAYERS, D_MODEL, D_MODEL),
        ).signed()

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        """Give the rows of one text that is read at all its positions."""
        (prompt,) = prompts
        if [spec.selector for spec in prompt.rows] != ["all"]:
            raise ValueError("only select=['all'] is remembered")
        values = [self._column(prompt, column, dtype) for column in columns]
        return Block(*row_keys(prompts), values)

    def _column(self, prompt: Prompt, column: Column, dtype: Dtype) -> Values:
        ids = np.asarray(prompt.token_ids, np.int32)
        key = (ids.tobytes(), column.name, dtype)
        if key not in self._known:
            self._known[key] = to_wire(activations(ids, column), column, dtype)
        return self._known[key]


def main() -> int:
    """Serve until stopped."""
    settings = Settings.from_args(sys.argv[1:], os.environ)
    # One text a batch: a remembered block is then handed over as it is.
    return command.serve(settings, lambda: BatchedEngine(RememberingRunner(), max_batch_tokens=1))


if __name__ == "__main__":
    sys.exit(main())
