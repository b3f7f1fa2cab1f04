"""A server whose engine falls ill: `python -m tests.faults.ill --illness hang --from-batch 2 FLAGS OF THE SERVER`."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from stratoscope_server.__main__ import engine_loader, serve
from stratoscope_server.engines.batched import BatchedEngine, Runner
from stratoscope_server.engines.protocol import EngineError, Prompt, Tokenizer
from stratoscope_server.settings import Settings
from stratoscope_wire import Block, Column, ModelCard
from stratoscope_wire.request import Dtype

Illness = Callable[[Runner, Block], Block]
"""From a runner and its good block to what is delivered instead."""


def hang(_runner: Runner, _block: Block) -> Block:
    time.sleep(3600)
    raise AssertionError


def bug(_runner: Runner, _block: Block) -> Block:
    raise ZeroDivisionError("a detail that is nobody's business")


def out_of_memory(runner: Runner, block: Block) -> Block:
    """As the device does it, where there is one."""
    if not hasattr(runner, "_forward"):
        raise EngineError("engine_oom", "the batch does not fit", status=503, retryable=True)
    import torch

    def fail(_batch: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    forward, runner._forward = runner._forward, fail
    try:
        return runner.run([_prompt_of(block)], runner.card.columns(["embed"]), "float32")
    finally:
        runner._forward = forward


def _prompt_of(_block: Block) -> Prompt:
    from stratoscope_server.selection import select_rows

    ids = np.array([5, 6], np.int32)
    return Prompt("s", ids, select_rows(("last",), 2, {}, np.zeros((2, 2), np.int32)))


def _changed(change: Callable[[list[Any]], list[Any]]) -> Illness:
    return lambda _, block: replace(block, values=change([values.copy() for values in block.values]))


def _after(seconds: float) -> Illness:
    def wait(_runner: Runner, block: Block) -> Block:
        time.sleep(seconds)
        return block

    return wait


def _with(value: float) -> Illness:
    def put(values: list[Any]) -> list[Any]:
        values[-1][-1, -1] = value
        return values

    return _changed(put)


ILLNESSES: Final[dict[str, Illness]] = {
    "hang": hang,
    "bug": bug,
    "oom": out_of_memory,
    "slow": _after(4.0),
    "paced": _after(0.05),
    "unwritten": _changed(lambda values: [np.empty_like(array) for array in values]),
    "nan": _with(float("nan")),
    "infinite": _with(float("inf")),
    "narrow": _changed(lambda values: [array[:, :-1] for array in values]),
    "short": _changed(lambda values: [array[:-1] for array in values]),
    "doubles": _changed(lambda values: [array.astype(np.float64) for array in values]),
    "a column too few": _changed(lambda values: values[:-1]),
    "a column too many": _changed(lambda values: [*values, values[-1]]),
    "no rows": lambda _, block: replace(
        block, stimulus_id=[], selector=[], position=block.position[:0], token_id=block.token_id[:0],
        values=[array[:0] for array in block.values],
    ),
    "all rows twice": lambda _, block: replace(
        block, stimulus_id=[*block.stimulus_id] * 2, selector=[*block.selector] * 2,
        position=np.tile(block.position, 2), token_id=np.tile(block.token_id, 2),
        values=[np.concatenate([array, array]) for array in block.values],
    ),
    "another stimulus": lambda _, block: replace(
        block, stimulus_id=["s1" if "s0" in block.stimulus_id else "s0"] * len(block.stimulus_id)
    ),
    "a stranger": lambda _, block: replace(block, stimulus_id=["stranger"] * len(block.stimulus_id)),
    "the wrong order": lambda _, block: replace(
        block, stimulus_id=block.stimulus_id[::-1], selector=block.selector[::-1], position=block.position[::-1],
        token_id=block.token_id[::-1], values=[np.ascontiguousarray(array[::-1]) for array in block.values],
    ),
}  # fmt: skip


class IllRunner:
    """A runner that delivers what an illness makes of its blocks, from the n-th batch on, and for so many batches."""

    def __init__(self, runner: Runner, illness: Illness, from_batch: int, n_batches: int) -> None:
        self._runner = runner
        self._illness = illness
        self._ill = range(from_batch, from_batch + n_batches)
        self._n_run = 0

    @property
    def card(self) -> ModelCard:
        return self._runner.card

    @property
    def tokenizer(self) -> Tokenizer:
        return self._runner.tokenizer

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        index, self._n_run = self._n_run, self._n_run + 1
        block = self._runner.run(prompts, columns, dtype)
        return self._illness(self._runner, block) if index in self._ill else block


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--illness", choices=ILLNESSES, required=True)
    parser.add_argument("--from-batch", type=int, default=0)
    parser.add_argument("--for-batches", type=int, default=1 << 30)
    options, flags = parser.parse_known_args(arguments)
    settings = Settings.from_args(flags, os.environ)

    return serve(settings, lambda: fall_ill(settings, options.illness, options.from_batch, options.for_batches))


def fall_ill(settings: Settings, illness: str, from_batch: int, n_batches: int) -> BatchedEngine:
    """Return the engine that the settings name, which falls ill at a batch, and for so many."""
    engine = engine_loader(settings)()
    assert isinstance(engine, BatchedEngine)
    engine._runner = IllRunner(engine._runner, ILLNESSES[illness], from_batch, n_batches)
    return engine


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    # As the server command does it: a thread that hangs is not waited for.
    os._exit(code)
