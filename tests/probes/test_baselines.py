"""Shuffles move labels at the level where they live; word counts leak nothing."""

import numpy as np
import pytest

from stratoscope.probes import DesignError
from stratoscope.probes.baselines import bag_of_words, label_level, permute_labels, type_labels
from stratoscope.probes.errors import ControlWarning, PermutationWarning
from stratoscope.probes.features import FoldFeatures
from stratoscope.probes.folds import assign_folds, make_splits
from stratoscope.probes.labels import Kind
from stratoscope.probes.ridge import predict_ridge

GROUP_OF = np.repeat(np.arange(20), 4)
LABELS = {
    "group": (GROUP_OF % 2).astype(float),
    "within": np.tile([0.0, 0.0, 1.0, 1.0], 20),
    "mixed": np.random.default_rng(0).normal(size=80),
}


def _shuffle(y: np.ndarray, n_shuffles: int = 5, seed: int = 0) -> np.ndarray:
    kind: Kind = "classes" if len(np.unique(y)) == 2 else "values"
    fold_of = assign_folds(y, GROUP_OF, n_folds=5, kind=kind)
    return permute_labels(y, GROUP_OF, fold_of, n_draws=n_shuffles, seed=seed)


@pytest.mark.parametrize("level", LABELS)
def test_the_level_of_a_label_is_found(level: str) -> None:
    assert label_level(LABELS[level], GROUP_OF) == level


def test_a_label_with_the_same_share_in_groups_of_different_size_lives_within() -> None:
    assert label_level(np.array([0.0, 1, 0, 1, 0, 1]), np.array([0, 0, 1, 1, 1, 1])) == "within"


@pytest.mark.parametrize("level", LABELS)
def test_a_shuffle_is_a_permutation_that_moves_labels(level: str) -> None:
    y = LABELS[level]
    for shuffled in _shuffle(y).T:
        np.testing.assert_array_equal(np.sort(shuffled), np.sort(y))
        assert np.mean(shuffled != y) > 0.1


def test_a_group_label_moves_with_its_whole_group() -> None:
    for shuffled in _shuffle(LABELS["group"]).T:
        assert all(len(np.unique(shuffled[group == GROUP_OF])) == 1 for group in range(20))


def test_a_label_within_groups_stays_balanced_in_every_group() -> None:
    for shuffled in _shuffle(LABELS["within"]).T:
        assert all(shuffled[group == GROUP_OF].sum() == 2 for group in range(20))


def test_a_mixed_label_moves_in_blocks() -> None:
    y = LABELS["mixed"]
    block_of = dict(zip(y, GROUP_OF, strict=True))
    for shuffled in _shuffle(y).T:
        for group in range(20):
            assert len({block_of[value] for value in shuffled[group == GROUP_OF]}) == 1


def test_shuffles_repeat_with_the_seed_and_differ_between_repeats() -> None:
    y = LABELS["group"]
    np.testing.assert_array_equal(_shuffle(y), _shuffle(y))
    assert not np.array_equal(_shuffle(y), _shuffle(y, seed=1))
    assert len(np.unique(_shuffle(y), axis=1).T) == 5


def test_every_shuffle_leaves_both_classes_in_every_fold() -> None:
    y, group_of = np.repeat([0.0, 1.0], 6), np.arange(12)
    fold_of = assign_folds(y, group_of, n_folds=4)
    free = [np.random.default_rng(i).permutation(y) for i in range(50)]
    lacking = [any(len(np.unique(z[fold_of == fold])) < 2 for fold in range(4)) for z in free]
    assert any(lacking), "an unguarded shuffle should lose a class here"
    for shuffled in permute_labels(y, group_of, fold_of, n_draws=50, seed=0).T:
        assert all(len(np.unique(shuffled[fold_of == fold])) == 2 for fold in range(4))


def test_words_are_counted_with_single_letters_and_without_case() -> None:
    counts = bag_of_words(["A cat and a dog", "dog"])
    assert sorted(counts[0]) == [1, 1, 1, 2]
    assert sorted(counts[1]) == [0, 0, 0, 1]


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(DesignError, match="no words"):
        bag_of_words(["...", "?"])


def test_words_that_occur_in_test_texts_alone_change_no_prediction() -> None:
    texts = [f"thing{i % 7} w{i // 2}" for i in range(40)]
    y, groups = np.random.default_rng(0).normal(size=(40, 1)), np.arange(40) // 2
    split = make_splits(assign_folds(y[:, 0], groups, kind="values"), groups)[0]
    X = bag_of_words(texts)
    known = X[split.train].any(axis=0)
    assert not known.all(), "the test texts should hold new words"
    everything, without = (
        predict_ridge(FoldFeatures(Z, split.train, split.test, scale=True).axes, y[split.train], np.ones(1))
        for Z in (X, X[:, known])
    )
    assert everything.std() > 0.01
    np.testing.assert_allclose(everything, without, atol=1e-10)


@pytest.mark.parametrize("level", LABELS)
def test_a_permutation_keeps_the_labels_of_every_fold(level: str) -> None:
    y = LABELS[level]
    fold_of = assign_folds(y, GROUP_OF, n_folds=4, kind="values")
    for drawn in permute_labels(y, GROUP_OF, fold_of, n_draws=20, seed=3).T:
        assert not np.array_equal(drawn, y)
        for fold in range(4):
            np.testing.assert_array_equal(np.sort(drawn[fold_of == fold]), np.sort(y[fold_of == fold]))


def test_groups_exchange_labels_with_groups_of_their_size_alone_where_these_are_enough() -> None:
    sizes = np.repeat([1, 3], [40, 20])
    group_of = np.repeat(np.arange(60), sizes)
    y = (group_of % 2).astype(float)
    fold_of = assign_folds(y, group_of, n_folds=2)
    small = sizes[group_of] == 1
    for drawn in permute_labels(y, group_of, fold_of, n_draws=20, seed=0).T:
        assert drawn[small].sum() == y[small].sum()
        assert drawn[~small].sum() == y[~small].sum()


def test_groups_that_are_alike_too_seldom_exchange_labels_with_a_warning() -> None:
    sizes = np.arange(1, 17)
    group_of = np.repeat(np.arange(16), sizes)
    y = (group_of % 2).astype(float)
    fold_of = group_of // 2 % 2
    with pytest.warns(PermutationWarning, match="groups of different size"):
        drawn = permute_labels(y, group_of, fold_of, n_draws=10, seed=0)
    assert all(len(np.unique(column[group_of == group])) == 1 for column in drawn.T for group in range(16))
    graded = np.arange(len(group_of), dtype=float)
    with pytest.warns(PermutationWarning):
        dealt = permute_labels(graded, group_of, fold_of, n_draws=10, seed=0)
    for fold in (0, 1):
        members = fold_of == fold
        assert (np.sort(dealt[members], axis=0) == np.sort(graded[members])[:, None]).all()


def test_a_design_with_hardly_any_permutation_is_refused() -> None:
    y, group_of = np.array([0.0, 1, 0, 1]), np.arange(4)
    with pytest.raises(DesignError, match="fewer than 20 different permutations"):
        permute_labels(y, group_of, np.array([0, 0, 1, 1]), n_draws=5, seed=0)


def test_permutations_reach_every_arrangement_about_equally_often() -> None:
    y, group_of, fold_of = np.array([0.0, 0, 1, 0, 0, 1, 1, 0]), np.arange(8), np.repeat([0, 1], 4)
    drawn = permute_labels(y, group_of, fold_of, n_draws=4800, seed=0)
    _, counts = np.unique(drawn, axis=1, return_counts=True)
    assert len(counts) == 4 * 6, "four places for the one, six pairs for the two"
    assert np.abs(counts / 200 - 1).max() < 0.3


def test_every_type_has_one_label_in_a_control_task_and_labels_are_as_frequent_as_given() -> None:
    type_of, fold_of = np.tile(np.arange(40), 3), np.repeat([0, 1, 2], 40)
    y = (np.arange(120) % 4 == 0).astype(float)
    drawn = type_labels(y, type_of, fold_of, n_draws=50, seed=0)
    for column in drawn.T:
        assert all(len(np.unique(column[type_of == kind])) == 1 for kind in range(40))
    assert abs(drawn.mean() - y.mean()) < 0.03
    assert len(np.unique(drawn, axis=1).T) > 40


def test_types_that_never_come_back_in_another_fold_draw_a_warning() -> None:
    y, fold_of = np.tile([0.0, 1.0], 20), np.repeat([0, 1], 20)
    with pytest.warns(ControlWarning, match="no type is in two folds"):
        type_labels(y, np.arange(40) // 2, fold_of, n_draws=2, seed=0)
