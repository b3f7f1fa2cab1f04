"""Collects into a run with small requests and shards, as a program of its own that can die or meddle at any step.

`python -m tests.faults.collecting URL RUN TABLE [OPTIONS]`; see `main`.
"""

import argparse
import os
import signal
import stat
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final

import polars as pl

from stratoscope.cli import exits
from stratoscope.client import Client
from stratoscope.collection import CollectSettings, collect
from stratoscope.errors import StratoscopeError
from stratoscope.stimuli import StimulusTable
from stratoscope.store import writer
from stratoscope.store.ledger import Ledger
from tests.faults.filling import fill

BEFORE_A_SHARD: Final = ("plan", "receive")
OF_A_SHARD: Final = ("write", "fsync file", "check", "rename", "fsync folder", "commit", "manifest")
"""Steps of a commit in the order in which the specification has them; `steps_of_a_commit` sees whether they are."""

GO: Final = "collecting"
"""Printed once everything is imported and begins."""


class Stepper:
    """Sees every step of a collection, and does something at some of them, once each.

    Parameters
    ----------
    acts
        What to do at a step such as ``before rename``. Steps of a shard count from the first shard's writing.
    trace
        Where to write the steps, a line each.
    """

    def __init__(self, acts: dict[str, Callable[[], None]], trace: Path | None) -> None:
        self._acts = acts
        self._trace = None if trace is None else trace.open("a", buffering=1)
        self._writing = False

    def watch(self) -> None:
        for owner, attribute, name in (
            (writer.RunWriter, "enter", "plan"),
            (Client, "try_fetch", "receive"),
            (writer, "write_shard", "write"),
            (writer, "check_shard", "check"),
            (os, "replace", "rename"),
            (Ledger, "commit_shard", "commit"),
            (writer.RunWriter, "write_manifest", "manifest"),
        ):
            self._around(owner, attribute, partial(_always, name))
        self._around(os, "fsync", _kind_of_sync)

    def _around(self, owner: Any, attribute: str, name_of: Callable[[tuple[Any, ...]], str]) -> None:
        function: Callable[..., Any] = getattr(owner, attribute)

        @wraps(function)
        def seen(*arguments: Any, **options: Any) -> Any:
            name = name_of(arguments)
            self._step(f"before {name}")
            result = function(*arguments, **options)
            self._step(f"after {name}")
            return result

        setattr(owner, attribute, seen)

    def _step(self, step: str) -> None:
        name = step.partition(" ")[2]
        self._writing = self._writing or name == "write"
        if self._trace is not None:
            self._trace.write(f"{step}\n")
        if step in self._acts and (self._writing or name in BEFORE_A_SHARD):
            self._acts.pop(step)()


def _die() -> None:
    """End as a power failure would end the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def _always(name: str, _: tuple[Any, ...]) -> str:
    return name


def _kind_of_sync(arguments: tuple[Any, ...]) -> str:
    return "fsync folder" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else "fsync file"


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("run", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--fatal", default="", help="die at this step, such as 'before rename'")
    parser.add_argument("--full", default="", help="fill the run's file system at this step")
    parser.add_argument("--trace", type=Path, help="write the steps to this file")
    parser.add_argument("--request-bytes", type=int, default=4096)
    parser.add_argument("--shard-bytes", type=int, default=8192)
    parser.add_argument("--timeout", type=float, default=5)
    parser.add_argument("--concurrency", type=int, default=2)
    options = parser.parse_args(words)
    table = StimulusTable.from_frame(pl.read_csv(options.table))
    Stepper({options.fatal: _die, options.full: partial(fill, options.run)}, options.trace).watch()
    print(GO, flush=True)
    settings = CollectSettings(request_bytes=options.request_bytes, shard_bytes=options.shard_bytes, max_failures=10)
    try:
        with Client(options.url, timeout=options.timeout) as client:
            collect(table, options.run, client, layers=[3, 8], settings=settings, concurrency=options.concurrency)
    except (StratoscopeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return exits.exit_code(error)
    return exits.OK


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads may still wait for answers inside Arrow; the command ends in the same way.
    os._exit(code)
