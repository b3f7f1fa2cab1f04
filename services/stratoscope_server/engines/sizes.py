"""Sizes of forward passes: how many prompts and tokens the model took at once, counted into classes."""

import bisect
from dataclasses import dataclass, field
from typing import Final

_BOUNDS: Final = tuple(1 << power for power in range(18))


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often each size occurred.

    Attributes
    ----------
    at_most
        By upper bound, ascending, the number of passes of at most that size.
    n_passes, total
        Number of all passes, and the sum of their sizes.
    """

    at_most: dict[int, int]
    n_passes: int
    total: int


@dataclass(slots=True)
class Sizes:
    """Counts sizes. Counted by one thread at a time, read on any."""

    _counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    _total: int = 0

    def add(self, size: int) -> None:
        """Count one pass."""
        self._counts[bisect.bisect_left(_BOUNDS, size)] += 1
        self._total += size

    def read(self) -> Distribution:
        """Return what was counted so far."""
        counts = list(self._counts)
        return Distribution(
            {bound: sum(counts[: index + 1]) for index, bound in enumerate(_BOUNDS)}, sum(counts), self._total
        )


@dataclass(slots=True)
class Passes:
    """The forward passes of an engine."""

    prompts: Sizes = field(default_factory=Sizes)
    tokens: Sizes = field(default_factory=Sizes)

    def add(self, n_prompts: int, n_tokens: int) -> None:
        """Count one pass."""
        self.prompts.add(n_prompts)
        self.tokens.add(n_tokens)
