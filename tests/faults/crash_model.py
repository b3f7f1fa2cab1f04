"""A disk that may forget whatever was not synced, and a run on it: pure, so that every crash can be tried.

Two shards, A and B, are committed one after the other. The power may fail after every step; then any subset of the
effects that were not synced has reached the disk. After it, the run is recovered and what is missing is fetched anew.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Final, Literal

SHARDS: Final = ("A", "B")

Content = Literal["whole", "unsynced", "torn"]
Reader = Literal["ledger", "glob"]
Link = tuple[str, str | None, str]
"""A change of the folder: the new name, the old name if there is one, and the file."""

COMMIT: Final = ("write", "fsync file", "rename", "fsync folder", "commit")
"""The steps of a commit that leave something on a disk, in the order in which the client takes them."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a run is written, recovered and read.

    Attributes
    ----------
    steps
        Of one shard's commit. ``commit stimuli`` and ``commit shard`` are the halves of a commit in two transactions.
    full
        Whether SQLite syncs each transaction, or may lose the last ones.
    sweeps
        Whether recovery sets aside files that the ledger does not know.
    adopts
        Steps by which recovery takes in a whole file that the ledger does not know; none: it is set aside.
    reader
        Whether readers ask the ledger which files count, or take all.
    """

    steps: tuple[str, ...] = COMMIT
    full: bool = True
    sweeps: bool = True
    adopts: tuple[str, ...] = ()
    reader: Reader = "ledger"


@dataclass(frozen=True, slots=True)
class Disk:
    """Files by their shard, names in the folder, and the ledger; and what of it is not synced yet."""

    contents: dict[str, Content] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    ledger: tuple[str, ...] = ()
    transactions: tuple[tuple[str, ...], ...] = ()

    @property
    def entries(self) -> tuple[str, ...]:
        """What the ledger says to whoever reads it now, synced or not."""
        return self.ledger + sum(self.transactions, ())

    def after(self, step: str, shard: str, protocol: Protocol) -> "Disk":
        """Take one step."""
        if step == "write":
            link: Link = (f".{shard}.tmp", None, shard)
            return replace(self, contents=self.contents | {shard: "unsynced"}, links=(*self.links, link))
        if step == "fsync file":
            return replace(self, contents=self.contents | {shard: "whole"})
        if step == "rename":
            return replace(self, links=(*self.links, (shard, f".{shard}.tmp", shard)))
        if step == "fsync folder":
            return replace(self, names=_linked(self.names, self.links), links=())
        entries = [f"{kind} {shard}" for kind in ("shard", "stimuli") if step in ("commit", f"commit {kind}")]
        assert entries, f"{step} is no step of a commit"
        if protocol.full:
            return replace(self, ledger=(*self.ledger, *entries))
        return replace(self, transactions=(*self.transactions, tuple(entries)))

    def without_power(self) -> Iterator["Disk"]:
        """Every disk that may be found after the power failed."""
        n_unsynced = sum(content == "unsynced" for content in self.contents.values())
        for n_links in range(len(self.links) + 1):
            for links in combinations(self.links, n_links):
                for n_kept in range(len(self.transactions) + 1):
                    ledger = self.ledger + sum(self.transactions[:n_kept], ())
                    for torn in range(2**n_unsynced):
                        yield Disk(_after_power(self.contents, torn), _linked(self.names, links), ledger=ledger)


@dataclass(frozen=True, slots=True)
class Damage:
    """What a reader finds in the end."""

    lost: int
    doubled: int

    @property
    def is_none(self) -> bool:
        return not (self.lost or self.doubled)


def crashes(protocol: Protocol) -> Iterator[Disk]:
    """Every disk that a power failure may leave: after each step of two commits, whatever was not synced."""
    seen = set()
    disk = Disk()
    for shard in SHARDS:
        for step in ("", *protocol.steps):
            disk = disk.after(step, shard, protocol) if step else disk
            for left in disk.without_power():
                key = repr(left)
                if key not in seen:
                    seen.add(key)
                    yield left


def kills_and_crashes(protocol: Protocol) -> Iterator[Disk]:
    """Every disk after the process was killed at a step and, while the next one recovered the run, the power failed."""
    disk = Disk()
    for shard in SHARDS:
        for step in protocol.steps:
            disk = disk.after(step, shard, protocol)
            for recovering in recovery(disk, protocol):
                yield from recovering.without_power()


def recovered(disk: Disk, protocol: Protocol) -> Disk:
    """Return the disk once the next process has put it in order."""
    *_, last = recovery(disk, protocol)
    return last


def recovery(disk: Disk, protocol: Protocol) -> Iterator[Disk]:
    """Put the folder in order as the next process does, step by step."""
    yield disk
    names = _linked(disk.names, disk.links)
    for name, shard in names.items():
        if name.startswith("."):
            yield (disk := _unlinked(disk, name))
        elif f"shard {shard}" in disk.entries or not protocol.sweeps:
            continue
        elif protocol.adopts and disk.contents[shard] != "torn":
            for step in protocol.adopts:
                yield (disk := disk.after(step, shard, protocol))
        else:
            yield (disk := _unlinked(disk, name))


def finish(disk: Disk, protocol: Protocol) -> Disk:
    """Fetch anew what the ledger does not call done, and commit it undisturbed."""
    for shard in SHARDS:
        if f"stimuli {shard}" not in disk.entries:
            again = f"{shard}2"
            for step in COMMIT:
                disk = disk.after(step, again, replace(protocol, full=True))
    return disk


def damage(disk: Disk, protocol: Protocol) -> Damage:
    """Count what a reader of the finished run misses, and what it finds more than once."""
    files = {shard for name, shard in disk.names.items() if not name.startswith(".")}
    listed = {entry.partition(" ")[2] for entry in disk.ledger if entry.startswith("shard ")}
    read = listed if protocol.reader == "ledger" else files
    found = Counter(shard[0] for shard in read if shard in files and disk.contents[shard] == "whole")
    return Damage(lost=sum(found[shard] == 0 for shard in SHARDS), doubled=sum(found[shard] > 1 for shard in SHARDS))


def _linked(names: dict[str, str], links: tuple[Link, ...]) -> dict[str, str]:
    linked = dict(names)
    for new, old, shard in links:
        if old is not None:
            linked.pop(old, None)
        linked[new] = shard
    return linked


def _unlinked(disk: Disk, name: str) -> Disk:
    # Taking a name out is never what loses data here: at worst the file is found and set aside once more.
    names = {other: shard for other, shard in disk.names.items() if other != name}
    return replace(disk, names=names, links=tuple(link for link in disk.links if link[0] != name))


def _after_power(contents: dict[str, Content], torn: int) -> dict[str, Content]:
    """Let every file that was not synced be whole or torn, as the bits of a number say."""
    after: dict[str, Content] = {}
    number = 0
    for shard, content in contents.items():
        after[shard] = content
        if content == "unsynced":
            after[shard] = "torn" if torn >> number & 1 else "whole"
            number += 1
    return after
