"""Stimuli, and sizes at which a few of them make a request and a few requests make a shard."""

from pathlib import Path
from typing import Final

import polars as pl

from stratoscope.collection import CollectSettings
from stratoscope.stimuli import StimulusTable
from stratoscope.store.run import Run

N: Final = 30
SMALL: Final = CollectSettings(request_bytes=150, shard_bytes=600)


def make_table(n: int = N, **changes: str) -> StimulusTable:
    """Make a table of n texts; a keyword such as s3 replaces the text of that stimulus."""
    rows = [{"id": f"s{k}", "text": f"stimulus number {k}", "label": k % 2} for k in range(n)]
    return StimulusTable.from_frame(
        pl.DataFrame([row | {"text": changes.get(str(row["id"]), row["text"])} for row in rows])
    )


def ids_in(run_dir: Path, shard: str) -> list[str]:
    """Return the stimuli that the ledger has in a shard, in the order of the table."""
    records = Run.open(run_dir, allow_incomplete=True)._all_records
    return [record.id for record in records if record.shard == shard]
