"""Texts at a distance: the same neutral sentences follow both classes, as many as the distance asks for."""

from collections import Counter
from importlib.resources import files

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.preprocessing import OneHotEncoder

from stratoscope.errors import StimulusError
from stratoscope.stimuli.spans import parse_span
from stratoscope.study.designs.context import N_PASSAGES, TOKENS_PER_WORD, at_distance

PACKAGE = files("stratoscope")
FILLER = pl.read_csv((PACKAGE / "study" / "builtin" / "tables" / "filler.csv").read_bytes())["sentence"].to_list()
BASES = {
    name: pl.read_csv((PACKAGE / "experiments" / f"{name}.csv").read_bytes()).drop("id")
    for name in ("item", "relation", "analogy")
}
LABELS = {
    "item": ["edible", "living", "large", "elongated", "self_moving"],
    "relation": ["related"],
    "analogy": ["valid"],
}
DISTANCES = [0, 10, 50, 200, 1000]
MADE = {name: at_distance(base, FILLER, distances=DISTANCES, seed=0) for name, base in BASES.items()}

every_base = pytest.mark.parametrize("name", BASES)


def _ending(text: str, base: str) -> str:
    assert text.startswith(f"{base}.")
    return text[len(base) + 1 :].strip()


def _with_base(name: str) -> pl.DataFrame:
    """Add the text that each row began as."""
    return MADE[name].with_columns(base=pl.concat([BASES[name]["text"]] * len(DISTANCES)))


# What is made of the built-in filler


@every_base
def test_every_text_appears_at_every_distance(name: str) -> None:
    base = BASES[name]
    made = MADE[name]
    assert made.columns == [*base.columns, "distance", "n_words", "passage"]
    assert made.height == base.height * len(DISTANCES)
    assert made["text"].is_unique().all()
    spans = [column for column in base.columns if column.startswith("span.")]
    for distance in DISTANCES:
        part = made.filter(distance=distance).drop("text", "distance", "n_words", "passage", *spans)
        assert part.equals(base.drop("text", *spans))


@every_base
def test_at_distance_0_the_text_stands_alone_with_a_full_stop(name: str) -> None:
    part = MADE[name].filter(distance=0)
    assert part["text"].to_list() == [f"{text}." for text in BASES[name]["text"]]
    assert set(part["n_words"]) == {0}


@every_base
def test_the_filler_is_whole_sentences_in_their_order_from_one_of_four_places(name: str) -> None:
    starts = [number * len(FILLER) // N_PASSAGES for number in range(N_PASSAGES)]
    assert len(set(starts)) == N_PASSAGES
    twice = FILLER * 2
    for text, base, n_words, passage in _with_base(name).select("text", "base", "n_words", "passage").iter_rows():
        ending = _ending(text, base)
        rest = " ".join(twice[starts[passage] : starts[passage] + len(FILLER)])
        assert rest.startswith(ending)
        assert not ending or ending.endswith(".")
        assert len(ending.split()) == n_words


@every_base
def test_a_distance_is_missed_by_at_most_half_the_longest_sentence(name: str) -> None:
    longest = max(len(sentence.split()) for sentence in FILLER)
    missed = (MADE[name]["n_words"] * TOKENS_PER_WORD - MADE[name]["distance"]).abs()
    assert (missed <= longest * TOKENS_PER_WORD / 2).all()
    assert MADE[name].group_by("distance").agg(pl.col("n_words").max()).sort("distance")["n_words"].is_sorted()


@every_base
def test_the_texts_of_a_group_have_one_passage(name: str) -> None:
    assert set(MADE[name].group_by("group").agg(pl.col("passage").n_unique())["passage"]) == {1}


@pytest.mark.parametrize("name", ["relation", "analogy"])
def test_both_classes_of_a_block_have_the_same_fillers(name: str) -> None:
    endings: dict[tuple[str, int], Counter[str]] = {}
    label = LABELS[name][0]
    for row in _with_base(name).iter_rows(named=True):
        key = (f"{row['group']} at {row['distance']}", row[label])
        endings.setdefault(key, Counter())[_ending(row["text"], row["base"])] += 1
    assert len(endings) == 2 * BASES[name]["group"].n_unique() * len(DISTANCES)
    assert all(found == endings[group, 1 - label] for (group, label), found in endings.items())


@pytest.mark.parametrize(("name", "label"), [(name, label) for name, labels in LABELS.items() for label in labels])
def test_passages_are_nearly_equally_frequent_in_every_class(name: str, label: str) -> None:
    largest = BASES[name].group_by("group").len()["len"].max()
    assert isinstance(largest, int)
    counts = MADE[name].filter(distance=0).group_by(label, "passage").len()
    assert counts.height == 2 * N_PASSAGES
    spread = counts.group_by(label).agg(spread=pl.col("len").max() - pl.col("len").min())["spread"]
    assert (spread <= largest).all()


@pytest.mark.parametrize(("name", "label"), [("relation", "related"), ("analogy", "valid")])
def test_the_passage_says_nothing_of_a_counterbalanced_label(name: str, label: str) -> None:
    part = MADE[name].filter(distance=1000)
    x = OneHotEncoder().fit_transform(part.select("passage").to_numpy())
    guesses = cross_val_predict(
        LogisticRegression(), x, part[label].to_numpy(), groups=part["group"].to_list(), cv=GroupKFold(5)
    )
    assert balanced_accuracy_score(part[label].to_numpy(), guesses) == 0.5


@every_base
def test_a_span_is_still_the_words_that_it_was(name: str) -> None:
    spans = [column for column in BASES[name].columns if column.startswith("span.")]
    assert spans
    for span in spans:
        words = pl.concat([BASES[name][span]] * len(DISTANCES))
        for text, there, word in zip(MADE[name]["text"], MADE[name][span], words, strict=True):
            start, end = parse_span(there, text)
            assert text[start:end] == word


# What the design promises of any base and filler


def _base(texts: list[str], groups: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"text": texts, "group": groups, "label": [number % 2 for number in range(len(texts))]})


@st.composite
def bases(draw: st.DrawFn) -> pl.DataFrame:
    n_texts = draw(st.integers(1, 12))
    groups = draw(st.lists(st.sampled_from("abcdef"), min_size=n_texts, max_size=n_texts))
    ends = draw(st.lists(st.sampled_from(["", ".", "!", "?"]), min_size=n_texts, max_size=n_texts))
    return _base([f"Text {number}{end}" for number, end in enumerate(ends)], groups)


@st.composite
def fillers(draw: st.DrawFn) -> list[str]:
    sizes = draw(st.lists(st.integers(3, 12), min_size=4, max_size=30))
    return [f"N{number}{' x' * (size - 1)}." for number, size in enumerate(sizes)]


@given(base=bases(), filler=fillers(), seed=st.integers(0, 1000))
def test_any_filler_comes_as_near_to_its_whole_length_as_its_sentences_allow(
    base: pl.DataFrame, filler: list[str], seed: int
) -> None:
    sizes = [len(sentence.split()) for sentence in filler]
    whole = int(sum(sizes) * TOKENS_PER_WORD)
    made = at_distance(base, filler, distances=[0, whole], seed=seed)
    assert set(made.filter(distance=whole)["n_words"]) == {sum(sizes)}
    assert set(made.group_by("group").agg(pl.col("passage").n_unique())["passage"]) == {1}
    ended = [text if text[-1] in ".!?" else f"{text}." for text in base["text"]]
    assert made.filter(distance=0)["text"].to_list() == ended


@given(base=bases(), filler=fillers(), seed=st.integers(0, 1000))
def test_the_order_of_the_base_does_not_matter_to_the_passages(
    base: pl.DataFrame, filler: list[str], seed: int
) -> None:
    made = at_distance(base, filler, distances=[0], seed=seed)
    other = at_distance(base.reverse(), filler, distances=[0], seed=seed)
    assert made.sort("text").equals(other.sort("text"))


def test_a_seed_always_gives_the_same_passages_and_another_gives_others() -> None:
    again = at_distance(BASES["item"], FILLER, distances=DISTANCES, seed=0)
    other = at_distance(BASES["item"], FILLER, distances=DISTANCES, seed=1)
    assert again.equals(MADE["item"])
    assert not np.array_equal(other["passage"], again["passage"])


# What is refused

SMALL = _base(["An apple", "A chair"], ["apple", "chair"])
SHORT = [f"Sentence number {number} has exactly ten words in all of it." for number in ("one", "two", "three", "four")]


def test_the_small_base_of_the_refusals_is_itself_a_good_one() -> None:
    made = at_distance(SMALL, SHORT, distances=[0, 12], seed=0)
    assert made["text"][0] == "An apple."
    assert made["text"][2].startswith("An apple. Sentence number")


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        ([], r"distances \[\]"),
        ([0, -1], r"distances \[0, -1\]; give different numbers from 0 up"),
        ([10, 10], r"distances \[10, 10\]; give different numbers"),
        ([1000], "44 words, which are 53 nominal tokens; distance 1000 needs 833 words: add sentences"),
        ([3], "distance 3 comes to 0 whole sentences, as does 0"),
        ([12, 14], "distance 12 comes to 1 whole sentences, as does 14"),
    ],
)
def test_distances_that_the_filler_cannot_make_are_refused(distances: list[int], message: str) -> None:
    with pytest.raises(StimulusError, match=message):
        at_distance(SMALL, SHORT, distances=distances, seed=0)


@pytest.mark.parametrize("filler", [[*SHORT, " "], [*SHORT, SHORT[0]]])
def test_a_filler_with_empty_or_equal_sentences_is_refused(filler: list[str]) -> None:
    with pytest.raises(StimulusError, match="empty or equal sentences"):
        at_distance(SMALL, filler, distances=[0], seed=0)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (SMALL.drop("group"), "has no column 'group'"),
        (SMALL.with_columns(group=pl.lit(None, pl.String)), "'group' of the base must hold a text in every row"),
        (SMALL.with_columns(text=pl.lit(" ")), "'text' of the base must hold a text in every row"),
        (SMALL.with_columns(passage=pl.lit(1)), "already has a column 'passage'"),
        (SMALL.with_columns(text=pl.Series(["A chair", "A chair."])), "'A chair.' comes out more than once"),
        (SMALL.with_columns(pl.lit("apple").alias("span.object")), "span.object: 'apple' does not occur in the text"),
    ],
)
def test_a_base_that_cannot_be_followed_is_refused(base: pl.DataFrame, message: str) -> None:
    with pytest.raises(StimulusError, match=message):
        at_distance(base, SHORT, distances=[0, 12], seed=0)
