"""The server command over an engine that fails where it is told: by a mark in the id of a request's first stimulus.

``s0~raise@2`` makes the engine raise instead of yielding its block 2; see `MARKS`. `--pace SECONDS` as the first flag
makes every block take so long.
"""

import asyncio
import os
import re
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from stratoscope_server import __main__ as command
from stratoscope_server.engines.protocol import Engine, EngineError, EngineStatus, Job, Tokenizer
from stratoscope_server.settings import Settings
from stratoscope_wire import Block, ModelCard

MARK: Final = re.compile(r"~(\w+)@(\d+)$")
MARKS: Final = ("raise", "error", "early", "nan", "shape")
"""An unforeseen error; one that the engine names; an end without one; a block with a value that is not finite, or with
columns too narrow."""


@dataclass(frozen=True, slots=True)
class SteeredEngine:
    """An engine that does what the one inside does, until it is told to fail."""

    inner: Engine
    pace_s: float

    @property
    def card(self) -> ModelCard:
        return self.inner.card

    @property
    def tokenizer(self) -> Tokenizer:
        return self.inner.tokenizer

    @property
    def status(self) -> EngineStatus:
        return self.inner.status

    @property
    def max_stimulus_bytes(self) -> int | None:
        return self.inner.max_stimulus_bytes

    def refuse(self, job: Job) -> None:
        self.inner.refuse(job)

    async def start(self) -> None:
        await self.inner.start()

    async def capture(self, job: Job) -> AsyncGenerator[Block, None]:
        found = MARK.search(job.prompts[0].stimulus_id)
        kind, at = (found[1], int(found[2])) if found else ("", -1)
        number = 0
        async for block in self.inner.capture(job):
            await asyncio.sleep(self.pace_s)
            if number == at and kind == "early":
                return
            yield _spoiled(block, kind) if number == at else block
            number += 1
        if number <= at:
            _fail(kind)

    async def check_ready(self) -> None:
        await self.inner.check_ready()

    async def wait_failed(self) -> EngineError:
        return await self.inner.wait_failed()

    async def close(self) -> None:
        await self.inner.close()


def _spoiled(block: Block, kind: str) -> Block:
    if kind == "nan":
        values = [np.array(column) for column in block.values]
        values[-1][0, 0] = np.nan
        return replace(block, values=values)
    if kind == "shape":
        return replace(block, values=[column[:, 1:] for column in block.values])
    _fail(kind)
    raise AssertionError


def _fail(kind: str) -> None:
    if kind == "error":
        raise EngineError("planned", "the engine fails as it was told to", retryable=True)
    raise RuntimeError(f"the engine fails as it was told to: {kind}")


def main() -> int:
    flags = sys.argv[1:]
    pace_s = 0.0
    if flags[:1] == ["--pace"]:
        pace_s, flags = float(flags[1]), flags[2:]
    settings = Settings.from_args(flags, os.environ)
    load = command.engine_loader(settings)
    return command.serve(settings, lambda: SteeredEngine(load(), pace_s))


if __name__ == "__main__":
    sys.exit(main())
