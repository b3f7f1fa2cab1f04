"""Folds keep groups whole, balance classes, and refuse designs that cannot carry them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, KFold, PredefinedSplit, ShuffleSplit

from stratoscope.probes import DesignError, assign_folds
from stratoscope.probes.folds import check_folds, check_texts, folds_hash, folds_of_targets, make_splits
from stratoscope.probes.labels import Kind, encode


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=12, max_size=40),
    n_folds=st.integers(2, 4),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["classes", "values"]),
)
def test_a_group_never_crosses_folds(sizes: list[int], n_folds: int, seed: int, kind: Kind) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    y = (groups % 2).astype(float) if kind == "classes" else np.arange(len(groups), dtype=float)
    assert len(groups) >= len(sizes)
    fold_of = assign_folds(y, groups, n_folds=n_folds, kind=kind, seed=seed)
    assert set(fold_of) == set(range(n_folds))
    for group in np.unique(groups):
        assert len(set(fold_of[groups == group])) == 1


def test_folds_depend_on_the_set_of_stimuli_and_not_on_their_order() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([f"item{i:02d}" for i in range(30)]).repeat(2)
    y = (np.arange(60) // 2 % 2).astype(float)
    order = rng.permutation(60)
    assert not np.array_equal(groups[order], groups)
    straight = assign_folds(y, groups, n_folds=5)
    np.testing.assert_array_equal(assign_folds(y[order], groups[order], n_folds=5), straight[order])


def test_another_seed_gives_other_folds_and_the_same_seed_the_same() -> None:
    groups, y = np.arange(40), (np.arange(40) % 2).astype(float)
    first = assign_folds(y, groups, n_folds=5, seed=0)
    np.testing.assert_array_equal(first, assign_folds(y, groups, n_folds=5, seed=0))
    assert not np.array_equal(first, assign_folds(y, groups, n_folds=5, seed=1))


def test_classes_are_balanced_over_folds() -> None:
    y = np.repeat([0.0, 1.0], [30, 20])
    fold_of = assign_folds(y, np.arange(50), n_folds=5)
    for fold in range(5):
        assert np.bincount(y[fold_of == fold].astype(int)).tolist() == [6, 4]


def test_splits_are_those_of_a_predefined_split() -> None:
    y, groups = np.tile([0.0, 1.0], 15), np.arange(30) // 2
    fold_of = assign_folds(y, groups, n_folds=3)
    for ours, (train, test) in zip(make_splits(fold_of, groups), PredefinedSplit(fold_of).split(), strict=True):
        np.testing.assert_array_equal(ours.train, train)
        np.testing.assert_array_equal(ours.test, test)


def test_inner_folds_stay_inside_the_training_rows_and_keep_groups_whole() -> None:
    groups = np.arange(60) // 3
    fold_of = assign_folds(np.arange(60.0), groups, n_folds=4, kind="values")
    for split in make_splits(fold_of, groups, inner_folds=3):
        assert len(split.inner) == 3
        for train, test in split.inner:
            assert set(train) | set(test) == set(range(len(split.train)))
            rows = split.train
            assert not set(groups[rows[train]]) & set(groups[rows[test]])


@pytest.mark.parametrize(
    ("y", "groups", "kind", "message"),
    [
        (np.tile([0.0, 1.0], 10), np.repeat([0, 1, 2, 3], 5), "classes", "4 groups cannot fill 5 folds"),
        (np.arange(20.0), np.repeat([0, 1, 2, 3], 5), "values", "4 groups cannot fill 5 folds"),
        (np.repeat([0.0, 1.0], [16, 4]), np.arange(20), "classes", "class 1 has 4 stimuli"),
        (np.repeat([0.0, 1.0], [12, 8]), np.r_[np.arange(12), np.arange(8) // 2 + 12], "classes", "has 4 groups"),
        (np.ones(20), np.arange(20), "values", "fewer than two different labels"),
    ],
)
def test_designs_that_cannot_fill_the_folds_are_refused(
    y: np.ndarray, groups: np.ndarray, kind: Kind, message: str
) -> None:
    with pytest.raises(DesignError, match=message):
        assign_folds(y, groups, n_folds=5, kind=kind)


@pytest.mark.parametrize(
    ("fold_of", "message"),
    [
        ([0, 1, 0, 1, 0, 1], "group 'a' is in folds 0 and 1"),
        ([0, 0, 2, 2, 2, 2], "without gaps"),
        ([0, 0, 1, 1, 1], "expected 6 integers"),
        ([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], "expected 6 integers"),
        ([0, 0, 0, 0, 0, 0], "at least two"),
    ],
)
def test_given_folds_are_checked(fold_of: list[int], message: str) -> None:
    y, groups = np.tile([0.0, 1.0], 3), ["a", "a", "b", "b", "c", "c"]
    check_folds([0, 0, 1, 1, 1, 1], y, groups, kind="classes")
    with pytest.raises(DesignError, match=message):
        check_folds(fold_of, y, groups, kind="classes")


def test_a_fold_without_a_class_is_refused() -> None:
    with pytest.raises(DesignError, match="fold 0: one class is missing from the test rows"):
        check_folds([0, 0, 1, 1, 1], np.array([0.0, 0, 0, 1, 1]), list("abcde"), kind="classes")
    with pytest.raises(DesignError, match="fold 0: one class is missing from the training rows"):
        check_folds([0, 0, 1, 1], np.array([0.0, 1, 1, 1]), list("abcd"), kind="classes")


def test_the_same_text_in_two_groups_is_refused_by_name() -> None:
    check_texts(["An apple", "An apple"], ["apple", "apple"])
    with pytest.raises(DesignError, match="'An apple' is in groups 'apple' and 'fruit'"):
        check_texts(["An apple", "An apple"], ["apple", "fruit"])


def test_too_few_groups_for_inner_folds_are_refused() -> None:
    with pytest.raises(DesignError, match="3 groups to train on cannot be divided into 5 inner folds"):
        make_splits(np.arange(4), np.arange(4), inner_folds=5)


def test_the_folds_hash_ignores_order_and_sees_a_moved_stimulus() -> None:
    ids, fold_of = ("a", "b", "c"), np.array([0, 1, 0])
    assert folds_hash(ids, fold_of) == folds_hash(("c", "b", "a"), fold_of[::-1])
    assert folds_hash(ids, fold_of) != folds_hash(ids, np.array([0, 1, 1]))


def test_a_splitter_of_scikit_learn_gives_its_own_folds() -> None:
    y, groups = np.tile([0.0, 1.0], 30), np.arange(60) // 2
    targets = encode(y, kind="classes", target="label")
    fold_of = folds_of_targets(targets, groups.astype(str), GroupKFold(6), seed=0)
    for fold, (_, test) in enumerate(GroupKFold(6).split(y, y, groups.astype(str))):
        np.testing.assert_array_equal(np.flatnonzero(fold_of == fold), np.sort(test))


def test_a_splitter_that_lets_a_group_cross_folds_is_refused_by_the_name_of_the_group() -> None:
    y, groups = np.tile([0.0, 1.0], 30), np.array([f"item{i // 2}" for i in range(60)])
    leaky = KFold(5, shuffle=True, random_state=0)
    assert any(set(groups[train]) & set(groups[test]) for train, test in leaky.split(y))
    with pytest.raises(DesignError, match=r"group 'item\d+' is in folds \d and \d: a group must stay in one fold"):
        folds_of_targets(encode(y, kind="classes", target="label"), groups, leaky, seed=0)


def test_a_splitter_that_does_not_test_every_stimulus_once_is_refused() -> None:
    y, groups = np.tile([0.0, 1.0], 30), np.arange(60).astype(str)
    with pytest.raises(DesignError, match="ShuffleSplit"):
        folds_of_targets(encode(y, kind="classes", target="label"), groups, ShuffleSplit(5, random_state=0), seed=0)


def test_several_targets_share_folds_that_hold_every_class_of_each() -> None:
    rng = np.random.default_rng(0)
    y = {name: rng.integers(0, k, 90) for name, k in (("a", 2), ("b", 3))}
    targets = encode(y, kind="classes", target="unused")
    fold_of = folds_of_targets(targets, np.arange(90).astype(str), 5, seed=0)
    for labels in targets:
        for fold in range(5):
            assert set(labels.given[fold_of == fold]) == set(labels.given)
