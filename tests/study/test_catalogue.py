"""Reading studies: what is refused, and that it is told where and how to mend it."""

from pathlib import Path

import pytest

from stratoscope.study.catalogue import builtin_studies, parse_study, read_study, with_profile
from stratoscope.study.config import Study
from stratoscope.study.parts import StudyError

SMALL = """
study: small
version: "1"
title: Small
about: Two experiments.
experiments:
  - name: one
    title: One
    question: What?
    control: None.
    texts: {design: rows, table: one.csv}
    targets:
      - {label: living}
      - {label: size, kind: values}
  - name: far
    title: Far
    question: How far?
    control: None.
    level: context
    texts: {design: at_distance, of: one, filler: filler, distances: [0, 10, 50]}
    targets:
      - {label: living, by: distance}
coordination: {of: [one, far/living]}
claims:
  - {claim: One fades., paper: "-", rule: fades, experiments: [one]}
  - {claim: Far stays., paper: "-", rule: deep, experiments: [far]}
profiles:
  quick: {about: less, experiments: [one], targets: {one: [living]}, n_groups: 9, permutations: 7, layers: "0:12:2"}
  near: {about: nearer, distances: [10], folds: 3}
"""


def test_the_built_in_study_is_read_by_its_name() -> None:
    assert "hierarchy" in builtin_studies()
    study, folder = read_study("hierarchy")
    assert folder is None
    assert {e.level for e in study.experiments} >= {"item", "relation", "analogy", "document", "context", "list"}


def test_a_study_is_read_from_a_file_and_knows_where_its_tables_are(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    study, folder = read_study(path)
    assert (study.study, folder) == ("small", tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("title: Small", "titel: Small", "unknown key 'titel'; did you mean 'title'?"),
        ("kind: values", "knd: values", "unknown key 'knd'; did you mean 'kind'?"),
        ("title: Small", "title: Small\ntitle: Twice", "line 5: the key 'title' is given twice"),
        ("name: far", "name: one", "two experiments are called 'one'"),
        ("of: one, filler", "of: two, filler", "there is no experiment 'two'; there are one, far"),
        ("{label: size, kind: values}", "{label: living}", "two targets are called 'living'"),
        ("[one, far/living]", "[one, far/size]", "'far/size': experiment far has no such target"),
        ("experiments: [far]}", "experiments: [near]}", "there is no experiment 'near'"),
        ("design: rows", "design: row", "design"),
        ("name: one", "name: One/Two", "experiments.0.name"),
        ("about: Two experiments.", "about: [", "is not YAML"),
        ("distances: [0, 10, 50]", "distances: [-1]", "distances.0"),
    ],
)
def test_a_fault_is_refused_with_its_place(before: str, after: str, told: str) -> None:
    parse_study(SMALL, "small.yaml")  # it is the change alone that is refused
    assert before in SMALL
    with pytest.raises(StudyError) as caught:
        parse_study(SMALL.replace(before, after, 1), "small.yaml")
    assert told in str(caught.value)
    assert str(caught.value).startswith("small.yaml")


def test_every_fault_of_a_file_is_told_at_once() -> None:
    with pytest.raises(StudyError) as caught:
        parse_study(SMALL.replace("title: Small", "titel: Small").replace("kind: values", "knd: values"), "s.yaml")
    assert len(str(caught.value).splitlines()) == 3  # both keys, and the title that is now missing


def test_python_objects_in_a_file_are_refused() -> None:
    with pytest.raises(StudyError, match="is not YAML"):
        parse_study("study: !!python/object/apply:os.getcwd []", "evil.yaml")


def test_a_profile_keeps_what_it_names_and_drops_questions_about_the_rest() -> None:
    study = parse_study(SMALL, "small.yaml", profile="quick")
    assert [e.name for e in study.experiments] == ["one"]
    assert [t.title for t in study.experiments[0].targets] == ["living"]
    assert (study.n_groups, study.statistics.permutations, study.reading.layers) == (9, 7, "0:12:2")
    assert study.coordination is not None
    assert study.coordination.of == ("one",)
    assert [claim.claim for claim in study.claims] == ["One fades."]
    assert study.profile == "quick"


def test_a_profile_changes_distances_and_leaves_the_rest_as_it_was() -> None:
    whole, near = parse_study(SMALL, "s"), parse_study(SMALL, "s", profile="near")
    assert near.experiments[1].texts.distances == (10,)  # type: ignore[union-attr]
    assert near.experiments[0] == whole.experiments[0]
    assert near.statistics == whole.statistics.model_copy(update={"folds": 3})
    assert near.claims == whole.claims


def test_an_unknown_profile_or_study_is_refused_with_those_there_are() -> None:
    with pytest.raises(StudyError, match="no profile 'fast'; there are: quick, near"):
        parse_study(SMALL, "small.yaml", profile="fast")
    with pytest.raises(StudyError, match="no built-in study 'hierachy'; there are hierarchy"):
        read_study("hierachy")
    with pytest.raises(StudyError, match="cannot be read"):
        read_study("nowhere.yaml")


def test_what_is_recorded_is_the_same_study() -> None:
    for profile in (None, "quick", "near"):
        study = parse_study(SMALL, "small.yaml", profile=profile)
        again = Study.model_validate(study.recorded())
        assert again == study.model_copy(update={"profiles": {}})


def test_every_profile_of_every_built_in_study_can_be_used() -> None:
    for name in builtin_studies():
        study, _ = read_study(name)
        for profile in study.profiles:
            assert with_profile(study, profile).profile == profile
