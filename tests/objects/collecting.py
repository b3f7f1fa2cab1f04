"""Collects into an object store and kills itself at a chosen step. Run by the tests as a program of its own."""

import sys
from pathlib import Path

import polars as pl

import stratoscope.store.desk as desks
from stratoscope.client import Client
from stratoscope.collection import CollectSettings, collect
from stratoscope.stimuli import StimulusTable
from stratoscope.store.ledger import Ledger
from stratoscope.store.objects import ObjectPath
from tests.client.collecting import Countdown


def main(url: str, run: str, desk: str, table: str, fatal_step: str) -> None:
    countdown = Countdown(-int(fatal_step))
    for owner, attribute in (
        (Ledger, "commit_shard"),
        (ObjectPath, "upload"),
        (ObjectPath, "write_bytes"),
        (ObjectPath, "unlink"),
        (desks, "ledger_name"),
    ):
        countdown.around(owner, attribute)
    with Client(url) as client:
        settings = CollectSettings(request_bytes=150, shard_bytes=600, desk=Path(desk))
        collect(StimulusTable.from_frame(pl.read_csv(Path(table))), run, client, settings=settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
