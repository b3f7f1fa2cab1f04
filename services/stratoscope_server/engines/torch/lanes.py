"""How many batches a model computes at a time, and with how many threads each.

On a CPU two batches with half of the threads each take less time than one after the other with all of them: threads
that share a batch wait for one another at the end of every small operation, and all of them wait for one that another
process has put aside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

AT_ONCE: Final = 2
"""On a CPU. Each more needs memory for the states of another batch."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """Where batches run.

    Attributes
    ----------
    count
        Batches at a time.
    enter
        Called on a thread before it runs a batch, with how many are to run at a time.
    """

    count: int
    enter: Callable[[int], None]


def lanes_on(device: torch.device) -> Lanes:
    """Return the lanes of a model on a device."""
    if device.type != "cpu":
        return Lanes(1, lambda _: None)
    n_threads = torch.get_num_threads()
    return Lanes(min(AT_ONCE, n_threads), lambda at_once: _divide(n_threads, at_once))


def _divide(n_threads: int, at_once: int) -> None:
    # Torch keeps the number for each thread, and takes the last one that was set for any as that of new threads.
    torch.set_num_threads(max(1, n_threads // at_once))
