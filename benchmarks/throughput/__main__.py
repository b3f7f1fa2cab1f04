"""The benchmark of the whole, in one command: ``python -m throughput --scale full``.

Every stage runs in a fresh process, one after another. Writes ``throughput.csv``, a row for each figure and repetition,
and ``throughput.html``, one page of plots; stages that were not run keep no row.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl

from throughput import machine
from throughput.figure import Figure
from throughput.page import write_page
from throughput.results import table
from throughput.stages import STAGES

RESULTS: Final = Path(__file__).resolve().parent.parent / "results"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises
    ------
    SystemExit
        If a stage is unknown.
    """
    parser = argparse.ArgumentParser(prog="throughput", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--scale", choices=["small", "full"], default="full", help="small: minutes, for a look")
    parser.add_argument("--only", default=",".join(STAGES), help=f"stages, by commas, of {', '.join(STAGES)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args(arguments)
    chosen.only = chosen.only.split(",")
    if unknown := set(chosen.only) - STAGES.keys():
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, and return 1 if a stage failed: what the others found is written all the same."""
    chosen = parse(arguments)
    facts = machine.describe(f"python -m throughput --scale {chosen.scale} --only {','.join(chosen.only)}")
    tables: list[pl.DataFrame] = []
    failed: list[str] = []
    figures: list[Figure] = []
    for name in chosen.only:
        began = time.monotonic()
        found = run(name, chosen.scale)
        print(f"{name}: {'failed' if found is None else 'done'} in {time.monotonic() - began:.0f} s", flush=True)
        if found is None:
            failed.append(name)
        else:
            figures += found
            tables.append(table(found, facts))
    if tables:
        chosen.out.mkdir(parents=True, exist_ok=True)
        pl.concat(tables, how="diagonal_relaxed").write_csv(chosen.out / "throughput.csv")
        write_page(figures, facts, chosen.out)
        print(f"written: {chosen.out / 'throughput.csv'}, {chosen.out / 'throughput.html'}")
    if failed:
        print(f"failed: {', '.join(failed)}; see above", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, scale: str) -> list[Figure] | None:
    """Run a stage in a fresh process; ``None`` if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        if subprocess.run([sys.executable, "-m", "throughput.one", name, scale, out], check=False).returncode:
            return None
        return [Figure(**{**entry, "values": tuple(entry["values"])}) for entry in json.loads(out.read_text())]


if __name__ == "__main__":
    sys.exit(main())
