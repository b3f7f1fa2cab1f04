"""Texts made of pairs: what single nouns, single pairs and lengths say of the label is nothing."""

from collections import Counter
from importlib.resources import files
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold
from sklearn.svm import LinearSVC

from stratoscope.errors import StimulusError
from stratoscope.stimuli.spans import parse_span
from stratoscope.study.designs.matching import matching
from stratoscope.study.designs.pair_tables import disjoint
from stratoscope.study.designs.pairs import analogies, repaired
from stratoscope.study.designs.slots import parse_slots

TEMPLATE = {
    "repaired": "{First_article} {first} and {second}.",
    "analogies": "{A_article} {a} is to {b_article} {b} as {c_article} {c} is to {d_article} {d}.",
}
PLAIN = {"repaired": "{first} and {second}", "analogies": "{a} : {b} :: {c} : {d}"}
DESIGN = {"repaired": repaired, "analogies": analogies}
LABEL = {"repaired": "related", "analogies": "valid"}
SLOTS = {"repaired": ("first", "second"), "analogies": ("a", "b", "c", "d")}
BLOCK_SIZE = {"repaired": 4, "analogies": 8}
LINEAR = {"logistic": LogisticRegression(), "support vector": LinearSVC(random_state=0)}
FOLDS = 5

every_design = pytest.mark.parametrize("name", DESIGN)
every_linear = pytest.mark.parametrize("kind", LINEAR)


@pytest.fixture(scope="module")
def pairs() -> pl.DataFrame:
    return pl.read_csv(str(files("stratoscope") / "study" / "builtin" / "tables" / "pairs.csv"))


@pytest.fixture(scope="module")
def made(pairs: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {name: design(pairs, template=TEMPLATE[name], seed=0) for name, design in DESIGN.items()}


def _table(**columns: list[Any]) -> pl.DataFrame:
    return pl.DataFrame(columns)


def _small() -> pl.DataFrame:
    return _table(
        relation=["tool", "tool", "home", "home"],
        first=["saw", "mop", "bee", "cow"],
        second=["log", "tub", "hut", "den"],
    )


def _uneven(frame: pl.DataFrame, name: str, slots: tuple[str, ...]) -> set[tuple[Any, ...]]:
    """Give the nouns (or pairs of nouns), by place, that are not equally often in both labels."""
    signed = Counter[tuple[Any, ...]]()
    for *items, label in frame.select(*slots, LABEL[name]).iter_rows():
        for place in range(0, len(items), len(slots) // 2 if name == "analogies" else 1):
            stop = place + (len(slots) // 2 if name == "analogies" else 1)
            signed[place, *items[place:stop]] += 1 if label else -1
    return {key for key, difference in signed.items() if difference}


def _one_hot(frame: pl.DataFrame, name: str) -> NDArray[np.float64]:
    return np.hstack([frame[slot].to_dummies().to_numpy().astype(np.float64) for slot in SLOTS[name]])


def _words(frame: pl.DataFrame) -> NDArray[np.float64]:
    counts = CountVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(frame["text"].to_list())
    return np.asarray(counts.toarray(), dtype=np.float64)


def _fold_scores(model: Any, x: NDArray[np.float64], frame: pl.DataFrame, name: str, folds: str) -> list[float]:
    y = frame[LABEL[name]].to_numpy()
    scores = []
    for train, test in GroupKFold(FOLDS).split(x, y, frame[folds].to_list()):
        # What is left of a tie after an iterative fit is no decision.
        predicted = clone(model).fit(x[train], y[train]).decision_function(x[test]).round(3) > 0
        scores.append(float(balanced_accuracy_score(y[test], predicted)))
    return scores


def _blocks_of_equal_lengths(frame: pl.DataFrame, name: str) -> int:
    def lengths(block: pl.DataFrame, label: int) -> list[int]:
        return sorted(block.filter(pl.col(LABEL[name]) == label)["text"].str.len_chars())

    return sum(lengths(block, 0) == lengths(block, 1) for _, block in frame.group_by("group"))


# The built-in table


def test_all_built_in_pairs_find_a_partner(made: dict[str, pl.DataFrame], pairs: pl.DataFrame) -> None:
    assert (
        made["repaired"]
        .filter(related=1)
        .select("first", "second")
        .sort("first")
        .equals(pairs.select("first", "second").sort("first"))
    )
    assert made["analogies"]["group"].n_unique() == len(pairs) // 4


def test_lengths_are_the_same_in_both_labels_of_nearly_every_built_in_block(made: dict[str, pl.DataFrame]) -> None:
    assert _blocks_of_equal_lengths(made["repaired"], "repaired") == 208
    assert _blocks_of_equal_lengths(made["analogies"], "analogies") >= 94


@every_design
def test_texts_are_unique_and_blocks_are_whole(made: dict[str, pl.DataFrame], name: str) -> None:
    frame = made[name]
    assert frame["text"].is_unique().all()
    assert set(frame["group"].value_counts()["count"]) == {BLOCK_SIZE[name]}
    assert frame[LABEL[name]].sum() * 2 == len(frame)


@every_design
def test_every_noun_is_equally_often_in_both_labels_at_its_place(made: dict[str, pl.DataFrame], name: str) -> None:
    frame = made[name]
    for slot in SLOTS[name]:
        counts = frame.group_by(slot, LABEL[name]).len()["len"]
        assert set(counts) == {1}
        assert len(counts) == 2 * frame[slot].n_unique()
    assert _uneven(frame, name, SLOTS[name]) == set()


def test_every_pair_of_the_analogies_is_once_in_each_label_at_each_place(made: dict[str, pl.DataFrame]) -> None:
    for places in (("a", "b"), ("c", "d")):
        assert set(made["analogies"].group_by(*places, "valid").len()["len"]) == {1}


@every_design
def test_no_noun_is_in_two_blocks(made: dict[str, pl.DataFrame], name: str) -> None:
    long = pl.concat([made[name].select("group", noun=slot) for slot in SLOTS[name]])
    assert long.group_by("noun").agg(pl.col("group").n_unique())["group"].max() == 1


@every_design
def test_spans_are_the_nouns(made: dict[str, pl.DataFrame], name: str) -> None:
    for row in made[name].iter_rows(named=True):
        for slot in SLOTS[name]:
            start, stop = parse_span(row[f"span.{slot}"], row["text"])
            assert row["text"][start:stop] == row[slot]


def test_a_block_of_repaired_nouns_has_two_relations_and_no_common_topic(
    made: dict[str, pl.DataFrame], pairs: pl.DataFrame
) -> None:
    topic = {first: set(words.split()) for first, words in pairs.select("first", "topic").iter_rows()}
    for _, block in made["repaired"].group_by("group"):
        related = block.filter(related=1)
        again = block.filter(related=0)
        assert set(block.select("first", "second").iter_rows()) == set(product(related["first"], related["second"]))
        assert related["relation"].n_unique() == 2
        assert again["relation"].null_count() == len(again) == 2
        one, two = related["first"]
        assert not topic[one] & topic[two]


def test_repaired_texts_carry_the_relation_of_their_first_and_graded_relatedness(
    made: dict[str, pl.DataFrame], pairs: pl.DataFrame
) -> None:
    rows = {row["first"]: row for row in pairs.iter_rows(named=True)}
    for row in made["repaired"].iter_rows(named=True):
        pair = rows[row["first"]]
        assert row["first_relation"] == pair["relation"]
        expected = (pair["relation"], pair["strength"], pair["strength"]) if row["related"] else (None, 0, None)
        assert (row["relation"], row["relatedness"], row["strength"]) == expected


def test_articles_stand_before_their_nouns(made: dict[str, pl.DataFrame]) -> None:
    texts = {**dict(made["repaired"].select("first", "text").iter_rows())}
    assert texts["elephant"].startswith("An elephant and ")
    analogy = made["analogies"].filter(a="architect", valid=0)["text"].item()
    assert analogy.startswith("An architect is to a blueprint as a")


def test_confusable_relations_never_meet_in_an_analogy(made: dict[str, pl.DataFrame], pairs: pl.DataFrame) -> None:
    met = set(made["analogies"].filter(valid=0).select("relation_first", "relation_second").iter_rows())
    named = {
        (one, other)
        for one, names in pairs.select("relation", "confusable").drop_nulls().iter_rows()
        for other in names.split()
    }
    assert len(named) > 10
    assert not met & named
    assert all(one != other for one, other in met)


def test_a_third_of_the_invalid_analogies_or_more_compare_firsts_of_one_kind(
    made: dict[str, pl.DataFrame], pairs: pl.DataFrame
) -> None:
    kind = dict(pairs.select("first", "first_kind").iter_rows())
    invalid = made["analogies"].filter(valid=0)
    shared = sum(kind[a] == kind[c] for a, c in invalid.select("a", "c").iter_rows())
    assert shared / len(invalid) >= 1 / 3
    blind = analogies(pairs.drop("first_kind", "second_kind"), template=TEMPLATE["analogies"], seed=0).filter(valid=0)
    assert sum(kind[a] == kind[c] for a, c in blind.select("a", "c").iter_rows()) < 0.6 * shared


@every_design
def test_a_block_says_whether_kinds_combine_in_the_same_ways_in_both_labels(
    made: dict[str, pl.DataFrame], pairs: pl.DataFrame, name: str
) -> None:
    kind = {row[item]: row[f"{item}_kind"] for row in pairs.iter_rows(named=True) for item in ("first", "second")}
    matched = 0
    for _, block in made[name].group_by("group"):
        combined = [
            Counter(tuple(kind[noun] for noun in nouns) for nouns in part.select(SLOTS[name]).iter_rows())
            for part in (block.filter(pl.col(LABEL[name]) == label) for label in (0, 1))
        ]
        assert set(block["kinds_match"]) == {int(combined[0] == combined[1])}
        matched += combined[0] == combined[1]
    assert matched >= {"repaired": 120, "analogies": 42}[name]


@every_design
def test_where_kinds_match_comparing_them_is_exactly_at_chance(
    made: dict[str, pl.DataFrame], pairs: pl.DataFrame, name: str
) -> None:
    kind = {row[item]: row[f"{item}_kind"] for row in pairs.iter_rows(named=True) for item in ("first", "second")}
    whole, part = made[name], made[name].filter(kinds_match=1)

    def scores(frame: pl.DataFrame) -> float:
        combined = [" ".join(kind[noun] for noun in nouns) for nouns in frame.select(SLOTS[name]).iter_rows()]
        equal = [nouns.split()[0] == nouns.split()[-2] for nouns in combined]
        x = np.hstack([pl.Series(combined).to_dummies().to_numpy(), np.array(equal)[:, None]]).astype(np.float64)
        return float(np.mean(_fold_scores(LogisticRegression(), x, frame, name, "group")))

    assert scores(whole) > 0.6
    assert scores(part) == 0.5


# What a classifier can do with them: nothing, by construction


@every_design
@every_linear
def test_a_bag_of_words_is_exactly_at_chance_in_unseen_blocks(
    made: dict[str, pl.DataFrame], name: str, kind: str
) -> None:
    frame = made[name]
    x, y = _words(frame), frame[LABEL[name]].to_numpy()
    np.testing.assert_array_equal(x[y == 0].sum(axis=0), x[y == 1].sum(axis=0))
    assert _fold_scores(LINEAR[kind], x, frame, name, "group") == [0.5] * FOLDS


@every_design
@every_linear
def test_nouns_by_place_are_exactly_at_chance_in_unseen_blocks(
    made: dict[str, pl.DataFrame], name: str, kind: str
) -> None:
    assert _fold_scores(LINEAR[kind], _one_hot(made[name], name), made[name], name, "group") == [0.5] * FOLDS


@every_design
def test_the_length_of_a_text_says_nothing(made: dict[str, pl.DataFrame], name: str) -> None:
    x = made[name]["text"].str.len_chars().to_numpy().astype(np.float64)[:, None]
    assert abs(np.mean(_fold_scores(LogisticRegression(), x, made[name], name, "group")) - 0.5) < 0.01


@every_design
def test_folds_that_cut_blocks_are_far_from_chance(made: dict[str, pl.DataFrame], name: str) -> None:
    """So that the tests above are not passed by features that say nothing."""
    scores = _fold_scores(LinearSVC(random_state=0), _one_hot(made[name], name), made[name], name, SLOTS[name][0])
    assert np.mean(scores) < 0.25


@every_design
def test_a_design_without_some_of_its_negative_texts_is_told_apart(made: dict[str, pl.DataFrame], name: str) -> None:
    negative = pl.col(LABEL[name]) == 0
    broken = made[name].filter(~negative | (pl.int_range(pl.len()) % 2 == 0))
    assert len(broken) < len(made[name])
    assert _uneven(broken, name, SLOTS[name])


# Any table


@every_design
def test_the_seed_and_the_pairs_alone_settle_the_texts(pairs: pl.DataFrame, name: str) -> None:
    first = DESIGN[name](pairs, template=TEMPLATE[name], seed=3)
    shuffled = pairs.sample(fraction=1, shuffle=True, seed=1)
    assert not shuffled.equals(pairs)
    assert DESIGN[name](shuffled, template=TEMPLATE[name], seed=3).equals(first)
    assert not DESIGN[name](pairs, template=TEMPLATE[name], seed=4).equals(first)


@every_design
def test_first_second_and_relation_are_enough(name: str) -> None:
    frame = DESIGN[name](_small(), template=PLAIN[name], seed=0)
    assert frame["group"].n_unique() == {"repaired": 2, "analogies": 1}[name]
    assert "strength" not in frame.columns
    assert "relatedness" not in frame.columns


@every_design
def test_an_article_that_the_table_lacks_is_not_guessed(name: str) -> None:
    with pytest.raises(StimulusError, match=r"no column 'first_article'.*take the article out of the template"):
        DESIGN[name](_small(), template=TEMPLATE[name], seed=0)


@st.composite
def _pair_tables(draw: st.DrawFn) -> pl.DataFrame:
    size = draw(st.integers(4, 24))
    nouns = draw(
        st.lists(
            st.text("abcdé 1", min_size=1, max_size=5).filter(lambda word: word == word.strip()),
            min_size=2 * size,
            max_size=2 * size,
            unique=True,
        )
    )
    columns: dict[str, Any] = {
        "relation": draw(st.lists(st.sampled_from(["r", "s", "t"]), min_size=size, max_size=size)),
        "first": nouns[:size],
        "second": nouns[size:],
    }
    choices: dict[str, list[Any]] = {
        "topic": ["sea", "farm", "sea farm", "war"],
        "first_kind": ["animal", "person"],
        "second_kind": ["place", "tool"],
        "confusable": ["s", None],
        "strength": [1, 2.5],
    }
    for column in draw(st.sets(st.sampled_from(sorted(choices)))):
        columns[column] = draw(st.lists(st.sampled_from(choices[column]), min_size=size, max_size=size))
    return pl.DataFrame(columns, strict=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(table=_pair_tables(), seed=st.integers(0, 3), name=st.sampled_from(sorted(DESIGN)))
def test_blocks_of_any_table_are_balanced(table: pl.DataFrame, seed: int, name: str) -> None:
    try:
        frame = DESIGN[name](table, template=PLAIN[name], seed=seed)
    except StimulusError as error:
        event("no block")
        if "block" not in str(error):
            raise
        return
    assert frame["text"].is_unique().all()
    assert set(frame["group"].value_counts()["count"]) == {BLOCK_SIZE[name]}
    assert _uneven(frame, name, SLOTS[name]) == set()
    assert all(frame[LABEL[name]].to_numpy().reshape(-1, BLOCK_SIZE[name]).sum(axis=1) == BLOCK_SIZE[name] // 2)
    relation = dict(table.select("first", "relation").iter_rows())
    second = dict(table.select("first", "second").iter_rows())
    for row in frame.iter_rows(named=True):
        if name == "repaired":
            assert row["related"] == (second[row["first"]] == row["second"])
            assert row["relation"] == (relation[row["first"]] if row["related"] else None)
        else:
            assert (second[row["a"]], second[row["c"]]) == (row["b"], row["d"])
            assert row["valid"] == (relation[row["a"]] == relation[row["c"]])


def test_pairs_without_a_partner_are_dropped() -> None:
    table = _small().with_columns(topic=pl.Series(["wood", "bath", "wood", "farm"])).head(3)
    frame = repaired(table, template=PLAIN["repaired"], seed=0)
    assert set(frame["first"]) == {"mop", "bee"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second": "mop"}, r"'mop' is in the pairs \(saw, mop\) and \(mop, tub\)"),
        ({"second": "SAW"}, "(?i)'saw' is in the pairs|one noun twice"),
        ({"second": ""}, r"pair 1 \(saw, \): second is ''"),
        ({"first": None}, r"pair 1 \(None, log\): first is None"),
        ({"second": " log"}, "without blanks around"),
        ({"strength": -3.0}, r"pair 1 \(saw, log\): strength is -3.0.*above 0"),
        ({"strength": None}, "strength is None"),
        ({"strength": float("nan")}, "strength is nan"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_pair(change: dict[str, Any], message: str) -> None:
    rows = _small().with_columns(strength=1.0).to_dicts()
    table = pl.DataFrame([{**rows[0], **change}, *rows[1:]])
    with pytest.raises(StimulusError, match=message):
        repaired(table, template=PLAIN["repaired"], seed=0)


def test_a_pair_that_is_there_twice_is_refused() -> None:
    with pytest.raises(StimulusError, match="more than once"):
        repaired(pl.concat([_small(), _small().head(1)]), template=PLAIN["repaired"], seed=0)


@every_design
def test_a_table_without_rows_is_refused(name: str) -> None:
    with pytest.raises(StimulusError, match="no rows"):
        DESIGN[name](_small().clear(), template=PLAIN[name], seed=0)


@every_design
def test_a_table_of_one_relation_makes_no_block(name: str) -> None:
    table = _small().with_columns(relation=pl.lit("tool"))
    with pytest.raises(StimulusError, match="block"):
        DESIGN[name](table, template=PLAIN[name], seed=0)


def test_disjoint_keeps_pairs_that_share_no_noun_in_their_order() -> None:
    table = _table(
        relation=["r"] * 5,
        first=["dog", "cat", "Cat", "owl", "eel"],
        second=["animal", "animal", "mouse", "bird", "eel"],
    )
    kept = disjoint(table, seed=0)
    nouns = [noun.casefold() for noun in [*kept["first"], *kept["second"]]]
    assert len(set(nouns)) == len(nouns) >= 4
    assert kept["first"].to_list() == [first for first in table["first"] if first in set(kept["first"])]
    assert disjoint(table.reverse(), seed=0).sort("first").equals(kept.sort("first"))


# Templates and matching


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{first} alone", "must hold {second} exactly once, not 0 times"),
        ("{first} {First} {second}", "must hold {first} exactly once, not 2 times"),
        ("{first} {second} {third}", "{third} is not a slot; use first, second, first_article"),
        ("{first:>9} {second}", "{first:>9} is not a slot"),
        ("{first} {second", "expected '}'"),
        ("{} {second}", "{} is not a slot"),
        ("{first_article} {first} {first_article} {second}", "at most once, not 2 times"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str, message: str) -> None:
    with pytest.raises(StimulusError) as caught:
        parse_slots(template, ("first", "second"))
    assert message in str(caught.value)


def test_a_span_is_the_place_of_the_slot_even_where_its_word_occurs_twice() -> None:
    text, spans = parse_slots("{{The}} {First} hat: {second}", ("first", "second")).filled(
        {"first": "chat", "second": "hat"}
    )
    assert text == "{The} Chat hat: hat"
    assert spans == {"span.first": "6:10", "span.second": "16:19"}


def test_matching_finds_the_only_complete_matching() -> None:
    score = np.full((6, 6), -np.inf)
    for one, two in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5)):
        score[one, two] = score[two, one] = 1.0
    score[1, 2] = score[2, 1] = 50.0
    assert matching(score, np.random.default_rng(0)) == [(0, 1), (2, 3), (4, 5)]


@given(n=st.integers(0, 9), seed=st.integers(0, 5))
def test_matching_uses_nothing_twice_and_nothing_forbidden(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, (n, n)).astype(float)
    score = np.where(rng.random((n, n)) < 0.5, -np.inf, score)
    score = np.minimum(score, score.T)
    couples = matching(score, rng)
    used = [one for couple in couples for one in couple]
    assert len(set(used)) == len(used)
    assert all(np.isfinite(score[couple]) and couple[0] < couple[1] for couple in couples)
