"""The table of related pairs keeps the promises of its datasheet."""

import re
from collections import Counter
from importlib.resources import files

import polars as pl
import pytest

TABLES = files("stratoscope") / "study" / "builtin" / "tables"
KINDS = {
    *("animal", "artefact", "body", "category", "event", "food", "group", "idea", "nature", "person", "place", "plant")
}
SOUNDS_LIKE_A_CONSONANT = ("eu", "one", "uni", "use", "ut")
SILENT_H = ("heir", "honest", "hono", "hour")


@pytest.fixture(scope="module")
def pairs() -> pl.DataFrame:
    return pl.read_csv(str(TABLES / "pairs.csv"))


def _nouns(pairs: pl.DataFrame) -> list[str]:
    return [*pairs["first"], *pairs["second"]]


def test_the_columns_are_the_documented_ones(pairs: pl.DataFrame) -> None:
    assert pairs.columns == [
        *["relation", "first", "second", "first_article", "second_article", "topic"],
        *["first_kind", "second_kind", "strength", "confusable"],
    ]
    assert pairs.drop("confusable").null_count().sum_horizontal().item() == 0


def test_at_least_twelve_relations_have_at_least_twenty_six_pairs_each(pairs: pl.DataFrame) -> None:
    sizes = pairs["relation"].value_counts()["count"]
    assert len(sizes) >= 12
    assert sizes.min() >= 26  # type: ignore[operator]


def test_no_word_is_in_two_nouns(pairs: pl.DataFrame) -> None:
    words = Counter(word for noun in _nouns(pairs) for word in noun.split())
    assert len(words) >= 2 * len(pairs)
    assert {word for word, n in words.items() if n > 1} == set()


def test_a_noun_is_one_or_two_lower_case_words(pairs: pl.DataFrame) -> None:
    assert [noun for noun in _nouns(pairs) if not re.fullmatch(r"[a-z]+( [a-z]+)?", noun)] == []


def test_the_two_nouns_of_a_pair_do_not_contain_each_other(pairs: pl.DataFrame) -> None:
    """Such a pair could be told by its spelling."""
    assert [
        pair for pair in pairs.select("first", "second").iter_rows() if pair[0] in pair[1] or pair[1] in pair[0]
    ] == []


@pytest.mark.parametrize("item", ["first", "second"])
def test_the_article_fits_the_sound_of_the_noun(pairs: pl.DataFrame, item: str) -> None:
    for noun, article in pairs.select(item, f"{item}_article").iter_rows():
        assert not noun.startswith((*SOUNDS_LIKE_A_CONSONANT, *SILENT_H)), f"{noun}: judge by hand"
        assert article == ("an" if noun[0] in "aeiou" else "a"), noun


def test_kinds_are_those_of_the_datasheet(pairs: pl.DataFrame) -> None:
    assert {*pairs["first_kind"], *pairs["second_kind"]} == KINDS


def test_topics_are_words_that_several_pairs_share(pairs: pl.DataFrame) -> None:
    topics = [cell.split() for cell in pairs["topic"]]
    assert all(len(set(words)) == len(words) >= 1 for words in topics)
    assert min(Counter(word for words in topics for word in words).values()) >= 5


def test_strengths_use_the_whole_scale(pairs: pl.DataFrame) -> None:
    assert pairs["strength"].dtype == pl.Int64
    share = {
        row["strength"]: row["count"] / len(pairs) for row in pairs["strength"].value_counts().iter_rows(named=True)
    }
    assert set(share) == {1, 2, 3, 4, 5}
    assert min(share.values()) >= 0.08
    assert max(share.values()) <= 0.35


def test_every_relation_has_weak_and_strong_pairs(pairs: pl.DataFrame) -> None:
    for (relation,), part in pairs.group_by("relation"):
        assert (part["strength"] == 1).sum() >= 2, relation
        assert (part["strength"] >= 4).sum() >= 5, relation


def test_confusable_relations_name_each_other(pairs: pl.DataFrame) -> None:
    named = {
        relation: set((part["confusable"][0] or "").split())
        for (relation,), part in pairs.group_by("relation")
        if part["confusable"].n_unique() == 1
    }
    assert set(named) == set(pairs["relation"])
    assert sum(map(len, named.values())) > 0
    assert all(relation in named[other] for relation, others in named.items() for other in others)
    assert all(relation not in others for relation, others in named.items())


def test_the_datasheet_counts_the_pairs_as_they_are(pairs: pl.DataFrame) -> None:
    sheet = (TABLES / "pairs.md").read_text(encoding="utf-8")
    assert f"{len(pairs)} pairs" in sheet
    for (relation,), part in pairs.group_by("relation"):
        counts = " | ".join(str((part["strength"] == strength).sum()) for strength in (1, 2, 3, 4, 5))
        rows = [line for line in sheet.splitlines() if line.startswith(f"| `{relation}` |") and line.endswith("|")]
        assert any(row.endswith(f"| {counts} |") for row in rows), f"{relation}: {counts}"
