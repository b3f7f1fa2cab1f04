"""Lists of items: closed blocks in which words say nothing about the property of the k-th item."""

from collections import Counter, defaultdict
from importlib.resources import files
from string import ascii_lowercase

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from polars.testing import assert_frame_equal
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.svm import LinearSVC

from stratoscope.errors import StimulusError
from stratoscope.probes.folds import assign_folds, check_texts
from stratoscope.stimuli import StimulusTable
from stratoscope.study.designs.lists import lists

Array = NDArray[np.float64]

ITEMS = pl.read_csv(str(files("stratoscope") / "study" / "builtin" / "tables" / "items.csv"))
LENGTHS = (2, 4, 6, 8)
FOLDS = 5
LINEAR = {
    "logistic regression": LogisticRegression(),
    "linear support vector machine": LinearSVC(random_state=0),
}

every_length = pytest.mark.parametrize("length", LENGTHS)

KITCHEN = pl.DataFrame(
    {
        "object": ["apple", "chair", "dog", "egg", "crab apple", "stool"],
        "article": ["An", "A", "A", "An", "A", "A"],
        "head": ["apple", "chair", "dog", "egg", "apple", "stool"],
        "edible": [1, 0, 0, 1, 1, None],
    }
)


def edible_lists(length: int, *, seed: int = 0) -> pl.DataFrame:
    return lists(ITEMS, label="edible", length=length, template="{items}", seed=seed)


def slots(name: str, length: int) -> list[str]:
    return [f"{name}_{k}" for k in range(1, length + 1)]


def signs(frame: pl.DataFrame, label: str) -> NDArray[np.int64]:
    return frame[label].to_numpy().astype(np.int64)


def bag_of_words(frame: pl.DataFrame) -> Array:
    """How often every word stands in a text, articles and the last "and" included."""
    counts = CountVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(frame["text"].to_list())
    return np.asarray(counts.toarray(), dtype=np.float64)


def items_at_positions(frame: pl.DataFrame, length: int) -> Array:
    """Give every text one column per item at its position."""
    return frame.select(slots("item", length)).to_dummies().to_numpy().astype(np.float64)


def fold_scores(kind: str, x: Array, frame: pl.DataFrame, label: str) -> list[float]:
    """Balanced accuracy of every test fold when no block is in two folds."""
    y = signs(frame, label)
    fold_of = assign_folds(y.astype(np.float64), frame["group"].to_numpy(), n_folds=FOLDS)
    scores = []
    for fold in range(FOLDS):
        train, test = fold_of != fold, fold_of == fold
        fitted = clone(LINEAR[kind]).fit(x[train], y[train])
        scores.append(float(balanced_accuracy_score(y[test], fitted.predict(x[test]))))
    return scores


# What a list looks like


def test_a_list_is_written_with_commas_one_and_and_the_articles_of_the_table() -> None:
    frame = lists(KITCHEN, label="edible", length=4, template="{items}", seed=3)
    assert frame.height == 4
    for row in frame.iter_rows(named=True):
        names = [row[slot] for slot in slots("item", 4)]
        a, b, c, d = (f"an {name}" if name[0] in "aeiou" else f"a {name}" for name in names)
        assert row["text"] == f"A{a[1:]}, {b}, {c} and {d}"


def test_a_list_of_two_is_joined_by_and_alone() -> None:
    frame = lists(KITCHEN, label="edible", length=2, template="{items}", seed=0)
    assert frame.height == 4
    assert all(text.count(" and ") == 1 and "," not in text for text in frame["text"])


def test_the_first_article_is_lower_case_where_the_template_opens_with_other_words() -> None:
    texts = lists(KITCHEN, label="edible", length=4, template="We saw {items}.", seed=0)["text"]
    assert all(text.startswith("We saw a") and text.endswith(".") for text in texts)


@every_length
def test_the_columns_are_text_group_items_and_labels(length: int) -> None:
    frame = edible_lists(length)
    assert frame.columns == ["text", "group", *slots("item", length), *slots("edible", length)]
    assert frame.select(slots("edible", length)).dtypes == [pl.Int64] * length


@every_length
def test_the_texts_can_be_used_as_stimuli_and_probed_by_group(length: int) -> None:
    frame = edible_lists(length)
    assert len(StimulusTable.from_frame(frame)) == frame.height > 100
    check_texts(frame["text"].to_list(), frame["group"].to_numpy())


# How the lists are balanced


@every_length
def test_every_item_of_a_block_is_at_every_position_once(length: int) -> None:
    for _, block in edible_lists(length).group_by("group"):
        assert block.height == length
        assert {len(set(block[slot])) for slot in slots("item", length)} == {length}
        assert len({frozenset(row) for row in block.select(slots("item", length)).iter_rows()}) == 1


@every_length
def test_half_of_every_block_has_the_property_at_every_position(length: int) -> None:
    totals = edible_lists(length).group_by("group").agg(pl.col(slots("edible", length)).sum())
    assert set(totals.drop("group").to_numpy().ravel()) == {length // 2}


@every_length
def test_a_label_is_that_of_the_item_at_its_position(length: int) -> None:
    edible = dict(ITEMS.select("object", "edible").iter_rows())
    frame = edible_lists(length)
    for item, label in zip(slots("item", length), slots("edible", length), strict=True):
        assert [edible[name] for name in frame[item]] == frame[label].to_list()


@every_length
def test_no_item_and_no_head_noun_is_in_two_blocks(length: int) -> None:
    head_of = dict(ITEMS.select("object", "head").iter_rows())
    blocks_of = defaultdict(set)
    for row in edible_lists(length).iter_rows(named=True):
        for slot in slots("item", length):
            blocks_of[head_of[row[slot]]].add(row["group"])
    assert any(sum(head == other for other in head_of.values()) > 1 for head in blocks_of)
    assert {len(blocks) for blocks in blocks_of.values()} == {1}


def test_as_many_blocks_are_made_as_the_head_nouns_with_the_rarer_label_allow() -> None:
    n_heads = ITEMS.filter(pl.col("edible") == 1)["head"].n_unique()
    assert ITEMS["edible"].mean() < 0.5  # type: ignore[operator]
    assert edible_lists(4)["group"].n_unique() == n_heads // 2


def test_items_without_a_label_are_left_out() -> None:
    seen = {
        name
        for seed in range(20)
        for row in lists(KITCHEN, label="edible", length=2, template="{items}", seed=seed).iter_rows(named=True)
        for name in (row["item_1"], row["item_2"])
    }
    assert seen == {"apple", "crab apple", "chair", "dog", "egg"}


# What a classifier can do with the words: nothing, by construction


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("length", [2, 4, 6])
def test_a_bag_of_words_is_exactly_at_chance_for_every_position(kind: str, length: int) -> None:
    frame = edible_lists(length)
    x = bag_of_words(frame)
    assert len(np.unique(x, axis=0)) == frame["group"].n_unique()
    for label in slots("edible", length):
        assert fold_scores(kind, x, frame, label) == [0.5] * FOLDS


@pytest.mark.parametrize("kind", LINEAR)
def test_the_items_at_their_positions_are_exactly_at_chance_in_unseen_blocks(kind: str) -> None:
    frame = edible_lists(4)
    x = items_at_positions(frame, 4)
    for label in slots("edible", 4):
        assert fold_scores(kind, x, frame, label) == [0.5] * FOLDS


def test_the_labels_can_be_learnt_from_what_the_k_th_item_is() -> None:
    """The score of one half is a matter of the features, not of the folds."""
    frame = edible_lists(4)
    named = dict(ITEMS.select("object", "living").iter_rows())
    x = np.array([[named[name]] for name in frame["item_3"]], dtype=np.float64)
    assert min(fold_scores("logistic regression", x, frame, "edible_3")) > 0.55


def test_two_positions_are_correlated_by_minus_one_over_the_other_items() -> None:
    frame = pl.concat([edible_lists(4, seed=seed) for seed in range(12)])
    table = np.corrcoef(frame.select(slots("edible", 4)).to_numpy().T)
    # Neighbours of one block agree or disagree together; 12 draws of about 55 blocks leave a standard error of 0.02.
    assert np.abs(table[np.triu_indices(4, 1)] + 1 / 3).max() < 0.08


# How it depends on the seed


def test_the_same_seed_gives_the_same_texts_in_whatever_order_the_rows_come() -> None:
    shuffled = ITEMS.sample(fraction=1.0, shuffle=True, seed=1)
    assert shuffled["object"].to_list() != ITEMS["object"].to_list()
    again = lists(shuffled, label="edible", length=4, template="{items}", seed=5)
    assert_frame_equal(edible_lists(4, seed=5), again)


def test_another_seed_gives_other_blocks() -> None:
    assert set(edible_lists(4, seed=0)["text"]).isdisjoint(edible_lists(4, seed=1)["text"])


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    """Items with few head nouns and labels that may be missing."""
    names = draw(st.lists(st.text(ascii_lowercase, min_size=1, max_size=4), min_size=8, max_size=40, unique=True))
    heads = draw(st.lists(st.integers(0, 12), min_size=len(names), max_size=len(names)))
    labels = draw(st.lists(st.sampled_from([0, 1, None]), min_size=len(names), max_size=len(names)))
    return pl.DataFrame(
        {
            "object": names,
            "article": ["An" if name[0] in "aeiou" else "A" for name in names],
            "head": [f"head {head}" for head in heads],
            "p": labels,
        },
        schema_overrides={"p": pl.Int64},
    )


@settings(max_examples=60, deadline=None)
@given(table=tables(), half=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_whatever_the_table_blocks_are_balanced_and_share_no_head_or_the_table_is_refused(
    table: pl.DataFrame, half: int, seed: int
) -> None:
    length = 2 * half
    heads = [set(table.filter(pl.col("p") == label)["head"]) for label in (0, 1)]
    try:
        frame = lists(table, label="p", length=length, template="{items}", seed=seed)
    except StimulusError:
        # Of a head noun with both kinds of items one kind is used, so that the two sets may not both be exhausted.
        assert min(len(heads[0] - heads[1]), len(heads[1] - heads[0])) < half
        return
    head_of = dict(table.select("object", "head").iter_rows())
    label_of = dict(table.select("object", "p").iter_rows())
    assert frame["text"].is_unique().all()
    used = Counter[str]()
    for _, block in frame.group_by("group"):
        members = set(block["item_1"])
        assert sum(label_of[name] for name in members) == half
        used.update(head_of[name] for name in members)
        for k in range(1, length + 1):
            assert set(block[f"item_{k}"]) == members
            assert block[f"p_{k}"].sum() == half
    assert set(used.values()) == {1}


# What is refused


@pytest.mark.parametrize("length", [-2, 0, 1, 3, 5])
def test_an_odd_length_or_one_below_two_is_refused(length: int) -> None:
    with pytest.raises(StimulusError, match=rf"length={length}: .* even length"):
        edible_lists(length)


@pytest.mark.parametrize("column", ["object", "article", "head", "edible"])
def test_a_missing_column_is_named(column: str) -> None:
    with pytest.raises(StimulusError, match=f"column '{column}' is missing"):
        lists(KITCHEN.drop(column), label="edible", length=2, template="{items}", seed=0)


@pytest.mark.parametrize("template", ["A list", "{items} and {items}", "{item}"])
def test_a_template_without_one_place_for_the_list_is_refused(template: str) -> None:
    with pytest.raises(StimulusError, match="once"):
        lists(KITCHEN, label="edible", length=2, template=template, seed=0)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("edible", 2, r"edible of 'apple' is 2; it must be 0, 1 or null"),
        ("article", "The", r"'apple' has the article 'The'"),
        ("head", None, r"'apple' has the head None"),
        ("object", "chair", r"object 'chair' is there twice"),
    ],
)
def test_an_item_that_cannot_be_used_is_named(column: str, value: object, message: str) -> None:
    broken = KITCHEN.with_columns(
        pl.when(pl.col("object") == "apple").then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )
    with pytest.raises(StimulusError, match=message):
        lists(broken, label="edible", length=2, template="{items}", seed=0)


def test_a_property_of_words_is_refused() -> None:
    with pytest.raises(StimulusError, match="category of 'airliner' is 'vehicle'"):
        lists(ITEMS.filter(pl.col("object") == "airliner"), label="category", length=2, template="{items}", seed=0)


def test_a_table_that_does_not_fill_a_block_is_refused_with_its_counts() -> None:
    with pytest.raises(StimulusError, match=r"2 have edible and 2 do not; lists of 6 need 3 of each"):
        lists(KITCHEN, label="edible", length=6, template="{items}", seed=0)
