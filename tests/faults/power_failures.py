"""F23: the power fails after every system call of a real collection, and the disk forgets what was not synced.

A collection is traced with strace, SQLite's own calls included. After each effect on the run's folder, a disk is laid
out that holds what was synced and some of what was not. What the client had been told is committed must be there; and
the same collection, started on that disk, must end with a whole run.
"""

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from stratoscope.client import Client
from stratoscope.collection import CollectSettings, collect
from stratoscope.errors import StratoscopeError
from stratoscope.stimuli import StimulusTable
from tests.faults.fault import ROOT, Fault, NotHereError, World
from tests.faults.power import Keep, PowerDisk, lay_out
from tests.faults.processes import ServerProcess, environment
from tests.faults.site import Site
from tests.faults.syscalls import Event, trace
from tests.faults.tally import Tally, one

N_STIMULI: Final = 40
COMMITTED: Final = b"after commit\n"
"""What the traced program writes down once a shard is committed."""


FORGOTTEN: Final[dict[str, Callable[[str], bool]]] = {
    "a shard's file": lambda path: path.endswith(".tmp"),
    "the folder of shards": lambda path: path.endswith("/shards"),
    "the ledger": lambda path: "ledger.sqlite" in path,
}
"""Syncs without which something must be lost."""


def fail_the_power(world: World) -> Tally:
    if shutil.which("strace") is None:
        raise NotHereError("needs strace, which tells what reached the disk")
    tally = Tally()
    with ServerProcess(world) as server, Client(server.url) as client:
        site = Site.make(world.folder / "site", server.url, N_STIMULI)
        events = trace(site.command("--trace", str(site.folder / "steps")), site.folder / "strace", ROOT, environment())
        assert site.judge(whole=True)[0].is_clean
        commits = _committed_stimuli(site.run)
        failures = list(_failures(world, site, events))
        print(f"{len(events)} events, {len(failures)} disks, {len(commits)} commits", flush=True)
        for name, wanted in FORGOTTEN.items():
            forgetful = [event for event in events if event.kind != "sync" or not wanted(event.path)]
            assert len(forgetful) < len(events), f"{name} must be synced"
            tally += one(_loses(world, site, forgetful, commits))
        chosen = failures if world.scale == "full" else world.random.sample(failures, 60)
        for number, (name, n_commits, found) in enumerate(chosen):
            told = frozenset().union(*commits[:n_commits])
            left = Site(world.folder / f"left{number}", site.url, site.texts)
            left.folder.mkdir()
            shutil.copy(site.table, left.table)
            lay_out(found, str(site.folder), left.folder)
            tally += _go_on(left, told, client, name)
            shutil.rmtree(left.folder)
    return tally


def _failures(world: World, site: Site, events: list[Event]) -> Iterator[tuple[str, int, dict[str, bytes | None]]]:
    """Yield every disk that may be found: what happened, how many commits the client was told, and the files."""
    disk = PowerDisk(str(site.folder))
    n_commits = 0
    seen = set()
    for number, event in enumerate(events):
        n_commits += event.kind == "write" and event.data == COMMITTED
        if Path(event.path).parent == site.folder and Path(event.path) != site.run:
            continue
        if not disk.do(event):
            continue
        for name, keep in _whims(world.random).items():
            found = disk.left(keep)
            key = (n_commits, tuple(found.items()))
            if hash(key) not in seen:
                seen.add(hash(key))
                yield f"{number} {event.kind} {Path(event.path).name}: {name} kept", n_commits, found


def _whims(chance: random.Random) -> dict[str, Keep]:
    """What the disk keeps of all that was not synced."""
    return {
        "nothing": lambda _: False,
        "everything": lambda _: True,
        "names": lambda kind: kind == "names",
        "data": lambda kind: kind == "data",
        "chance": lambda _: chance.random() < 0.5,
    }


def _loses(world: World, site: Site, events: list[Event], commits: list[frozenset[str]]) -> bool:
    """Whether a collection that synced less would lose something: then this fault is able to see it."""
    for _, n_commits, found in _failures(world, site, events):
        with tempfile.TemporaryDirectory(dir=world.folder) as folder:
            lay_out(found, str(site.folder), Path(folder))
            try:
                census = Site(Path(folder), site.url, site.texts).census(whole=False)
            except (sqlite3.Error, pa.ArrowException, AssertionError):
                return True
            if census.lost or census.wrong or frozenset().union(*commits[:n_commits]) - census.there:
                return True
    return False


def _go_on(left: Site, told: frozenset[str], client: Client, name: str) -> Tally:
    settings = CollectSettings(request_bytes=4096, shard_bytes=8192)
    try:
        before = left.census(whole=False)
        lost = len(told - before.there) + before.lost
        collect(StimulusTable.from_frame(pl.read_csv(left.table)), left.run, client, layers=[3, 8], settings=settings)
        outcome, _ = left.judge(whole=True)
    except (StratoscopeError, sqlite3.Error, AssertionError) as error:
        print(f"{name}: {type(error).__name__}: {error}", flush=True)
        return Tally(1)
    if lost or not outcome.is_clean:
        print(f"{name}: {lost} lost that were told to be committed; {outcome}", flush=True)
    return Tally(
        1, int(not lost) * outcome.survived, outcome.lost + lost, outcome.doubled, outcome.wrong + before.wrong
    )


def _committed_stimuli(run: Path) -> list[frozenset[str]]:
    """Return the stimuli of each commit, in order."""
    database = sqlite3.connect(run / "ledger.sqlite")
    shards = [name for (name,) in database.execute("SELECT name FROM shard ORDER BY rowid")]
    rows = database.execute("SELECT shard, id FROM stimulus").fetchall()
    database.close()
    return [frozenset(name for place, name in rows if place == shard) for shard in shards]


FAULTS: Final = (Fault("F23", "the power fails after every system call", fail_the_power, 120, 1800),)
