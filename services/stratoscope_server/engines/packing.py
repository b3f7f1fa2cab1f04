"""Packing prompts into batches under a token budget."""

from collections.abc import Iterable, Iterator, Sequence

from stratoscope_server.engines.arranging import Placed, Row, apart, arrangements, by_class, cost
from stratoscope_server.engines.protocol import Prompt


class Packed(tuple[Prompt, ...]):
    """The prompts of a batch, and the rows that they are arranged in.

    Parameters
    ----------
    prompts
        In any order.
    rows
        Every prompt once, by its place among them.
    """

    rows: Sequence[Row]

    def __new__(cls, prompts: Iterable[Prompt], rows: Sequence[Row]) -> "Packed":
        """Make a batch."""
        batch = super().__new__(cls, prompts)
        batch.rows = rows
        return batch


def pack(prompts: Sequence[Prompt], max_batch_tokens: int, *, merge: bool = True) -> list[Packed]:
    """Group prompts so that what they share is computed once, little is padding, and no batch exceeds the budget.

    Prompts of like length are arranged in rows (see `stratoscope_server.engines.arranging`) in the way that costs
    least. A batch costs the tokens of its longest row times its number of rows; what is read of it is no more than the
    budget in rows either. A prompt beyond the budget is a batch of its own.

    Parameters
    ----------
    prompts
        In any order.
    max_batch_tokens
        Tokens per batch, at most: padding counted, and a shared prefix once.
    merge
        Whether what prompts share is computed once.

    Returns
    -------
    Batches of prompts, shorter ones first, so that the first rows leave early; within a batch in the order given.
    """
    packed: list[Packed] = []
    for width, group in by_class(prompts).items():
        arranged = arrangements(group, width, max_batch_tokens) if merge else [apart(group)]
        ways = [list(_batches(rows, max_batch_tokens)) for rows in arranged]
        best = min(ways, key=lambda batches: sum(map(cost, batches)))
        packed += [_packed(group, rows) for rows in best]
    return packed


def _batches(rows: Sequence[Row], max_batch_tokens: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    width = n_rows = 0
    for row in rows:
        width, n_rows = max(width, row.n_tokens), n_rows + row.n_rows
        if batch and (width * (len(batch) + 1) > max_batch_tokens or n_rows > max_batch_tokens):
            yield batch
            batch, width, n_rows = [], row.n_tokens, row.n_rows
        batch.append(row)
    yield batch


def _packed(group: Sequence[Prompt], rows: Sequence[Row]) -> Packed:
    chosen = sorted(placed.prompt for row in rows for placed in row.placed)
    places = {index: place for place, index in enumerate(chosen)}
    for row in rows:
        row.placed = [Placed(places[placed.prompt], placed.n_shared) for placed in row.placed]
    return Packed((group[index] for index in chosen), rows)
