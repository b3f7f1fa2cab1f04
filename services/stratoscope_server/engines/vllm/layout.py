"""Where each column of a region lies: the one layout that the workers write and the server reads.

A region holds all rows of a few prompts, column after column, each column C-contiguous in the type of the wire: it *is*
the set of Arrow columns that is sent. Columns start at multiples of 64 bytes, as Arrow recommends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from stratoscope_wire import Column

ALIGNMENT: Final = 64
SHARDED_SITE: Final = "heads"
"""The one site of which each tensor-parallel rank computes a slice; all others are the same on every rank."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands among the ranks that copy rows out.

    Attributes
    ----------
    rank, n_ranks
        In the tensor-parallel group.
    exit, n_exits
        Which of the ranks on the server's own host this is, and how many they are; `exit` is ``None`` on another host,
        whose memory the server cannot share.
    """

    rank: int
    n_ranks: int
    exit: int | None
    n_exits: int

    @property
    def slices_shards(self) -> bool:
        """Whether each rank copies its own slice of a sharded site; otherwise the slices are gathered first."""
        return self.n_exits == self.n_ranks


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring columns of one width and kind, which are copied as one array.

    Attributes
    ----------
    columns
        Their places in the capture's order of columns.
    width
        Values per row of each.
    sharded
        Whether each rank computes only its slice of a row.
    """

    columns: range
    width: int
    sharded: bool

    def owned(self, place: Place, rotation: int) -> range:
        """Return the columns that a worker copies out.

        Column ``i`` belongs to exit ``(i + rotation) mod n_exits``, so that every rank's link carries its share; of a
        sharded site each rank copies its slice of every column.
        """
        if place.exit is None:
            return self.columns[:0]
        if self.sharded and place.slices_shards:
            return self.columns
        return self.columns[(place.exit - rotation - self.columns.start) % place.n_exits :: place.n_exits]

    def slice(self, place: Place) -> tuple[int, int]:
        """Return the first value of a row that a worker copies, and how many."""
        if self.sharded and place.slices_shards:
            width = self.width // place.n_ranks
            return place.rank * width, width
        return 0, self.width


def aligned(n_bytes: int) -> int:
    """Return the next multiple of `ALIGNMENT`."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def split_runs(columns: Sequence[Column]) -> tuple[Run, ...]:
    """Split a capture's columns into runs."""
    return tuple(_split(columns))


def column_offsets(columns: Sequence[Column], n_rows: int, value_bytes: int) -> list[int]:
    """Return where each column starts in a region of `n_rows` rows, and last where the region ends, in bytes."""
    offsets = [0]
    for column in columns:
        size = n_rows * column.width * value_bytes
        offsets.append(offsets[-1] + aligned(size))
    return offsets


def _split(columns: Sequence[Column]) -> Iterator[Run]:
    start = 0
    for index, column in enumerate(columns):
        following = columns[index + 1] if index + 1 < len(columns) else None
        if following is None or _kind(following) != _kind(column):
            yield Run(range(start, index + 1), column.width, column.site == SHARDED_SITE)
            start = index + 1


def _kind(column: Column) -> tuple[int, bool]:
    return column.width, column.site == SHARDED_SITE
