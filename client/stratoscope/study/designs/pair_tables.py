"""Tables of related pairs: what the designs of pairs need of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import polars as pl

from stratoscope.errors import StimulusError

REQUIRED = ("relation", "first", "second")
OPTIONAL = ("topic", "first_kind", "second_kind")
CONFUSABLE = "confusable"
STRENGTH = "strength"


def checked_pairs(pairs: pl.DataFrame, *, articles: Collection[str]) -> pl.DataFrame:
    """Check a table of pairs, and bring it into an order that does not depend on that of its rows.

    Parameters
    ----------
    pairs : polars.DataFrame
        ``relation``, ``first`` and ``second`` (String). Optional: ``first_article``, ``second_article``; ``topic``
        (words separated by spaces), ``first_kind``, ``second_kind``; ``confusable`` (names of relations separated by
        spaces, may be empty); ``strength`` (a number above 0). An optional column that is there has no empty cell,
        but for ``confusable``.
    articles : collection of str
        Items (``first``, ``second``) whose article is needed.

    Returns
    -------
    polars.DataFrame
        Sorted by relation, first and second; other columns are gone.

    Raises
    ------
    StimulusError
        Naming the column or the pair at fault.
    """
    needed = [*REQUIRED, *(f"{item}_article" for item in ("first", "second") if item in articles)]
    missing = [name for name in needed if name not in pairs.columns]
    if missing:
        raise StimulusError(
            f"the table of pairs has no column {missing[0]!r}; it has {', '.join(pairs.columns)}. "
            + ("Add it, or take the article out of the template" if missing[0].endswith("_article") else "Add it")
        )
    words = [*needed, *(name for name in OPTIONAL if name in pairs.columns)]
    rows = pairs.to_dicts()
    if not rows:
        raise StimulusError("the table of pairs has no rows")
    for number, row in enumerate(rows, start=1):
        _check_row(row, words, f"pair {number} ({row['first']}, {row['second']})")
    _check_nouns(rows)
    known = [*words, *(name for name in (CONFUSABLE, STRENGTH) if name in pairs.columns)]
    return pairs.select(known).sort(REQUIRED)


def _check_row(row: Mapping[str, Any], words: list[str], name: str) -> None:
    for column in words:
        value = row[column]
        if not isinstance(value, str) or not value or value != value.strip():
            raise StimulusError(f"{name}: {column} is {value!r}; write words without blanks around them")
    if not isinstance(row.get(CONFUSABLE), str | None):
        raise StimulusError(f"{name}: {CONFUSABLE} is {row[CONFUSABLE]!r}; write names of relations, or nothing")
    strength = row.get(STRENGTH, 1)
    is_number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not is_number or not 0 < strength < np.inf:
        raise StimulusError(
            f"{name}: strength is {strength!r}; re-paired nouns count as 0, so it must be a number above 0. "
            "Shift the ratings, or drop the column"
        )


def _check_nouns(rows: list[dict[str, Any]]) -> None:
    """Refuse a noun in two places: the folds could not keep it on one side."""
    seen: dict[str, str] = {}
    for row in rows:
        pair = f"({row['first']}, {row['second']})"
        for noun in (row["first"], row["second"]):
            if (other := seen.setdefault(noun.casefold(), pair)) != pair or row["first"] == row["second"]:
                raise StimulusError(
                    f"{noun!r} is in the pairs {other} and {pair}; every noun may be in one pair, once. "
                    "`stratoscope study import --disjoint` keeps pairs that share none"
                )
    if len(seen) != 2 * len(rows):
        raise StimulusError(
            "a pair is in the table more than once, or has one noun twice; `stratoscope study import --disjoint` keeps "
            "it once"
        )


def disjoint(pairs: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Keep pairs that share no noun with each other, whatever its case.

    Pairs are taken in a random order that depends on their content and the seed alone; one with a noun that was taken
    before is left out, and so is a pair of twice the same noun. For tables in which nouns recur, such as BATS.

    Parameters
    ----------
    pairs : polars.DataFrame
        With ``relation``, ``first`` and ``second``; other columns stay.
    seed : int

    Returns
    -------
    polars.DataFrame
        Rows of `pairs`, in its order.
    """
    order = pairs.with_row_index("_row").sort(*REQUIRED, "_row")
    order = order[np.random.default_rng(seed).permutation(len(order))]
    taken: set[str] = set()
    kept = []
    for row, first, second in order.select("_row", "first", "second").iter_rows():
        nouns = {first.casefold(), second.casefold()}
        if len(nouns) == 2 and not nouns & taken:
            taken |= nouns
            kept.append(row)
    return pairs[sorted(kept)]
