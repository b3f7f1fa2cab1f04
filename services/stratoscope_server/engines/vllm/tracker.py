"""The tracker: follows one prompt through the engine's steps by absolute position, so that each row comes once.

A prompt's positions may come in several chunks, may come again after a preemption, and may be skipped where the prefix
cache has them. The tracker takes each position when it comes first, ignores it when it comes again, and refuses a step
that leaves out a position that is wanted.
"""

from dataclasses import dataclass

import numpy as np

from stratoscope_server.engines.protocol import IntArray
from stratoscope_server.engines.vllm.ticket import Ticket, unpack_ints


class HoleError(Exception):
    """A position that is wanted was never computed where it could be read."""


@dataclass(frozen=True, slots=True)
class PooledShare:
    """What one step adds to one mean.

    Attributes
    ----------
    index
        Which of the ticket's means.
    positions
        Those of its positions that this step computes for the first time.
    done
        Whether the mean is complete with them.
    """

    index: int
    positions: IntArray
    done: bool


@dataclass(frozen=True, slots=True)
class Share:
    """What one step gives to one prompt.

    Attributes
    ----------
    positions, rows : int32 arrays of shape (n_rows,)
        Positions that are copied, and the rows of the prompt they become.
    pooled
        What it adds to means.
    """

    positions: IntArray
    rows: IntArray
    pooled: tuple[PooledShare, ...]


class Tracker:
    """One prompt's progress.

    Parameters
    ----------
    ticket
        What is wanted of it.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        positions, rows = unpack_ints(ticket.plain), unpack_ints(ticket.plain_rows)
        order = np.argsort(positions, kind="stable")
        self._positions, self._rows = positions[order], rows[order]
        self._pooled = [np.sort(unpack_ints(data)) for _, data in ticket.pooled]
        everything = np.concatenate([self._positions, *self._pooled])
        self._wanted = np.unique(everything)
        self._reached = 0

    @property
    def is_complete(self) -> bool:
        """Whether every wanted position has been taken."""
        return self._reached > int(self._wanted[-1])

    def take(self, start: int, stop: int) -> Share:
        """Take what a step over positions ``[start, stop)`` gives for the first time.

        Raises
        ------
        HoleError
            If a wanted position lies before `start` and was not taken yet.
        """
        missed = self._wanted[(self._wanted >= self._reached) & (self._wanted < start)]
        if len(missed):
            raise HoleError(
                f"position {missed[0]} was never computed: positions up to {self._reached} had come, the next step "
                f"began at {start}"
            )
        first = max(start, self._reached)
        self._reached = max(self._reached, stop)
        low, high = np.searchsorted(self._positions, [first, stop])
        return Share(self._positions[low:high], self._rows[low:high], self._pooled_shares(first, stop))

    def _pooled_shares(self, first: int, stop: int) -> tuple[PooledShare, ...]:
        shares = []
        for index, positions in enumerate(self._pooled):
            low, high = np.searchsorted(positions, [first, stop])
            if high > low:
                shares.append(PooledShare(index, positions[low:high], done=bool(high == len(positions))))
        return tuple(shares)
