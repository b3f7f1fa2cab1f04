"""Collects into a run and kills itself at a chosen step. Run by the tests as a program of its own."""

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import polars as pl

from stratoscope.client import Client
from stratoscope.collection import CollectSettings, collect
from stratoscope.stimuli import StimulusTable
from stratoscope.store import writer
from stratoscope.store.ledger import Ledger


class Countdown:
    """Ends the process, as a power failure would end it, at a chosen step.

    Steps are counted from the first shard's writing; negative ones from the start of the program; 0 is never.
    """

    def __init__(self, fatal_step: int) -> None:
        self._fatal_step = fatal_step
        self._from_start = self._from_shard = 0

    def step(self, name: str) -> None:
        self._from_start += 1
        self._from_shard += bool(self._from_shard) or name == "before write_shard"
        if self._fatal_step in (-self._from_start, self._from_shard or None):
            print(name, flush=True)  # noqa: T201
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, attribute: str) -> None:
        """Count a step before and one after every call."""
        function: Callable[..., Any] = getattr(owner, attribute)

        @wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            self.step(f"before {attribute}")
            result = function(*arguments, **options)
            self.step(f"after {attribute}")
            return result

        setattr(owner, attribute, counted)


def main(url: str, run_dir: str, table: str, fatal_step: str) -> None:
    countdown = Countdown(int(fatal_step))
    for owner, attribute in ((os, "fsync"), (os, "replace"), (writer, "write_shard"), (Ledger, "commit_shard")):
        countdown.around(owner, attribute)
    with Client(url) as client:
        settings = CollectSettings(request_bytes=150, shard_bytes=600)
        collect(StimulusTable.from_frame(pl.read_csv(Path(table))), run_dir, client, settings=settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
