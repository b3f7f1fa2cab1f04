"""The loop that every peer's process runs: one JSON line in, one repetition, one JSON line out."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from peers.batches import Batch, batches

States = Mapping[str, torch.Tensor]
"""The last token's rows (n_texts, d_model) by column, such as ``resid_post.3``."""

Way = Callable[[Sequence[str], int], tuple[States, int]]
"""Runs texts, so many at once; returns their states, in the order of the texts, and the number of tokens."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A peer with its model.

    Attributes
    ----------
    ways
        By name.
    """

    ways: Mapping[str, Way]


def repeat(load: Callable[[str, torch.dtype], Loaded], packages: Sequence[str]) -> None:
    """Load what ``argv`` says and answer orders until the input ends.

    Parameters
    ----------
    load
        Takes the model's folder and the type it computes in.
    packages
        Whose versions are told.
    """
    # Libraries print as they like; what is answered must not be mixed with it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    start = json.loads(sys.argv[1])
    torch.set_num_threads(start["threads"])
    loaded = load(start["model"], getattr(torch, start["dtype"]))
    versions = {package: version(package) for package in packages}
    print(json.dumps({"ways": list(loaded.ways), "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(loaded, json.loads(line))), file=answers, flush=True)


def answer(loaded: Loaded, order: Mapping[str, Any]) -> dict[str, float]:
    """Run texts one way and tell seconds and tokens; write the states to ``out`` if it is given."""
    began = time.perf_counter()
    states, n_tokens = loaded.ways[order["way"]](order["texts"], order["size"])
    seconds = time.perf_counter() - began
    if "out" in order:
        arrays: dict[str, Any] = {name: rows.float().numpy() for name, rows in states.items()}
        np.savez(order["out"], **arrays)
    return {"seconds": seconds, "tokens": n_tokens}


def batched(tokenizer: Any, run: Callable[[Batch], States]) -> Way:
    """Make a way of what runs one batch."""

    @torch.inference_mode()
    def way(texts: Sequence[str], size: int) -> tuple[States, int]:
        states: dict[str, torch.Tensor] = {}
        n_tokens = 0
        for batch in batches(tokenizer, texts, size):
            n_tokens += batch.n_tokens
            for name, rows in run(batch).items():
                states.setdefault(name, rows.new_empty((len(texts), rows.shape[1])))[batch.rows] = rows
        return states, n_tokens

    return way
