"""Arranging prompts in rows, so that what they share is computed once and little is padding.

The tokens of a row's prompts form trees: causal attention makes the state of a token a function of the tokens up to it,
so that prompts which begin with the same tokens need them only once. Prompts are put in the order of their token ids,
where each shares with the one before it all that it shares with any. A row of one prompt is a tree without branches.

After tree attention in speculative decoding (SpecInfer, arXiv 2305.09781) and radix trees of prefixes (SGLang, arXiv
2312.07104), here for the forward passes of one request.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from stratoscope_server.engines.protocol import IntArray, Prompt

EQUAL_TOKENS: Final = 1024
"""Length of a row at which attention costs as much as the matrix products: less than in any model in use, so that long
rows are never thought too cheap."""

_SHORTEST_ROW: Final = 64
_WIDTHS: Final = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Placed:
    """A prompt's place in a row.

    Attributes
    ----------
    prompt
        Its index among the prompts arranged.
    n_shared
        How many of its first tokens it has in common with the prompt before it in the row, and so are there already.
    """

    prompt: int
    n_shared: int


@dataclass(slots=True)
class Row:
    """Prompts that are computed as one sequence.

    Attributes
    ----------
    placed
        The prompts in their order.
    n_tokens, n_rows
        Tokens that the row takes, and rows of the answer that are read from it.
    """

    placed: list[Placed] = field(default_factory=list)
    n_tokens: int = 0
    n_rows: int = 0

    def add(self, index: int, prompt: Prompt, n_shared: int) -> None:
        """Put a prompt behind the others."""
        self.placed.append(Placed(index, n_shared))
        self.n_tokens += prompt.n_tokens - n_shared
        self.n_rows += prompt.n_rows


class Queue:
    """Prompts that wait for a row, in an order in which each shares most with the one before it.

    Parameters
    ----------
    prompts, order
        The prompts, and the order in which they wait.
    shared
        How many tokens each has in common with the one before it in the order.
    """

    def __init__(self, prompts: Sequence[Prompt], order: Sequence[int], shared: Sequence[int]) -> None:
        self._prompts = prompts
        self._order = np.array(order)
        self._sizes = np.array([prompts[index].n_tokens for index in order])
        self._shared = np.array(shared)
        self._next = 0

    def __bool__(self) -> bool:
        return self._next < len(self._order)

    @property
    def n_own(self) -> int:
        """Tokens that the next prompt adds to a row that ends with the one before it."""
        return int(self._sizes[self._next] - self._shared[self._next])

    def add_next(self, row: Row) -> None:
        """Put the next prompt in a row."""
        index = int(self._order[self._next])
        row.add(index, self._prompts[index], int(self._shared[self._next]) if row.placed else 0)
        self._next += 1

    def fitting(self, n_tokens: int) -> int | None:
        """Return the place of the prompt of at most so many tokens of which the other rows gain most, if they do."""
        sizes, shared = self._sizes[self._next :], self._shared[self._next :]
        if not len(sizes) or n_tokens < 1:
            return None
        # Without it, the one after it shares with the one before it only what both shared with it.
        gains = np.where(sizes <= n_tokens, sizes - np.maximum(shared, np.append(shared[1:], 0)), 0)
        best = int(gains.argmax())
        return self._next + best if gains[best] > 0 else None

    def add_from(self, place: int, row: Row) -> None:
        """Put a prompt in a row out of its turn, where it shares nothing with the one before it."""
        index = int(self._order[place])
        row.add(index, self._prompts[index], 0)
        if place + 1 < len(self._order):
            self._shared[place + 1] = min(self._shared[place], self._shared[place + 1])
        self._order, self._sizes, self._shared = (
            np.delete(numbers, place) for numbers in (self._order, self._sizes, self._shared)
        )


def arrange(prompts: Sequence[Prompt]) -> list[Row]:
    """Return the rows of one batch that cost least."""
    return min(arrangements(prompts, max(map(_class_of, prompts))), key=cost)


def arrangements(prompts: Sequence[Prompt], shortest: int, longest: int | None = None) -> Iterator[list[Row]]:
    """Yield the ways to arrange prompts that are worth a comparison.

    Parameters
    ----------
    prompts
        At least one.
    shortest, longest
        Fewest and most tokens of a row that prompts are merged in; ``None`` for no limit.
    """
    yield apart(prompts)
    order, shared = _by_tokens(prompts)
    for width in (shortest * times for times in _WIDTHS):
        if longest is None or width <= longest:
            yield list(_fill(prompts, order, shared, width))


def apart(prompts: Sequence[Prompt]) -> list[Row]:
    """Return a row for each prompt, shortest first."""
    order = sorted(range(len(prompts)), key=lambda index: prompts[index].n_tokens)
    return list(_fill(prompts, order, [0] * len(prompts), 0))


def merged(prompts: Sequence[Prompt], width: int) -> list[Row]:
    """Return rows of at most a number of tokens, in which what neighbours share stands once."""
    return list(_fill(prompts, *_by_tokens(prompts), width))


def cost(rows: Sequence[Row]) -> float:
    """Return what one batch costs, in tokens: those of the padded batch, and the attention among them."""
    width = max(row.n_tokens for row in rows)
    return len(rows) * width * (1 + width / EQUAL_TOKENS)


def count_shared(first: IntArray, second: IntArray) -> int:
    """Return how many tokens two texts have in common from their beginning."""
    n_tokens = min(len(first), len(second))
    differing = np.flatnonzero(first[:n_tokens] != second[:n_tokens])
    return int(differing[0]) if len(differing) else n_tokens


def by_class(prompts: Sequence[Prompt]) -> dict[int, list[Prompt]]:
    """Return prompts by the shortest row that takes them, shortest first: a few long ones do not pad all others."""
    classes: dict[int, list[Prompt]] = {}
    for prompt in sorted(prompts, key=_class_of):
        classes.setdefault(_class_of(prompt), []).append(prompt)
    return classes


def _class_of(prompt: Prompt) -> int:
    width = _SHORTEST_ROW
    while width < prompt.n_tokens:
        width *= 4
    return width


def _fill(prompts: Sequence[Prompt], order: Sequence[int], shared: Sequence[int], width: int) -> Iterator[Row]:
    """Fill rows with prompts in their order, and what is left of a row with others that fit in."""
    queue = Queue(prompts, order, shared)
    while queue:
        row = Row()
        queue.add_next(row)
        while queue and row.n_tokens + queue.n_own <= width:
            queue.add_next(row)
        while (place := queue.fitting(width - row.n_tokens)) is not None:
            queue.add_from(place, row)
        yield row


def _by_tokens(prompts: Sequence[Prompt]) -> tuple[list[int], list[int]]:
    """Return the order of prompts by token ids, and how many tokens each has in common with the one before it."""
    keys = [prompt.token_ids.astype(">i4").tobytes() for prompt in prompts]
    order = sorted(range(len(prompts)), key=keys.__getitem__)
    shared = [
        count_shared(prompts[before].token_ids, prompts[index].token_ids) for before, index in itertools.pairwise(order)
    ]
    return order, [0, *shared]
