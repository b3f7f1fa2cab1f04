"""Prompts in rows and batches: each once, what they share once, and within the budget."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stratoscope_server.engines.arranging import Row, apart, arrange, arrangements, cost, count_shared, merged
from stratoscope_server.engines.packing import pack
from stratoscope_server.engines.protocol import Prompt, RowSpec

FEW_TOKENS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=40)
"""Texts of three words, so that many begin alike."""


def prompts_of(texts: list[list[int]], n_rows: int = 1) -> list[Prompt]:
    row = RowSpec("last", np.zeros(n_rows, np.int32), pooled=False)
    return [Prompt(str(index), np.array(text, np.int32), (row,)) for index, text in enumerate(texts)]


def n_prefixes(texts: list[list[int]]) -> int:
    """Count the tokens that must be computed: the different beginnings of the texts."""
    return len({tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)})


def n_tokens(rows: Sequence[Row]) -> int:
    return len(rows) * max(row.n_tokens for row in rows)


@given(texts=FEW_TOKENS, width=st.integers(1, 64))
def test_a_row_takes_the_tokens_that_its_texts_do_not_share(texts: list[list[int]], width: int) -> None:
    rows = merged(prompts_of(texts), width)
    assert sorted(placed.prompt for row in rows for placed in row.placed) == list(range(len(texts)))
    for row in rows:
        inside = [texts[placed.prompt] for placed in row.placed]
        assert row.n_tokens == sum(len(texts[placed.prompt]) - placed.n_shared for placed in row.placed)
        assert row.n_rows == len(inside)
        assert row.n_tokens <= width or len(inside) == 1
        assert row.placed[0].n_shared == 0
        for before, placed in zip(row.placed, row.placed[1:], strict=False):
            shared = np.equal(texts[before.prompt][: placed.n_shared], texts[placed.prompt][: placed.n_shared])
            assert shared.all()


@given(texts=FEW_TOKENS)
def test_a_row_that_is_long_enough_takes_one_token_for_each_different_beginning(texts: list[list[int]]) -> None:
    [row] = merged(prompts_of(texts), 400)
    assert row.n_tokens == n_prefixes(texts)


def test_what_is_left_of_a_row_takes_later_texts_that_fit_in() -> None:
    texts = [[index] * 6 for index in range(10)] + [[index] * 4 for index in range(10, 20)]
    rows = merged(prompts_of(texts), 10)
    assert [[len(texts[placed.prompt]) for placed in row.placed] for row in rows] == [[6, 4]] * 10


def test_a_text_that_shares_is_not_moved_to_where_that_costs_more() -> None:
    texts = [[0] * 7, [1, 1, 1], [1, 1, 1]]
    rows = merged(prompts_of(texts), 11)
    assert [row.n_tokens for row in rows] == [10]
    assert [placed.n_shared for placed in rows[0].placed] == [0, 0, 3]


@given(texts=FEW_TOKENS)
def test_no_way_considered_costs_less_than_the_one_chosen(texts: list[list[int]]) -> None:
    prompts = prompts_of(texts)
    chosen = cost(arrange(prompts))
    assert chosen <= cost(apart(prompts))
    assert all(chosen <= cost(rows) for rows in arrangements(prompts, 64))


def test_texts_that_share_nothing_and_are_of_one_length_are_not_merged() -> None:
    rows = arrange(prompts_of([[index] * 60 for index in range(20)]))
    assert [len(row.placed) for row in rows] == [1] * 20


def test_a_text_asked_for_a_hundred_times_is_computed_once() -> None:
    [row] = arrange(prompts_of([[1, 2, 3]] * 100))
    assert (len(row.placed), row.n_tokens) == (100, 3)


def test_a_long_beginning_that_many_texts_share_is_computed_a_few_times() -> None:
    shared = list(range(500))
    texts = [[*shared, index, *range(20)] for index in range(100)]
    batches = pack(prompts_of(texts), 4096)
    assert sum(len(text) for text in texts) == 52_100
    assert sum(n_tokens(batch.rows) for batch in batches) <= 5 * 1024


def test_a_few_long_texts_do_not_pad_many_short_ones() -> None:
    texts = [[index, 1, 2] for index in range(200)] + [[1000 + index] * 250 for index in range(3)]
    batches = pack(prompts_of(texts), 1024)
    assert sum(n_tokens(batch.rows) for batch in batches) <= 600 + 64 + 3 * 256


@given(first=st.lists(st.integers(0, 1), max_size=8), second=st.lists(st.integers(0, 1), max_size=8))
def test_what_is_shared_is_the_common_beginning(first: list[int], second: list[int]) -> None:
    shared = count_shared(np.array(first, np.int32), np.array(second, np.int32))
    assert first[:shared] == second[:shared]
    assert shared in (len(first), len(second)) or first[shared] != second[shared]


@given(
    texts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=50), min_size=1, max_size=60),
    budget=st.integers(1, 200),
    n_rows=st.integers(1, 5),
)
def test_packing_keeps_every_prompt_once_and_the_budget(texts: list[list[int]], budget: int, n_rows: int) -> None:
    prompts = prompts_of(texts, n_rows)
    batches = pack(prompts, budget)
    assert sorted(int(prompt.stimulus_id) for batch in batches for prompt in batch) == list(range(len(texts)))
    for batch in batches:
        class_and_place = [(len(p.token_ids) > 64, int(p.stimulus_id)) for p in batch]
        assert class_and_place == sorted(class_and_place)
        assert sorted(placed.prompt for row in batch.rows for placed in row.placed) == list(range(len(batch)))
        assert len(batch) == 1 or n_tokens(batch.rows) <= budget
        assert len(batch) == 1 or n_rows * len(batch) <= budget


def test_batches_of_short_texts_come_first() -> None:
    texts = [[index] * length for index, length in enumerate((300, 3, 70, 5))]
    lengths = [max(prompt.n_tokens for prompt in batch) for batch in pack(prompts_of(texts), 512)]
    assert lengths == sorted(lengths)
    assert len(lengths) == 3
