"""Documents: the sentences alone say nothing of whether they belong together, and next to nothing of the scene."""

from collections import Counter
from importlib.resources import files
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from stratoscope.errors import StimulusError
from stratoscope.study.designs.documents import documents

Array = NDArray[np.float64]

TABLES = files("stratoscope") / "study" / "builtin" / "tables"
SCENES = pl.read_csv((TABLES / "scenes.csv").read_bytes())
LABELS = ["tense", "indoors", "work"]
SEEDS = range(3)
MADE = {seed: documents(SCENES, seed=seed) for seed in SEEDS}

# Both start at zero weights, where the gradient of a closed block is zero: what they find is exact.
LINEAR = {
    "logistic regression": LogisticRegression(max_iter=1000),
    "linear support vector machine": LinearSVC(dual=False),
}

# Twice the standard error of a coin over 64 scenes: 2 * sqrt(0.25 / 64). The two documents of a scene are not
# independent, and neither are the seeds.
LABEL_TOLERANCE = 0.125

# Mixed documents repeat a word a little more often than coherent ones: the scenes were written without repetition.
REPETITION_TOLERANCE = 0.1

every_seed = pytest.mark.parametrize("seed", SEEDS)
every_linear = pytest.mark.parametrize("kind", LINEAR)


def _sentences(text: str) -> list[str]:
    return [f"{part}." for part in text.removesuffix(".").split(". ")]


def _words(texts: list[str], *, binary: bool = False) -> Array:
    counts = CountVectorizer(token_pattern=r"(?u)\b\w+\b", binary=binary).fit_transform(texts)
    return np.asarray(counts.toarray(), dtype=np.float64)


def _one_hot(texts: list[str], *, positions: bool) -> Array:
    rows = [[(k if positions else 0, sentence) for k, sentence in enumerate(_sentences(text))] for text in texts]
    column = {key: j for j, key in enumerate(sorted({key for row in rows for key in row}))}
    x = np.zeros((len(rows), len(column)))
    for i, row in enumerate(rows):
        for key in row:
            x[i, column[key]] += 1
    return x


def _lengths(texts: list[str]) -> Array:
    return np.array([[len(text), len(text.split())] for text in texts], dtype=np.float64)


def _repetitions(texts: list[str]) -> Array:
    """Characters, words, and words that a document holds more than once."""
    repeated = [[sum(count - 1 for count in Counter(text.lower().split()).values())] for text in texts]
    return np.hstack([_lengths(texts), np.array(repeated, dtype=np.float64)])


def _score(model: Any, x: Array, y: NDArray[np.int64], groups: list[str], folds: int) -> float:
    guesses = cross_val_predict(model, x, y, groups=groups, cv=GroupKFold(folds))
    return float(balanced_accuracy_score(y, guesses))


def _coherence(seed: int) -> tuple[list[str], NDArray[np.int64], list[str]]:
    made = MADE[seed]
    return made["text"].to_list(), made["coherent"].to_numpy(), made["group"].to_list()


# What is made of the built-in scenes


@every_seed
def test_64_scenes_make_256_documents_in_16_blocks(seed: int) -> None:
    made = MADE[seed]
    assert made.columns == ["text", "group", "coherent", "part", "scene", "scene_group", "domain", *LABELS]
    assert made.height == 256
    assert made["text"].is_unique().all()
    assert set(made.group_by("group").len()["len"]) == {16}
    assert set(made.group_by("group", "part", "coherent").len()["len"]) == {4}


@every_seed
def test_a_coherent_document_has_its_scene_with_labels_and_a_mixed_one_has_none(seed: int) -> None:
    coherent = MADE[seed].filter(coherent=1)
    mixed = MADE[seed].filter(coherent=0)
    known = ["scene", "scene_group", "domain", *LABELS]
    assert sum(coherent.select(known).null_count().row(0)) == 0
    assert mixed.select(known).null_count().row(0) == (mixed.height,) * len(known)
    told = SCENES.unique("scene").select("scene", "domain", *LABELS).sort("scene")
    assert coherent.select("scene", "domain", *LABELS).unique().sort("scene").equals(told)
    assert coherent["scene_group"].equals(coherent["scene"].alias("scene_group"))


@every_seed
def test_a_coherent_document_holds_four_sentences_of_its_scene_and_a_mixed_one_of_four_domains(seed: int) -> None:
    of = {row["sentence"]: row for row in SCENES.iter_rows(named=True)}
    for text, coherent, scene in MADE[seed].select("text", "coherent", "scene").iter_rows():
        sentences = [of[sentence] for sentence in _sentences(text)]
        slots = [sentence["slot"] for sentence in sentences]
        assert len(slots) == 4
        assert slots == sorted(set(slots))
        assert (
            {row["scene"] for row in sentences} == {scene}
            if coherent
            else len({row["domain"] for row in sentences}) == 4
        )


@every_seed
def test_no_scene_is_in_two_blocks(seed: int) -> None:
    groups = MADE[seed].filter(coherent=1).group_by("scene").agg(pl.col("group").n_unique(), pl.col("part").n_unique())
    assert groups.height == 64
    assert set(groups["group"]) == {1}
    assert set(groups["part"]) == {2}


@every_seed
def test_every_sentence_is_once_in_a_document_of_either_kind_at_the_same_place_of_the_same_block(seed: int) -> None:
    kinds: dict[tuple[str, str, int], list[int]] = {}
    for text, group, coherent in MADE[seed].select("text", "group", "coherent").iter_rows():
        for place, sentence in enumerate(_sentences(text)):
            kinds.setdefault((group, sentence, place), []).append(coherent)
    assert len(kinds) == SCENES.height
    assert {tuple(sorted(kind)) for kind in kinds.values()} == {(0, 1)}


@every_seed
def test_lengths_add_up_to_the_same_in_both_kinds_of_a_block_and_words_are_equally_many_in_every_text(
    seed: int,
) -> None:
    sized = MADE[seed].with_columns(
        characters=pl.col("text").str.len_chars(), words=pl.col("text").str.split(" ").list.len()
    )
    totals = sized.group_by("group", "part", "coherent").agg(pl.col("characters").sum())
    assert set(totals.group_by("group", "part").agg(pl.col("characters").n_unique())["characters"]) == {1}
    assert set(sized.group_by("group", "part").agg(pl.col("words").n_unique())["words"]) == {1}


# What the surface says


@every_seed
@every_linear
@pytest.mark.parametrize("what", ["words", "sentences", "sentences by place"])
def test_what_adds_up_single_words_or_sentences_is_exactly_at_chance_for_coherence(
    what: str, kind: str, seed: int
) -> None:
    texts, y, groups = _coherence(seed)
    x = _words(texts) if what == "words" else _one_hot(texts, positions=what == "sentences by place")
    assert x.sum() > 0
    assert _score(LINEAR[kind], x, y, groups, 5) == 0.5


def test_the_same_classifier_reads_what_is_planted() -> None:
    texts, y, groups = _coherence(0)
    x = np.hstack([_words(texts), y[:, None]])
    assert _score(LINEAR["logistic regression"], x, y, groups, 5) > 0.9


@every_seed
def test_lengths_and_repeated_words_are_near_chance_for_coherence(seed: int) -> None:
    texts, y, groups = _coherence(seed)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    assert abs(_score(model, _lengths(texts), y, groups, 5) - 0.5) <= REPETITION_TOLERANCE
    assert abs(_score(model, _repetitions(texts), y, groups, 5) - 0.5) <= REPETITION_TOLERANCE


@pytest.mark.parametrize("group", ["scene_group", "domain"])
@pytest.mark.parametrize("what", ["words", "presence of words", "characters"])
@pytest.mark.parametrize("label", LABELS)
def test_words_and_length_are_near_chance_for_the_labels_of_the_scenes(label: str, what: str, group: str) -> None:
    scores = []
    for made in MADE.values():
        coherent = made.filter(coherent=1)
        texts = coherent["text"].to_list()
        x = _lengths(texts)[:, :1] if what == "characters" else _words(texts, binary=what != "words")
        model = make_pipeline(StandardScaler(with_std=what == "characters"), LogisticRegression(max_iter=1000))
        scores.append(_score(model, x, coherent[label].to_numpy(), coherent[group].to_list(), 8))
    assert abs(np.mean(scores) - 0.5) <= LABEL_TOLERANCE


# What the design promises of any table


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    """Scenes with one label, of four or more domains of which none has more than a quarter."""
    n_blocks = draw(st.integers(1, 3))
    n_slots = draw(st.sampled_from([4, 8]))
    sizes = [n_blocks] * 4 if draw(st.booleans()) else [1] * (4 * n_blocks)
    domains = [f"domain {number}" for number, size in enumerate(sizes) for _ in range(size)]
    labels = draw(st.lists(st.integers(0, 1), min_size=len(domains), max_size=len(domains)))
    rows = [
        {
            "scene": f"s{number}",
            "domain": domain,
            "calm": label,
            "slot": slot,
            "sentence": f"Number {number} of {slot}.",
        }
        for number, (domain, label) in enumerate(zip(domains, labels, strict=True))
        for slot in range(1, n_slots + 1)
    ]
    return pl.DataFrame(draw(st.permutations(rows)))


@given(table=tables(), seed=st.integers(0, 1000))
def test_any_table_is_counterbalanced_sentence_by_sentence_and_place_by_place(table: pl.DataFrame, seed: int) -> None:
    made = documents(table, seed=seed)
    assert made.height == table.height // 2
    signed = Counter[tuple[str, int, str]]()
    for text, group, coherent in made.select("text", "group", "coherent").iter_rows():
        for place, sentence in enumerate(_sentences(text)):
            signed[group, place, sentence] += 1 if coherent else -1
    assert len(signed) == table.height
    assert set(signed.values()) == {0}


@given(table=tables(), seed=st.integers(0, 1000))
def test_the_order_of_the_rows_does_not_matter(table: pl.DataFrame, seed: int) -> None:
    assert documents(table, seed=seed).equals(documents(table.reverse(), seed=seed))


@given(table=tables(), seed=st.integers(0, 1000))
def test_scenes_of_a_block_are_of_different_domains(table: pl.DataFrame, seed: int) -> None:
    blocks = documents(table, seed=seed).filter(coherent=1, part=1).group_by("group").agg(pl.col("domain").n_unique())
    assert set(blocks["domain"]) == {4}


def test_a_seed_always_gives_the_same_documents_and_another_gives_others() -> None:
    assert documents(SCENES, seed=0).equals(MADE[0])
    assert set(MADE[0]["text"]) != set(MADE[1]["text"])


# What is refused


def _small() -> pl.DataFrame:
    rows = [
        {"scene": scene, "domain": f"of {scene}", "calm": 1, "slot": slot, "sentence": f"{scene} has {slot}."}
        for scene in "abcd"
        for slot in range(1, 5)
    ]
    return pl.DataFrame(rows)


def test_the_small_table_of_the_refusals_is_itself_a_good_one() -> None:
    assert documents(_small(), seed=0).height == 8


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (_small().drop("domain"), "has no column 'domain'"),
        (_small().with_columns(part=pl.lit(1)), "has a column 'part', a name of the design"),
        (_small().with_columns(calm=pl.when(pl.col("slot") < 2).then(1)), "'calm' is empty in row 2"),
        (_small().with_columns(sentence=pl.lit("The same.")), "'The same.' occurs more than once"),
        (_small().with_columns(sentence=pl.int_range(pl.len())), "'sentence' is Int64; it must hold texts"),
        (_small().filter(pl.col("scene") != "d"), "3 scenes of 4 slots; both must be multiples of 4"),
        (_small().filter(pl.col("slot") != 4), "4 scenes of 3 slots"),
        (_small().clear(), "0 scenes of 0 slots"),
        (_small().slice(1), r"'a' has the slots \[2, 3, 4\]; each of 1 to 4"),
        (_small().with_columns(calm=pl.col("slot")), "'a' has more than one 'calm'"),
        (_small().with_columns(domain=pl.lit("one")), "'one' has 4 of 4 scenes; at most 1 can be placed"),
    ],
)
def test_a_table_that_cannot_be_counterbalanced_is_refused(spoilt: pl.DataFrame, message: str) -> None:
    with pytest.raises(StimulusError, match=message):
        documents(spoilt, seed=0)
