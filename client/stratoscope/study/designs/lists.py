"""Lists of items: whether the k-th item of a list has a property, where every text of a block holds the same items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from stratoscope.errors import StimulusError

SLOT = "{items}"
"""Where the list stands in a template."""

COLUMNS = ("object", "article", "head")
"""What a table of items must have beside its label."""

ARTICLES = ("A", "An")


class Item(NamedTuple):
    """One row of a table of items."""

    name: str
    article: str
    head: str
    has: int


def lists(items: pl.DataFrame, *, label: str, length: int, template: str, seed: int) -> pl.DataFrame:
    """Make closed blocks of lists, such as "An apple, a chair, a dog and a ladder".

    A block is `length` items, half of them with the property, in a random order, and the `length` rotations of that
    order. So every item of a block stands at every position once, every text of a block holds the same words, and the
    property of the k-th item is balanced in every block for every k: a bag of words is exactly at chance.

    No item is in two blocks, nor are two items of one head noun, so that `group` may be the block. Of a head noun one
    item is used, one with the rarer label if there is any. Items without a label (null) are left out. Of the others the
    surplus is dropped: the more frequent label has more items than the rarer one, and a last block may not be full.

    Since half of a list always has the property, the properties of the other items tell something of that of the k-th:
    for two positions the correlation is -1 / (`length` - 1), in expectation over seeds.

    Parameters
    ----------
    items : polars.DataFrame
        With the columns `object` (unique), `article` ("A" or "An"), `head` and the label; in any order of rows.
    label : str
        Name of the column that says whether an item has the property: 1, 0 or null.
    length : int
        Items of a list; even.
    template : str
        Text with "{items}" in one place. The first article has its capital letter where the list opens the template.
    seed : int
        Of the choice of items, of the blocks and of their orders.

    Returns
    -------
    polars.DataFrame of n_blocks * `length` rows
        `text`, `group` (block), `item_1` to `item_k` (String), and `LABEL_1` to `LABEL_k` (Int64, 0 or 1), where LABEL
        is `label` and k is `length`.

    Raises
    ------
    StimulusError
        If the length, the template or the table cannot be used, or the table does not fill one block.
    """
    if length < 2 or length % 2:
        raise StimulusError(f"length={length}: half of a list has the property; give an even length of 2 or more")
    if template.count(SLOT) != 1:
        raise StimulusError(f"template {template!r}: write {SLOT} once, where the list is to stand")
    rng = np.random.default_rng(seed)
    blocks = _blocks(_one_per_head(_read(items, label), rng), length, label)
    rows = [
        _row(order[start:] + order[:start], number, label, template)
        for number, block in enumerate(blocks, start=1)
        for order in [_shuffled(block, rng)]
        for start in range(length)
    ]
    return pl.DataFrame(rows)


def _read(items: pl.DataFrame, label: str) -> list[Item]:
    """Labelled items in alphabetical order."""
    missing = [name for name in (*COLUMNS, label) if name not in items.columns]
    if missing:
        raise StimulusError(f"items: column {missing[0]!r} is missing; the table has {', '.join(items.columns)}")
    if label in (*COLUMNS, "item"):
        raise StimulusError(f"label={label!r}: this name is taken; give the column of the property another one")
    labelled = items.filter(pl.col(label).is_not_null()).sort("object")
    read = [Item(*row) for row in labelled.select(*COLUMNS, label).iter_rows()]
    for item, following in zip(read, [*read[1:], None], strict=True):
        _check(item, label)
        if following and item.name == following.name:
            raise StimulusError(f"items: object {item.name!r} is there twice; keep one row of it")
    return [item._replace(has=int(item.has)) for item in read]


def _check(item: Item, label: str) -> None:
    """Refuse an item that cannot be written or has no head noun or no clear label."""
    if not item.name or not item.head:
        raise StimulusError(f"items: object {item.name!r} has the head {item.head!r}; give every object both")
    if item.article not in ARTICLES:
        raise StimulusError(f"items: object {item.name!r} has the article {item.article!r}; it must be 'A' or 'An'")
    if item.has not in (0, 1):
        raise StimulusError(f"items: {label} of {item.name!r} is {item.has!r}; it must be 0, 1 or null")


def _one_per_head(items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    """Draw one item of every head noun, in random order: one with the rarer label if there is any."""
    rarer = int(2 * sum(item.has for item in items) < len(items))
    rarer_first = sorted(_shuffled(items, rng), key=lambda item: item.has != rarer)
    of_head: dict[str, Item] = {}
    for item in rarer_first:
        of_head.setdefault(item.head, item)
    return list(of_head.values())


def _blocks(items: Sequence[Item], length: int, label: str) -> list[list[Item]]:
    """Deal items out to as many full blocks as there can be."""
    half = length // 2
    with_it, without = ([item for item in items if item.has == has] for has in (1, 0))
    n_blocks = min(len(with_it), len(without)) // half
    if not n_blocks:
        raise StimulusError(
            f"items: of different head nouns {len(with_it)} have {label} and {len(without)} do not; lists of {length} "
            f"need {half} of each. Add items, or shorten the lists."
        )
    return [with_it[i * half : (i + 1) * half] + without[i * half : (i + 1) * half] for i in range(n_blocks)]


def _row(order: Sequence[Item], number: int, label: str, template: str) -> dict[str, str | int]:
    """One text with its labels."""
    written = [f"{item.article.lower()} {item.name}" for item in order]
    if template.startswith(SLOT):
        written[0] = f"{order[0].article} {order[0].name}"
    return {
        "text": template.replace(SLOT, f"{', '.join(written[:-1])} and {written[-1]}"),
        "group": f"block-{number:03d}",
        **{f"item_{k}": item.name for k, item in enumerate(order, start=1)},
        **{f"{label}_{k}": item.has for k, item in enumerate(order, start=1)},
    }


def _shuffled(items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    return [items[i] for i in rng.permutation(len(items))]
