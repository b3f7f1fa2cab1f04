"""Which pairs meet in a block, so that lengths and, as far as can be, kinds do not show the label."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.study.designs.matching import matching
from stratoscope.study.designs.pair_tables import CONFUSABLE

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Block = tuple[int, int, int, int]

REPAIRED_LENGTH = 4.0
"""What equal lengths are worth where pairs are matched; an equal kind, first or second, is worth 1."""
MATCHED_LENGTH, SWAPPED_LENGTH = 0.25, 1.5
"""What equal lengths are worth in a block of analogies: where couples are matched, and where their pairs swap places.

An equal first kind is worth 1, and both kinds 2. Kinds go with relations, so they are settled first; pairs of equal
lengths are then found within the relations.
"""


def repaired_blocks(table: pl.DataFrame, articles: Collection[str], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Match pairs of different relations and topics.

    Parameters
    ----------
    table : polars.DataFrame
        Of `checked_pairs`.
    articles : collection of str
        Items (``first``, ``second``) whose article the text shows.
    rng : numpy.random.Generator

    Returns
    -------
    list of (int, int)
        Rows of `table`.
    """
    allowed = _differ(table, "relation") & ~_share_words(table, "topic")
    alike = _equal(_looks(table, "first", articles)) | _equal(_looks(table, "second", articles))
    kinds = _same(table, "first_kind") | _same(table, "second_kind")
    return matching(np.where(allowed, REPAIRED_LENGTH * alike + kinds, -np.inf), rng)


def analogy_blocks(table: pl.DataFrame, articles: Collection[str], rng: np.random.Generator) -> list[Block]:
    """Couple the pairs of a relation, match the couples of two relations, and let couples of a relation swap pairs.

    Parameters
    ----------
    table : polars.DataFrame
        Of `checked_pairs`.
    articles : collection of str
        Items (``first``, ``second``) whose article the text shows.
    rng : numpy.random.Generator

    Returns
    -------
    list of (int, int, int, int)
        Rows p1, p2, q1, q2 of `table`.
    """
    looks = zip(_looks(table, "first", articles), _looks(table, "second", articles), strict=True)
    alike = _equal([(a[0] + b[0], a[1:], b[1:]) for a, b in looks])
    kinds = _same(table, "first_kind") * (1.0 + _same(table, "second_kind"))
    apart = _differ(table, "relation")
    couples = np.array(matching(np.where(apart, -np.inf, 1.0 * ~_share_words(table, "topic")), rng), dtype=np.intp)
    p1, p2 = couples.reshape(-1, 2).T
    score = np.maximum(*(_linked(alike, kinds, (p1, p2), (q1, q2)) for q1, q2 in ((p1, p2), (p2, p1))))
    allowed = (apart & ~_confusable(table))[np.ix_(p1, p1)]
    matched = matching(np.where(allowed, score, -np.inf), rng)
    blocks = np.array([[*couples[one], *couples[two]] for one, two in matched], dtype=np.intp).reshape(-1, 4)
    blocks = _swapped(blocks, table["relation"].to_list(), alike, kinds, rng)
    return [_turned(block, alike, kinds) for block in blocks.tolist()]


def kinds_match(table: pl.DataFrame, block: Sequence[int]) -> bool | None:
    """Whether a block has the same combinations of kinds in both labels; ``None`` if the table has no kinds.

    Parameters
    ----------
    table : polars.DataFrame
        Of `checked_pairs`.
    block : sequence of int
        Two or four rows of `table`.
    """
    if not {"first_kind", "second_kind"} <= set(table.columns):
        return None
    kinds = [table.row(row, named=True) for row in block]
    if len(kinds) == 2:
        return any(kinds[0][name] == kinds[1][name] for name in ("first_kind", "second_kind"))
    p1, p2, q1, q2 = ((row["first_kind"], row["second_kind"]) for row in kinds)
    return p1 == q2 or p2 == q1


def _linked(alike: Bools, kinds: Floats, p: tuple[NDArray[np.intp], ...], q: tuple[NDArray[np.intp], ...]) -> Floats:
    """Score of every couple of `p` with every couple of `q`; p1 does not meet q2 in a text, nor p2 q1."""
    one, two = np.ix_(p[0], q[1]), np.ix_(p[1], q[0])
    return np.asarray(MATCHED_LENGTH * (alike[one] | alike[two]) + np.maximum(kinds[one], kinds[two]))


def _score(block: Sequence[int], alike: Bools, kinds: Floats) -> float:
    p1, p2, q1, q2 = block
    return SWAPPED_LENGTH * bool(alike[p1, q2] or alike[p2, q1]) + float(max(kinds[p1, q2], kinds[p2, q1]))


def _turned(block: list[int], alike: Bools, kinds: Floats) -> Block:
    """Exchange q1 and q2 where this is better."""
    p1, p2, q1, q2 = block
    return max((p1, p2, q1, q2), (p1, p2, q2, q1), key=lambda turned: _score(turned, alike, kinds))


def _swapped(
    blocks: NDArray[np.intp], relations: list[str], alike: Bools, kinds: Floats, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Let two pairs of one relation change places between blocks, as long as that makes the two blocks better."""
    flat = blocks.flatten()
    places: dict[str, list[int]] = {}
    for place in rng.permutation(len(flat)).tolist():
        places.setdefault(relations[flat[place]], []).append(place)

    def best(place: int) -> float:
        start = place - place % 4
        return _score(_turned(flat[start : start + 4].tolist(), alike, kinds), alike, kinds)

    scores = [best(place) for place in range(len(flat))]
    top = 2 * max(scores, default=0.0)
    gained = True
    while gained:
        gained = False
        for one, two in ((one, two) for same in places.values() for k, one in enumerate(same) for two in same[:k]):
            before = scores[one] + scores[two]
            if before == top:
                continue
            flat[[one, two]] = flat[[two, one]]
            if best(one) + best(two) > before:
                gained = True
                for place in (one, two):
                    start = place - place % 4
                    scores[start : start + 4] = [best(place)] * 4
            else:
                flat[[one, two]] = flat[[two, one]]
    return flat.reshape(-1, 4)


def _looks(table: pl.DataFrame, item: str, articles: Collection[str]) -> list[tuple[int, str]]:
    """Length and article of every noun; the article is empty where the template does not show it."""
    shown = table[f"{item}_article"] if item in articles else pl.repeat("", len(table), eager=True)
    return [*zip(table[item].str.len_chars(), shown, strict=True)]


def _equal(keys: Sequence[object]) -> Bools:
    codes = np.unique([repr(key) for key in keys], return_inverse=True)[1]
    return np.asarray(codes[:, None] == codes)


def _differ(table: pl.DataFrame, column: str) -> Bools:
    return ~_equal(table[column].to_list())


def _same(table: pl.DataFrame, column: str) -> Bools:
    """Whether two pairs are equal in a column; never, if the table has none."""
    if column not in table.columns:
        return np.zeros((len(table), len(table)), dtype=bool)
    return _equal(table[column].to_list())


def _share_words(table: pl.DataFrame, column: str) -> Bools:
    """Whether two pairs have a word in common in a column; never, if the table has none."""
    if column not in table.columns:
        return np.zeros((len(table), len(table)), dtype=bool)
    words = [set(cell.split()) for cell in table[column]]
    holds = np.array([[word in some for word in sorted(set().union(*words))] for some in words], dtype=np.float32)
    return np.asarray(holds @ holds.T > 0)


def _confusable(table: pl.DataFrame) -> Bools:
    """Whether the relation of one pair is named by the other as confusable with its own."""
    if CONFUSABLE not in table.columns:
        return np.zeros((len(table), len(table)), dtype=bool)
    relations = table["relation"].to_list()
    named = [set((cell or "").split()) for cell in table[CONFUSABLE]]
    names = np.array([[one in some for one in relations] for some in named])
    return np.asarray(names | names.T)
