"""Which kind of file system a folder is on: SQLite's write-ahead log is not safe on one that several hosts share."""

from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")
NETWORK_TYPES: Final = ("nfs", "cifs", "smb", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.")
"""Beginnings of the names of file systems that are, or may be, reached over a network."""


def is_on_network(folder: Path) -> bool:
    """Tell whether a folder is on a network file system; ``False`` where the system does not say."""
    try:
        mounts = MOUNTS.read_text()
    except OSError:
        return False
    return filesystem_type(folder.resolve(), mounts).startswith(NETWORK_TYPES)


def filesystem_type(folder: Path, mounts: str) -> str:
    """Find a folder's file system in the text of ``/proc/self/mountinfo``; empty if it is not there."""
    found = ""
    longest = -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        # Of two mounts on the same point the later one covers the earlier.
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = after.split()[0], len(point.parts)
    return found
