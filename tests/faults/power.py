"""A disk on which a program's real effects take place, and which may forget those that were not synced."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from tests.faults.syscalls import Event

PAGE_BYTES: Final = 4096

Keep = Callable[[str], bool]
"""Decides whether an effect on ``data`` or ``names`` that was not synced has reached the disk."""


@dataclass(slots=True)
class Inode:
    """A file's contents: what is synced, and the writes and truncations after that."""

    synced: bytearray = field(default_factory=bytearray)
    changes: list[Event] = field(default_factory=list)

    def sync(self) -> None:
        self.synced = self.left(lambda _: True)
        self.changes = []

    def left(self, keep: Keep) -> bytearray:
        """What is found after the power failed; a write may reach the disk in part, page by page."""
        content = bytearray(self.synced)
        for change in self.changes:
            for page in _pages(change):
                if keep("data"):
                    _apply(content, page)
        return content


@dataclass(frozen=True, slots=True)
class Link:
    """A change of names: one goes, or one comes, or both in one step. A folder comes without an inode."""

    removes: str | None = None
    adds: str | None = None
    inode: Inode | None = None

    @property
    def folder(self) -> str:
        return str(PurePosixPath(self.adds or self.removes or "").parent)

    def apply(self, names: dict[str, Inode | None]) -> None:
        if self.removes is not None:
            names.pop(self.removes, None)
        if self.adds is not None:
            names[self.adds] = self.inode


@dataclass(slots=True)
class PowerDisk:
    """Everything under one folder, which itself is there for good.

    Attributes
    ----------
    visible
        Names as the program sees them.
    synced, links
        Names that are there for good, and the changes after that.
    """

    root: str
    visible: dict[str, Inode | None] = field(default_factory=dict)
    synced: dict[str, Inode | None] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    def do(self, event: Event) -> bool:
        """Let an effect take place; return whether it was one on this disk."""
        # SQLite's index of its log is made anew after a crash; it is written through memory, which is not seen here.
        if not f"{event.path}/".startswith(f"{self.root}/") or event.path.endswith("-shm"):
            return False
        if event.kind == "sync":
            self._sync(event.path)
        elif event.kind in ("write", "truncate"):
            inode = self.visible[event.path]
            assert inode is not None
            inode.changes.append(event)
        else:
            return self._link(event)
        return True

    def left(self, keep: Keep) -> dict[str, bytes | None]:
        """Return the files, and folders as ``None``, that are found after the power failed."""
        names = dict(self.synced)
        for link in self.links:
            if keep("names"):
                link.apply(names)
        found: dict[str, bytes | None] = {}
        for path in sorted(names):
            parent = str(PurePosixPath(path).parent)
            if parent == self.root or parent in found:
                inode = names[path]
                found[path] = None if inode is None else bytes(inode.left(keep))
        return found

    def _link(self, event: Event) -> bool:
        if event.kind == "create":
            if event.path in self.visible:
                return False
            link = Link(adds=event.path, inode=Inode())
        elif event.kind == "mkdir":
            link = Link(adds=event.path)
        elif event.kind == "unlink":
            link = Link(removes=event.path)
        else:
            link = Link(removes=event.path, adds=event.other, inode=self.visible[event.path])
        link.apply(self.visible)
        self.links.append(link)
        return True

    def _sync(self, path: str) -> None:
        inode = self.visible.get(path)
        if inode is not None:
            inode.sync()
            return
        for link in [link for link in self.links if link.folder == path]:
            link.apply(self.synced)
            self.links.remove(link)


def lay_out(found: dict[str, bytes | None], root: str, folder: Path) -> None:
    """Make files and folders as they were found, under another folder."""
    for path, content in found.items():
        place = folder / PurePosixPath(path).relative_to(root)
        if content is None:
            place.mkdir()
        else:
            place.write_bytes(content)


def _pages(change: Event) -> Iterator[Event]:
    if change.kind == "truncate":
        yield change
        return
    start = 0
    while start < len(change.data):
        stop = min(len(change.data), start + PAGE_BYTES - (change.offset + start) % PAGE_BYTES)
        yield Event("write", change.path, offset=change.offset + start, data=change.data[start:stop])
        start = stop


def _apply(content: bytearray, change: Event) -> None:
    end = change.offset + len(change.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if change.kind == "truncate":
        del content[change.offset :]
    else:
        content[change.offset : end] = change.data
