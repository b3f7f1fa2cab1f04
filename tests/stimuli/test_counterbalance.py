"""In the relation and analogy sets the items alone say nothing about the label."""

from collections import Counter
from importlib.resources import files
from itertools import product

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

Array = NDArray[np.float64]

LABEL = {"relation": "related", "analogy": "valid"}
SLOTS = {"relation": ["first", "second"], "analogy": ["a", "b", "c", "d"]}
BLOCK_SIZE = {"relation": 4, "analogy": 8}
LINEAR = {
    "logistic regression": LogisticRegression(),
    "linear support vector machine": LinearSVC(random_state=0),
}
FOLDS = 5

every_set = pytest.mark.parametrize("name", LABEL)
every_linear = pytest.mark.parametrize("kind", LINEAR)


def _load(name: str) -> pl.DataFrame:
    return pl.read_csv(str(files("stratoscope") / "experiments" / f"{name}.csv"))


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _items(frame: pl.DataFrame, name: str) -> list[tuple[str, ...]]:
    return list(frame.select(SLOTS[name]).iter_rows())


def _groups(frame: pl.DataFrame) -> list[str]:
    return frame["group"].to_list()


def _labels(frame: pl.DataFrame, name: str) -> NDArray[np.int64]:
    return frame[LABEL[name]].to_numpy()


def _one_hot(frame: pl.DataFrame, name: str, *, positions: bool) -> Array:
    """Give every text one column per item it holds, or per item at its position."""
    rows = [[(k if positions else 0, item) for k, item in enumerate(items)] for items in _items(frame, name)]
    column = {key: j for j, key in enumerate(sorted({key for row in rows for key in row}))}
    x = np.zeros((len(rows), len(column)))
    for i, row in enumerate(rows):
        for key in row:
            x[i, column[key]] += 1
    return x


def _words(frame: pl.DataFrame) -> Array:
    counts = CountVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(frame["text"].to_list())
    return np.asarray(counts.toarray(), dtype=np.float64)


def _lengths(frame: pl.DataFrame) -> Array:
    return frame["text"].str.len_chars().to_numpy().astype(np.float64)[:, None]


def _fold_scores(model: object, x: Array, y: NDArray[np.int64], groups: list[str]) -> list[float]:
    """Balanced accuracy of every test fold when no group is in two folds."""
    scores = []
    for train, test in GroupKFold(FOLDS).split(x, y, groups):
        fitted = clone(model).fit(x[train], y[train])
        scores.append(float(balanced_accuracy_score(y[test], fitted.predict(x[test]))))
    return scores


def _uneven(frame: pl.DataFrame, name: str) -> set[tuple[int, str]]:
    """Give the (position, item)s that are not equally often in texts of both labels."""
    signed = Counter[tuple[int, str]]()
    for items, label in zip(_items(frame, name), _labels(frame, name), strict=True):
        for key in enumerate(items):
            signed[key] += 1 if label else -1
    return {key for key, difference in signed.items() if difference}


# What is in the files


@every_set
def test_the_set_has_the_promised_number_of_texts(name: str) -> None:
    frame = _load(name)
    n_positive = int(frame[LABEL[name]].sum())
    assert n_positive >= 160
    assert n_positive * 2 == len(frame)
    assert frame["group"].n_unique() * BLOCK_SIZE[name] == len(frame)
    assert set(frame["group"].value_counts()["count"]) == {BLOCK_SIZE[name]}


def test_the_columns_are_the_documented_ones() -> None:
    assert _load("relation").columns == [
        *["id", "text", "first", "second", "related", "relation", "group", "span.first", "span.second"],
    ]
    assert _load("analogy").columns == [
        *["id", "text", "a", "b", "c", "d", "valid", "relation_first", "relation_second", "group"],
        *["span.a", "span.b", "span.c", "span.d"],
    ]


@every_set
def test_ids_and_texts_are_unique(name: str) -> None:
    frame = _load(name)
    assert frame["id"].is_unique().all()
    assert frame["text"].is_unique().all()


@every_set
def test_a_span_is_its_item_and_occurs_once_in_its_text(name: str) -> None:
    frame = _load(name)
    for slot in SLOTS[name]:
        assert frame[f"span.{slot}"].to_list() == frame[slot].to_list()
        for text, span in zip(frame["text"], frame[f"span.{slot}"], strict=True):
            assert text.count(span) == 1, text


@every_set
def test_no_item_has_a_first_letter_that_hides_its_sound(name: str) -> None:
    for item in {item for items in _items(_load(name), name) for item in items}:
        assert item.isalpha(), item
        assert item.islower(), item
        assert not item.startswith(("eu", "heir", "honest", "hour", "one", "uni", "use", "ut")), item


def test_a_relation_text_is_its_template_with_the_article_of_its_first_item() -> None:
    frame = _load("relation")
    for text, (first, second) in zip(frame["text"], _items(frame, "relation"), strict=True):
        assert text == f"{_article(first).capitalize()} {first} and {second}"


def test_an_analogy_text_is_its_template_with_the_article_of_every_item() -> None:
    frame = _load("analogy")
    for text, items in zip(frame["text"], _items(frame, "analogy"), strict=True):
        a, b, c, d = (f"{_article(item)} {item}" for item in items)
        assert text == f"A{a[1:]} is to {b} as {c} is to {d}"


# How the texts are balanced


@every_set
def test_every_item_is_equally_often_in_both_labels_at_every_position(name: str) -> None:
    assert _uneven(_load(name), name) == set()


@every_set
def test_no_item_is_in_two_blocks(name: str) -> None:
    frame = _load(name)
    block_of: dict[str, str] = {}
    for items, group in zip(_items(frame, name), frame["group"], strict=True):
        for item in items:
            assert block_of.setdefault(item, group) == group, item


@every_set
def test_no_item_is_in_two_pairs_or_at_two_places_of_its_pair(name: str) -> None:
    frame = _load(name)
    if name == "relation":
        pairs = set(frame.filter(pl.col("related") == 1).select("first", "second").iter_rows())
    else:
        pairs = {pair for a, b, c, d in _items(frame, name) for pair in ((a, b), (c, d))}
    assert len({item for pair in pairs for item in pair}) == 2 * len(pairs)
    assert len(pairs) >= 160


def test_a_relation_block_is_two_related_pairs_of_different_classes_and_their_exchange() -> None:
    for _, block in _load("relation").group_by("group"):
        related = block.filter(pl.col("related") == 1)
        again = block.filter(pl.col("related") == 0)
        assert set(block.select("first", "second").iter_rows()) == set(product(related["first"], related["second"]))
        assert related["relation"].n_unique() == 2
        assert again["relation"].null_count() == len(again) == 2


def test_the_relation_classes_are_at_least_six_and_of_even_size() -> None:
    sizes = _load("relation")["relation"].drop_nulls().value_counts()["count"].to_list()
    assert len(sizes) >= 6
    assert max(sizes) - min(sizes) <= 1


def test_every_pair_of_the_analogies_is_equally_often_in_both_labels_at_both_places() -> None:
    frame = _load("analogy")
    count = Counter[tuple[tuple[str, str], int, int]]()
    for (a, b, c, d), label in zip(_items(frame, "analogy"), frame["valid"], strict=True):
        count[(a, b), 0, label] += 1
        count[(c, d), 1, label] += 1
    pairs = {pair for pair, _, _ in count}
    assert all(count[pair, place, label] == 1 for pair in pairs for place in (0, 1) for label in (0, 1))


def test_valid_analogies_repeat_their_relation_and_invalid_ones_change_it() -> None:
    frame = _load("analogy")
    assert ((frame["relation_first"] == frame["relation_second"]) == (frame["valid"] == 1)).all()


def test_an_analogy_pair_has_one_relation_and_the_relations_are_at_least_eight() -> None:
    frame = _load("analogy")
    relation_of: dict[tuple[str, str], str] = {}
    for a, b, c, d, first, second in frame.select([*SLOTS["analogy"], "relation_first", "relation_second"]).iter_rows():
        assert relation_of.setdefault((a, b), first) == first
        assert relation_of.setdefault((c, d), second) == second
    assert len(set(relation_of.values())) >= 8


def test_every_relation_is_equally_often_in_both_labels_at_both_places() -> None:
    frame = _load("analogy")
    for column in ("relation_first", "relation_second"):
        valid, invalid = (frame.filter(pl.col("valid") == label)[column] for label in (1, 0))
        assert Counter(valid) == Counter(invalid)


@every_set
def test_both_labels_of_a_block_have_the_same_articles_and_the_same_text_lengths(name: str) -> None:
    for _, block in _load(name).group_by("group"):
        texts = block["text"].str.len_chars().to_list()
        articles = [
            [_article(item) for item in (items[:1] if name == "relation" else items)] for items in _items(block, name)
        ]
        looks = Counter(zip(_labels(block, name).tolist(), texts, map(tuple, articles), strict=True))
        assert all(looks[1 - label, length, words] == n for (label, length, words), n in looks.items())


# What a classifier can do with them: nothing, by construction


@every_set
@pytest.mark.parametrize("positions", [True, False], ids=["with positions", "without positions"])
def test_the_mean_of_every_item_indicator_is_exactly_the_same_in_both_labels(name: str, *, positions: bool) -> None:
    frame = _load(name)
    x, y = _one_hot(frame, name, positions=positions), _labels(frame, name)
    np.testing.assert_array_equal(x[y == 0].sum(axis=0), x[y == 1].sum(axis=0))
    assert (y == 0).sum() == (y == 1).sum()


@every_set
@every_linear
@pytest.mark.parametrize("positions", [True, False], ids=["with positions", "without positions"])
def test_the_items_of_unseen_blocks_are_exactly_at_chance(name: str, kind: str, *, positions: bool) -> None:
    frame = _load(name)
    x, y = _one_hot(frame, name, positions=positions), _labels(frame, name)
    for train, test in GroupKFold(FOLDS).split(x, y, _groups(frame)):
        assert not (x[train].any(axis=0) & x[test].any(axis=0)).any()
        predicted = clone(LINEAR[kind]).fit(x[train], y[train]).predict(x[test])
        assert len(set(predicted)) == 1
        assert balanced_accuracy_score(y[test], predicted) == 0.5


@every_set
@every_linear
@pytest.mark.parametrize("positions", [True, False], ids=["with positions", "without positions"])
def test_a_linear_classifier_finds_nothing_in_the_items_it_was_fitted_on(
    name: str, kind: str, *, positions: bool
) -> None:
    frame = _load(name)
    x, y = _one_hot(frame, name, positions=positions), _labels(frame, name)
    assert np.abs(clone(LINEAR[kind]).fit(x, y).coef_).max() < 1e-3


@every_set
@every_linear
def test_a_bag_of_all_words_articles_included_is_exactly_at_chance(name: str, kind: str) -> None:
    frame = _load(name)
    x, y = _words(frame), _labels(frame, name)
    np.testing.assert_array_equal(x[y == 0].sum(axis=0), x[y == 1].sum(axis=0))
    assert _fold_scores(LINEAR[kind], x, y, _groups(frame)) == [0.5] * FOLDS


@every_set
@pytest.mark.parametrize("model", [*LINEAR.values(), DecisionTreeClassifier(random_state=0)], ids=str)
def test_the_length_of_a_text_is_exactly_at_chance_for_every_classifier(name: str, model: object) -> None:
    frame = _load(name)
    assert _fold_scores(model, _lengths(frame), _labels(frame, name), _groups(frame)) == [0.5] * FOLDS


# What the same tests say of designs that are not balanced


@every_linear
def test_folds_that_cut_blocks_put_the_relation_items_far_below_chance(kind: str) -> None:
    frame = _load("relation")
    x, y = _one_hot(frame, "relation", positions=True), _labels(frame, "relation")
    assert np.mean(_fold_scores(LINEAR[kind], x, y, frame["first"].to_list())) < 0.25


@every_linear
def test_folds_that_cut_blocks_put_the_analogy_items_below_chance(kind: str) -> None:
    frame = _load("analogy")
    x, y = _one_hot(frame, "analogy", positions=True), _labels(frame, "analogy")
    assert np.mean(_fold_scores(LINEAR[kind], x, y, frame["a"].to_list())) < 0.25


@every_set
def test_a_set_without_half_of_its_negative_texts_is_detected(name: str) -> None:
    frame = _load(name)
    negative = pl.col(LABEL[name]) == 0
    broken = frame.filter(~negative | (pl.int_range(pl.len()) % 2 == 0))
    assert _uneven(broken, name)
    x, y = _one_hot(broken, name, positions=True), _labels(broken, name)
    model = LogisticRegression(class_weight="balanced").fit(x, y)
    assert balanced_accuracy_score(y, model.predict(x)) > 0.6
    assert np.abs(model.coef_).max() > 0.1


def test_related_pairs_among_each_other_and_their_exchange_in_one_long_circle_are_not_at_chance() -> None:
    """One large block: every object moves on to the next place of all, and folds are grouped by place."""
    related = _load("relation").filter(pl.col("related") == 1)
    moved = related.with_columns(pl.col("second").gather((pl.int_range(pl.len()) + 1) % pl.len()), related=0)
    circle = pl.concat([related, moved.select(related.columns)], how="vertical_relaxed")
    assert _uneven(circle, "relation") == set()
    x, y = _one_hot(circle, "relation", positions=True), _labels(circle, "relation")
    assert np.mean(_fold_scores(LINEAR["logistic regression"], x, y, circle["first"].to_list())) < 0.25
