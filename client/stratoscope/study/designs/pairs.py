"""Texts of related pairs and of two pairs each, in closed blocks: nouns or pairs alone say nothing of the label.

A block stays in one fold. Within it every noun (every pair, for analogies) is equally often in both labels at every
place, so that a classifier which adds up what it knows of nouns, or of pairs, is at chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from stratoscope.errors import StimulusError
from stratoscope.study.designs.blocks import analogy_blocks, kinds_match, repaired_blocks
from stratoscope.study.designs.pair_tables import STRENGTH, checked_pairs
from stratoscope.study.designs.slots import Slots, parse_slots

Row = dict[str, Any]


def repaired(pairs: pl.DataFrame, *, template: str, seed: int) -> pl.DataFrame:
    """Make texts of related pairs, and of the same nouns paired anew.

    A block is two pairs (a1, b1), (a2, b2) of different relations and without a common topic, and the re-paired
    (a1, b2), (a2, b1). Preferred are partners whose firsts are equally long and have the same article, or whose seconds
    are, and do: the lengths of texts are then the same in both labels. Next come partners of an equal first or
    second kind: the combinations of kinds are then the same, too. A pair that finds no partner is dropped.

    Parameters
    ----------
    pairs : polars.DataFrame
        See `checked_pairs`. Without ``topic`` and kinds nothing is asked of them.
    template : str
        With ``{first}`` and ``{second}``, and where wanted ``{first_article}`` and ``{second_article}``; a capital
        first letter (``{First_article}``) capitalizes.
    seed : int

    Returns
    -------
    polars.DataFrame
        ``text``, ``group`` (the block), ``first``, ``second``, ``related`` (1 or 0), ``relation`` (null for re-paired),
        ``first_relation`` (of the pair that ``first`` is from), with strengths ``relatedness`` (0 for re-paired) and
        ``strength`` (null for re-paired), with kinds ``kinds_match`` (1 where the block's combinations of kinds are the
        same in both labels), ``span.first`` and ``span.second`` (ranges). Four rows per block.

    Raises
    ------
    StimulusError
        If the table or the template cannot be used, or no two pairs can meet.
    """
    slots = parse_slots(template, ("first", "second"))
    table = checked_pairs(pairs, articles=slots.articles)
    blocks = repaired_blocks(table, slots.articles, np.random.default_rng(seed))
    if not blocks:
        raise StimulusError("no two pairs differ in relation and topic; a block of re-paired nouns needs two that do")
    rows = table.to_dicts()
    return pl.DataFrame(
        [
            _pair_text(slots, rows[first], rows[second], f"repaired-{number:04d}", kinds=kinds_match(table, (one, two)))
            for number, (one, two) in enumerate(blocks, start=1)
            for first, second in ((one, one), (two, two), (one, two), (two, one))
        ],
        infer_schema_length=None,
    )


def analogies(pairs: pl.DataFrame, *, template: str, seed: int) -> pl.DataFrame:
    """Make texts of two pairs, of one relation (valid) or of two (invalid).

    A block is pairs p1, p2 of one relation and q1, q2 of another: valid p1:p2, p2:p1, q1:q2, q2:q1, invalid p1:q1,
    q1:p1, p2:q2, q2:p2. Two relations of which one names the other as ``confusable`` never meet. Preferred are blocks
    in which p2 and q1, or p1 and q2, have the same kinds: the pairs of kinds that meet are then the same in both
    labels, so that comparing kinds does not give the answer. Preferred, too, are blocks in which such two are equally
    long with the same articles: lengths are then the same in both labels. Pairs that find no place are dropped.

    Parameters
    ----------
    pairs : polars.DataFrame
        See `checked_pairs`.
    template : str
        With ``{a}`` to ``{d}``, and where wanted ``{a_article}`` to ``{d_article}``; a capital first letter
        (``{A_article}``) capitalizes.
    seed : int

    Returns
    -------
    polars.DataFrame
        ``text``, ``group`` (the block), ``a``, ``b``, ``c``, ``d``, ``valid`` (1 or 0), ``relation_first``,
        ``relation_second``, with kinds ``kinds_match`` (as for `repaired`), ``span.a`` to ``span.d`` (ranges). Eight
        rows per block.

    Raises
    ------
    StimulusError
        If the table or the template cannot be used, or no block can be made.
    """
    slots = parse_slots(template, ("a", "b", "c", "d"))
    # One pair takes both places, so that its articles are needed if either place shows them.
    articles = {item for item, places in (("first", "ac"), ("second", "bd")) if slots.articles & set(places)}
    table = checked_pairs(pairs, articles=articles)
    blocks = analogy_blocks(table, articles, np.random.default_rng(seed))
    if not blocks:
        raise StimulusError(
            "an analogy block needs two pairs of one relation and two of another, not confusable with it"
        )
    rows = table.to_dicts()
    return pl.DataFrame(
        [
            _analogy_text(slots, rows[one], rows[two], f"analogy-{number:04d}", kinds=kinds_match(table, block))
            for number, block in enumerate(blocks, start=1)
            for p1, p2, q1, q2 in (block,)
            for couple in ((p1, p2), (q1, q2), (p1, q1), (p2, q2))
            for one, two in (couple, couple[::-1])
        ],
        infer_schema_length=None,
    )


def _pair_text(slots: Slots, one: Row, two: Row, group: str, *, kinds: bool | None) -> Row:
    """Row of the first noun of one pair and the second of another, or of the same."""
    related = one is two
    values = {name: row[name] for row, item in ((one, "first"), (two, "second")) for name in _columns(row, item)}
    text, spans = slots.filled(values)
    strength = one.get(STRENGTH)
    graded = {"relatedness": strength if related else 0, STRENGTH: strength if related else None}
    return {
        "text": text,
        "group": group,
        "first": one["first"],
        "second": two["second"],
        "related": int(related),
        "relation": one["relation"] if related else None,
        "first_relation": one["relation"],
        **({} if strength is None else graded),
        **({} if kinds is None else {"kinds_match": int(kinds)}),
        **spans,
    }


def _analogy_text(slots: Slots, one: Row, two: Row, group: str, *, kinds: bool | None) -> Row:
    """Row of two pairs in this order."""
    places = (("a", one, "first"), ("b", one, "second"), ("c", two, "first"), ("d", two, "second"))
    values = {name.replace(item, place): row[name] for place, row, item in places for name in _columns(row, item)}
    text, spans = slots.filled(values)
    return {
        "text": text,
        "group": group,
        **{place: row[item] for place, row, item in places},
        "valid": int(one["relation"] == two["relation"]),
        "relation_first": one["relation"],
        "relation_second": two["relation"],
        **({} if kinds is None else {"kinds_match": int(kinds)}),
        **spans,
    }


def _columns(row: Row, item: str) -> list[str]:
    return [name for name in (item, f"{item}_article") if name in row]
