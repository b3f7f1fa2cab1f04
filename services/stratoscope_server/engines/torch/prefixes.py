"""The check at start that a model computes texts which begin alike together as it does each alone."""

from typing import Final

import numpy as np

from stratoscope_server.engines.protocol import IntArray, Prompt, RowSpec
from stratoscope_server.engines.selfcheck import known_prompt, relative_error, states_of
from stratoscope_server.engines.torch.runner import TorchRunner
from stratoscope_wire.sites import SITES

PARITY: Final = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest relative L2 distance of a column between two ways of computing it."""


def shares_prefixes(runner: TorchRunner) -> bool:
    """Say whether every column of merged texts is within the bound of parity of that of each text alone."""
    columns = runner.card.columns(list(SITES))
    prompts = _branching(known_prompt(runner.tokenizer).token_ids)
    together = states_of(runner.run(prompts, columns, "float32"), columns)
    alone = [states_of(runner.run([prompt], columns, "float32"), columns) for prompt in prompts]
    errors = [
        relative_error(states, np.concatenate([each[column] for each in alone])) for column, states in together.items()
    ]
    return max(errors) <= PARITY[runner.card.dtype]


def _branching(token_ids: IntArray) -> list[Prompt]:
    """Make texts of some tokens, that part after a few of them and after all."""
    back = token_ids[::-1]
    texts = [
        token_ids,
        np.concatenate([token_ids[:2], back]),
        *(np.concatenate([token_ids, e]) for e in (token_ids, back)),
    ]
    return [
        Prompt(f"self-check {index}", text, (RowSpec("all", np.arange(len(text), dtype=np.int32), pooled=False),))
        for index, text in enumerate(texts)
    ]
