"""A run folder, the table it is collected from, and programs that collect into it."""

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tests.faults.collecting import GO
from tests.faults.fault import ROOT
from tests.faults.processes import environment
from tests.faults.scene import WORDS
from tests.faults.tally import Tally
from tests.faults.truth import Census, SyntheticTruth, Truth, check_run


def make_texts(n_stimuli: int) -> dict[str, str]:
    """Texts of one to nine tokens that differ from each other."""
    return {f"s{k}": " ".join([f"item{k}", *WORDS[: k % 8]]) for k in range(n_stimuli)}


@dataclass(frozen=True, slots=True)
class Site:
    """Where a collection takes place.

    Attributes
    ----------
    folder
        Holds the table and the run.
    url
        Of the server, or of what stands before it.
    texts
        By stimulus.
    """

    folder: Path
    url: str
    texts: Mapping[str, str]
    truth: Truth = field(default_factory=SyntheticTruth)

    @classmethod
    def make(cls, folder: Path, url: str, n_stimuli: int) -> "Site":
        folder.mkdir(parents=True, exist_ok=True)
        site = cls(folder, url, make_texts(n_stimuli))
        frame = pl.DataFrame(
            [{"id": name, "text": text, "label": k % 2} for k, (name, text) in enumerate(site.texts.items())]
        )
        frame.write_csv(site.table)
        return site

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def table(self) -> Path:
        return self.folder / "table.csv"

    @property
    def log(self) -> Path:
        return self.folder / "client.log"

    def command(self, *options: str) -> list[str]:
        return [
            sys.executable, "-m", "tests.faults.collecting", self.url, str(self.run), str(self.table), *options,
        ]  # fmt: skip

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start collecting; return once everything is imported and it begins."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(*options), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=log
            )
        assert process.stdout is not None
        assert process.stdout.readline().strip() == GO.encode(), self.log.read_text()[-2000:]
        process.stdout.close()
        return process

    def collect(self, *options: str, timeout_s: float = 120) -> int:
        """Collect to the end; return the exit status."""
        return self.start(*options).wait(timeout_s)

    def census(self, *, whole: bool) -> Census:
        if not (self.run / "ledger.sqlite").exists():
            return Census(frozenset(), lost=len(self.texts) if whole else 0)
        return check_run(self.run, self.texts, self.truth, whole=whole)

    def leftovers(self) -> list[str]:
        """Unfinished files that are still there."""
        return [str(path) for path in self.run.rglob(".*.tmp")]

    def judge(self, *, whole: bool, n_before: int = 0) -> tuple[Tally, int]:
        """Check the run once; return what is damaged, as one fault, and how many stimuli are there.

        Parameters
        ----------
        n_before
            Stimuli that were there before the fault.
        """
        census = self.census(whole=whole)
        lost = census.lost + max(0, n_before - len(census.there))
        good = not (lost or census.doubled or census.wrong)
        if not good:
            print(f"{time.strftime('%X')} {census.lost=} {census.doubled=} {census.wrong=} {n_before=}", flush=True)
        return Tally(1, int(good), lost, census.doubled, census.wrong), len(census.there)
