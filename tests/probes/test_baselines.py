"""Shuffles move labels at the level where they live; word counts leak nothing."""

import numpy as np
import pytest

from stratoscope.probes import DesignError
from stratoscope.probes.baselines import bag_of_words, label_level, shuffle_labels
from stratoscope.probes.estimators import Settings, fit_ridge
from stratoscope.probes.folds import Kind, assign_folds, make_splits

GROUP_OF = np.repeat(np.arange(20), 4)
LABELS = {
    "group": (GROUP_OF % 2).astype(float),
    "within": np.tile([0.0, 0.0, 1.0, 1.0], 20),
    "mixed": np.random.default_rng(0).normal(size=80),
}


def _shuffle(y: np.ndarray, n_shuffles: int = 5, seed: int = 0) -> np.ndarray:
    kind: Kind = "classes" if len(np.unique(y)) == 2 else "values"
    fold_of = assign_folds(y, GROUP_OF, n_folds=5, kind=kind)
    return shuffle_labels(y, GROUP_OF, fold_of, n_shuffles=n_shuffles, seed=seed)


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
    for shuffled in shuffle_labels(y, group_of, fold_of, n_shuffles=50, seed=0).T:
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
    X, settings = bag_of_words(texts), Settings(alphas=(1.0,))
    known = X[split.train].any(axis=0)
    assert not known.all(), "the test texts should hold new words"
    everything = fit_ridge(X, y, split, settings).decision
    np.testing.assert_allclose(everything, fit_ridge(X[:, known], y, split, settings).decision, atol=1e-10)
