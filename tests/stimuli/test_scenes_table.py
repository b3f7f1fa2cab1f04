"""The built-in scenes and filler: complete, balanced, and silent about what they are about."""

import csv
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations

import numpy as np
import polars as pl
import pytest

TABLES = files("stratoscope") / "study" / "builtin" / "tables"
EXPERIMENTS = files("stratoscope") / "experiments"
SCENES = pl.read_csv((TABLES / "scenes.csv").read_bytes())
FILLER = pl.read_csv((TABLES / "filler.csv").read_bytes())["sentence"].to_list()

LABELS = ("tense", "indoors", "work")
PER_SCENE = SCENES.unique("scene", maintain_order=True)
WORDS_OF_SLOT = [10, 9, 8, 11, 10, 8, 9, 10]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower().replace("'s", ""))


def words_in(text: str) -> frozenset[str]:
    return frozenset(words(text))


# They would point to a sentence that is not there, or to a person that another sentence has brought up.
POINTERS = words_in(
    "he she they him her them his hers their theirs it its this these those such there here former latter"
)

# Words that may occur twice in a scene: function words, numbers, and the most common verbs, adverbs and adjectives.
LIGHT = words_in(
    """a an the of in on at to by for from with without within and or but as than then that which while if so too very
    was were had been be is did would could not no more most all both each every other others another same only almost
    one two three four five six seven eight nine ten eleven twelve thirty forty twenty first second third last next
    over under up down out off into onto along through past back behind beside between before after since until above
    below again once twice around away far toward near nearer against across left right side
    came come went gone lay stood put set made gave given took taken kept held asked had"""
)

# Words that would tell by themselves that something threatens to go wrong.
ALARMS = words_in(
    "danger dangerous fear afraid anxious nervous worried threat alarm panic scream suddenly emergency risk"
)

# Column names of the nouns of the sets that are looked for behind filler.
NOUNS = {"item.csv": ["object"], "relation.csv": ["first", "second"], "analogy.csv": ["a", "b", "c", "d"]}


def stem(word: str) -> str:
    ending = next((end for end in ("ing", "ed", "es", "s") if word.endswith(end) and len(word) - len(end) >= 3), "")
    return word.removesuffix(ending)


def experiment_nouns() -> set[str]:
    found: set[str] = set()
    for name, columns in NOUNS.items():
        rows = csv.DictReader((EXPERIMENTS / name).read_text(encoding="utf-8").splitlines())
        found |= {word for row in rows for column in columns for word in words(row[column])}
    return found


# The scenes


def test_there_are_64_scenes_of_8_sentences_in_16_domains() -> None:
    assert SCENES.columns == ["scene", "domain", *LABELS, "slot", "sentence"]
    assert sum(SCENES.null_count().row(0)) == 0
    assert PER_SCENE.height == 64
    assert set(PER_SCENE["domain"].value_counts()["count"]) == {4}
    assert PER_SCENE["domain"].n_unique() == 16
    for part in SCENES.partition_by("scene"):
        assert part["slot"].to_list() == list(range(1, 9))


def test_labels_and_domains_live_at_the_scene() -> None:
    for part in SCENES.partition_by("scene"):
        assert part.select("domain", *LABELS).n_unique() == 1


def test_every_combination_of_labels_occurs_in_8_scenes() -> None:
    assert set(PER_SCENE.group_by(LABELS).len()["len"]) == {8}
    assert PER_SCENE.select(LABELS).n_unique() == 8


@pytest.mark.parametrize("label", LABELS)
def test_a_label_holds_of_half_of_every_domain(label: str) -> None:
    assert set(PER_SCENE[label]) == {0, 1}
    assert set(PER_SCENE.group_by("domain").agg(pl.col(label).mean())[label]) == {0.5}


@pytest.mark.parametrize(("one", "other"), list(combinations(LABELS, 2)))
def test_two_labels_are_independent(one: str, other: str) -> None:
    assert np.corrcoef(PER_SCENE[one], PER_SCENE[other])[0, 1] == pytest.approx(0)


def test_a_name_is_a_short_identifier_of_one_scene() -> None:
    assert PER_SCENE["scene"].is_unique().all()
    assert PER_SCENE["scene"].str.contains(r"^[a-z]+(_[a-z]+){0,2}$").all()


def test_no_sentence_names_its_scene() -> None:
    for scene, sentence in SCENES.select("scene", "sentence").iter_rows():
        parts = [stem(part)[:5] for part in scene.split("_") if len(part) > 2]
        assert parts, scene
        assert not [word for word in words(sentence) for part in parts if part in word], (scene, sentence)


def test_a_sentence_is_whole_and_of_7_to_14_words_and_there_once() -> None:
    assert SCENES["sentence"].is_unique().all()
    for sentence in SCENES["sentence"]:
        assert re.fullmatch(r"[A-Z][A-Za-z',-]*( [A-Za-z',-]+)+\.", sentence), sentence
        assert 7 <= len(sentence.split()) <= 14, sentence


def test_sentences_of_one_slot_have_the_same_number_of_words() -> None:
    for slot, n_words in enumerate(WORDS_OF_SLOT, start=1):
        sentences = SCENES.filter(slot=slot)["sentence"]
        assert {len(sentence.split()) for sentence in sentences} == {n_words}, slot


def test_no_sentence_points_to_another_one() -> None:
    for sentence in SCENES["sentence"]:
        assert not POINTERS & set(words(sentence)), sentence


def test_no_single_word_raises_an_alarm() -> None:
    for sentence in SCENES["sentence"]:
        assert not ALARMS & set(words(sentence)), sentence


def test_no_content_word_ties_two_sentences_of_a_scene() -> None:
    for part in SCENES.partition_by("scene"):
        seen = Counter(
            content
            for sentence in part["sentence"]
            for content in {stem(word) for word in words(sentence) if word not in LIGHT}
        )
        assert [word for word, count in seen.items() if count > 1] == [], part["scene"][0]


# The filler


def test_the_filler_has_at_least_110_different_sentences_and_1000_words() -> None:
    assert len(FILLER) >= 110
    assert len(set(FILLER)) == len(FILLER)
    assert sum(len(sentence.split()) for sentence in FILLER) >= 1000


def test_a_sentence_of_the_filler_is_whole_and_of_7_to_13_words() -> None:
    for sentence in FILLER:
        assert re.fullmatch(r"[A-Z][a-z]*( [A-Za-z]+,?)+\.", sentence), sentence
        assert 7 <= len(sentence.split()) <= 13, sentence


def test_the_filler_holds_no_noun_of_the_experiments() -> None:
    nouns = experiment_nouns()
    assert {"apple", "church", "organ", "lamb"} <= nouns
    stems = {stem(noun) for noun in nouns}
    for sentence in FILLER:
        assert not [word for word in words(sentence) if word in nouns or stem(word) in stems], sentence
