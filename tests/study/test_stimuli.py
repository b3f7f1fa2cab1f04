"""The stimuli of studies: what the built-in one is made of, and what is refused of a study of one's own."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stratoscope.errors import StimulusError
from stratoscope.probes.baselines import bag_of_words
from stratoscope.probes.sweep import sweep
from stratoscope.study.captures import distinct, make_captures
from stratoscope.study.catalogue import parse_study, read_study
from stratoscope.study.config import Study
from stratoscope.study.designs.templates import filled
from stratoscope.study.fits import list_fits
from stratoscope.study.stimuli import make_stimuli, read_table
from stratoscope_server.engines.synthetic import SyntheticRunner

CARD = SyntheticRunner().card
BALANCED = ("relation", "analogy", "document", "list", "relation-far")
"""Experiments in which a bag of words is at chance by design."""

Frames = Mapping[str, pl.DataFrame]


@pytest.fixture(scope="module")
def study() -> Study:
    return read_study("hierarchy")[0]


@pytest.fixture(scope="module")
def stimuli(study: Study) -> Frames:
    return make_stimuli(study, None)


def test_the_built_in_study_has_the_material_it_promises(stimuli: Frames) -> None:
    items, pairs = read_table("items", None), read_table("pairs", None)
    binary = [name for name in items.columns if set(items[name].drop_nulls()) == {0, 1}]
    assert items.height >= 300
    assert len(binary) >= 8
    assert {"log10_size_cm", "hardness", "category"} <= set(items.columns)
    counts = pairs["relation"].value_counts()["count"]
    assert len(counts) >= 12
    assert counts.min() >= 25  # type: ignore[operator]
    assert read_table("scenes", None)["scene"].n_unique() >= 60
    assert stimuli["document"].height >= 200


@pytest.mark.filterwarnings("ignore::stratoscope.probes.ConstantFeatureWarning")  # "a" is in every text
@pytest.mark.parametrize("name", BALANCED)
def test_a_bag_of_words_is_at_chance_where_the_design_says_so(study: Study, stimuli: Frames, name: str) -> None:
    fits = [fit for fit in list_fits(study, stimuli) if fit.experiment.name == name and not fit.target.control]
    assert fits
    for fit in fits:
        words = bag_of_words(fit.rows["text"].to_list()).astype(np.float64)
        result = sweep(
            {("words", None): words}, fit.rows[fit.target.label].to_numpy(), groups=fit.groups.to_numpy(),
            probe="ridge_classifier", alpha=1.0, controls=(), scale=False,
        )  # fmt: skip
        score = result.scores.filter(metric="roc_auc", level="outer")["score"].mean()
        assert score == pytest.approx(0.5, abs=0.02), fit.title


def test_no_text_is_in_two_groups_and_no_group_in_two_halves_of_a_fold(study: Study, stimuli: Frames) -> None:
    for fit in list_fits(study, stimuli):
        groups = pl.DataFrame({"text": fit.rows["text"], "group": fit.groups})
        assert groups.group_by("text").agg(pl.col("group").n_unique())["group"].max() == 1, fit.title
        assert fit.groups.n_unique() >= 16, fit.title


def test_equal_texts_of_two_experiments_are_one_stimulus(study: Study, stimuli: Frames) -> None:
    same = stimuli["relation"].join(stimuli["relation_kind"], on="text", how="inner")
    assert same.height == stimuli["relation"].height
    assert (same["stimulus_id"] == same["stimulus_id_right"]).all()
    near = stimuli["item-far"].filter(distance=0).join(stimuli["item"], on="text", how="inner")
    assert near.height > 50
    assert (near["stimulus_id"] == near["stimulus_id_right"]).all()
    captures = distinct(make_captures(study, stimuli, CARD))
    assert sorted(capture.sites for capture in captures) == [("embed", "resid_post", "attn_out", "mlp_out"), ("heads",)]
    for capture in captures:
        assert capture.texts["text"].is_unique().all()


def test_neutral_text_names_nothing_that_is_asked_about() -> None:
    def words(*columns: pl.Series) -> set[str]:
        return {word for column in columns for text in column for word in re.findall(r"[a-z]+", text.lower())}

    items, pairs = read_table("items", None), read_table("pairs", None)
    asked = words(items["object"], pairs["first"], pairs["second"]) | words(
        read_table("items", None)["category"].drop_nulls()
    )
    filler = words(read_table("filler", None)["sentence"])
    stems = {word for word in filler if word in asked or word.removesuffix("s") in asked}
    assert len(filler) > 300
    assert stems <= {"a", "of", "the"}, stems


def test_what_lies_at_a_distance_ends_alike_in_both_classes(stimuli: Frames) -> None:
    for name, label in (("item-far", "living"), ("relation-far", "related")):
        far = stimuli[name].filter(pl.col("distance") == 200)
        endings = (
            far.with_columns(end=pl.col("text").str.slice(-60)).group_by("end").agg(pl.col(label).mean(), pl.len())
        )
        assert 2 <= endings.height <= 8
        assert ((endings[label] - far[label].mean()).abs() <= 0.15).all()


SMALL = """
study: small
version: "1"
title: Small
about: One experiment.
experiments:
  - name: one
    title: One
    question: What?
    control: None.
    texts: TEXTS
    group: kind
    targets: [{label: label}]
"""


TABLE = "{design: filled, table: table.csv, "
ROWS = "{design: rows, table: table.csv}"


def small(tmp_path: Path, texts: str, table: str = "noun,kind,label\ncat,a,1\ndog,b,0\n") -> Frames:
    (tmp_path / "table.csv").write_text(table)
    return make_stimuli(parse_study(SMALL.replace("TEXTS", texts), "small.yaml"), tmp_path)


def test_a_table_of_ones_own_is_filled_in(tmp_path: Path) -> None:
    frames = small(tmp_path, TABLE + 'template: "A {noun}."}')
    assert frames["one"]["text"].to_list() == ["A cat.", "A dog."]
    assert frames["one"].select("n_characters", "n_words").rows() == [(6, 2), (6, 2)]


@pytest.mark.parametrize(
    ("texts", "table", "told"),
    [
        (TABLE + 'template: "A {nuon}."}', None, "no column 'nuon'; it has noun, kind, label"),
        (TABLE + 'template: "A cat"}', None, "must hold names of columns in braces"),
        (TABLE + 'template: "A {noun.upper}"}', None, "must hold names of columns in braces"),
        (TABLE + 'template: "A {kind}"}', "noun,kind,label\ncat,a,1\ndog,a,0\n", "more than once"),
        (TABLE + 'template: "A {noun}"}', "noun,kind,label\ncat,a,1\n,a,0\n", "empty in row 2"),
        (ROWS, None, "no column 'text'"),
        (ROWS, "text,kind,label\nx,a,1\nx,b,0\n", "the text 'x' occurs more than once"),
        ("{design: rows, table: gone.csv}", None, "there is no such file"),
        ("{design: rows, table: itmes}", None, "no built-in table 'itmes'; there are filler, frequencies, items"),
        (TABLE + 'join: items, template: "A {noun}"}', None, "must share exactly one"),
        (TABLE + 'template: "A {noun}"}', "noun,group,label\ncat,a,1\n", "no column 'kind'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, texts: str, table: str | None, told: str) -> None:
    with pytest.raises(StimulusError, match=re.escape(told)):
        small(tmp_path, texts, **({} if table is None else {"table": table}))


def test_a_joined_table_adds_its_columns_by_the_one_that_both_have() -> None:
    items = make_stimuli(read_study("hierarchy")[0], None)["item"]
    zipf = dict(read_table("frequencies", None).rows())
    assert items["zipf"].to_list() == [zipf[name] for name in items["object"]]


def test_spans_are_kept_where_they_are_read_and_dropped_where_not(tmp_path: Path) -> None:
    table = "text,span.noun,kind,label\nA cat sat,cat,a,1\nA dog sat,dog,b,0\n"
    plain = small(tmp_path, "{design: rows, table: table.csv}", table)["one"]
    study = parse_study(
        SMALL.replace("TEXTS", "{design: rows, table: table.csv}").replace(
            "group: kind", 'group: kind\n    read: "noun:last"'
        ),
        "small.yaml",
    )
    spanned = make_stimuli(study, tmp_path)["one"]
    assert "span.noun" not in plain.columns
    assert spanned["span.noun"].to_list() == ["cat", "dog"]
    assert not set(plain["stimulus_id"]) & set(spanned["stimulus_id"])
    (capture,) = distinct(make_captures(study, {"one": spanned}, CARD))
    assert [stimulus.spans for stimulus in capture.table.stimuli] == [{"noun": (2, 5)}, {"noun": (2, 5)}]


def test_a_template_takes_nothing_but_names_of_columns() -> None:
    frame = pl.DataFrame({"noun": ["cat"]})
    for template in ("{noun!r}", "{noun:>9}", "{noun[0]}", "{0}", "{", "{noun.__class__}"):
        with pytest.raises(StimulusError):
            filled(frame, template=template)
