"""The benchmark's own parts: a figure that is put together wrongly is worse than none."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from peers.batches import batches
from throughput.agreement import check_curves
from throughput.figure import Figure
from throughput.page import write_page
from throughput.peer import PeerError, farthest, python_of, running
from throughput.results import ratios_to, table
from throughput.roofline import Work
from throughput.texts import built_in, distinct, templated
from torch import nn

LIMIT = Figure("limit", "products", "texts", "texts/s", (10.0, 20.0))
OURS = Figure("engine", "stratoscope", "texts", "texts/s", (5.0, 5.0), {"n_stimuli": 3}, "products/texts")


def shared(texts: list[str]) -> float:
    """Share of the words that stand behind the same words in another text."""
    words = [tuple(text.split()) for text in texts]
    beginnings = {text[:end] for text in words for end in range(1, len(text) + 1)}
    return 1 - len(beginnings) / sum(len(text) for text in words)


def test_templated_texts_are_all_different_and_begin_with_the_built_in_ones() -> None:
    texts = templated(2000)
    assert len(set(texts)) == 2000
    assert texts[: len(built_in())] == built_in()


def test_distinct_texts_are_as_long_as_templated_ones_and_share_less() -> None:
    same, different = templated(2000), distinct(2000)
    assert [len(text.split()) for text in same] == [len(text.split()) for text in different]
    assert shared(same) > 0.35
    assert shared(different) < 0.1


def test_a_batch_gives_the_last_token_of_each_text_whatever_the_padding() -> None:
    def tokenizer(texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    texts = ["ab", "abcde", "xyz", "q"]
    found: dict[int, int] = {}
    for batch in batches(tokenizer, texts, 3):
        last = batch.last(batch.token_ids[:, :, None])
        found |= dict(zip(batch.rows, last[:, 0].tolist(), strict=True))
    assert [chr(found[row]) for row in range(len(texts))] == ["b", "e", "z", "q"]


def test_work_counts_two_operations_for_each_weight_and_two_products_over_the_tokens_seen() -> None:
    blocks = nn.ModuleList(nn.ModuleList([nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)]) for _ in range(3))

    class Config:
        num_hidden_layers, hidden_size, num_attention_heads = 3, 4, 2

    work = Work.of(blocks, Config)
    assert work.linear_operations == 3 * 2 * (4 * 6 + 6 * 4)
    # Texts of one and of two tokens see 1 and 1 + 2 tokens, in a query-key and a weight-value product of width 4.
    assert work.operations([1, 2]) == 3 * work.linear_operations + 3 * (2 + 2) * 4 * (1 + 3)
    assert work.dtype == torch.float32


def test_more_is_better_in_every_ratio() -> None:
    slow, fast = (Figure("job", name, "all", "s", (value,)) for name, value in (("slow", 8.0), ("fast", 2.0)))
    assert ratios_to(fast, slow) == [4.0]
    assert ratios_to(OURS, LIMIT) == [0.5, 0.25]


def test_the_result_has_a_row_for_every_repetition() -> None:
    rows = table([LIMIT, OURS], {"date": "today"}).filter(pl.col("subject") == "stratoscope")
    assert rows["repetition"].to_list() == [0, 1]
    assert rows["of_limit"].to_list() == [0.5, 0.25]
    assert rows["n_stimuli"].to_list() == [3, 3]
    assert set(rows["date"]) == {"today"}


def test_a_limit_that_was_not_measured_is_no_blank_cell() -> None:
    with pytest.raises(KeyError, match="products/texts"):
        table([OURS], {})


def test_the_page_has_what_was_measured_and_where(tmp_path: Path) -> None:
    growth = [Figure("scale", "collect", "cost", "s", (n / 10,), {"n_stimuli": n}) for n in (10, 20)]
    write_page([LIMIT, OURS, *growth], {"processor": "a <fast> one"}, tmp_path)
    page = (tmp_path / "throughput.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "a &lt;fast&gt; one" in page
    assert (tmp_path / "throughput.png").stat().st_size > 10_000


def test_a_missing_environment_is_told_with_what_makes_it() -> None:
    with pytest.raises(PeerError, match="make bench-setup"):
        python_of(".venv-never-made")


def test_curves_that_differ_are_refused() -> None:
    mine, theirs = {"item/edible": {"resid_post.0": [0.5]}}, {"item/edible": {"resid_post.0": [0.6]}}
    check_curves(mine, mine)
    with pytest.raises(PeerError, match="item/edible"):
        check_curves(mine, theirs)


def test_states_of_another_shape_are_refused() -> None:
    with pytest.raises(PeerError, match="shape"):
        farthest({"a": np.ones((2, 3), np.float32)}, {"a": np.ones((3, 2), np.float32)})


@pytest.mark.slow
def test_a_peers_process_gives_the_same_states_one_by_one_and_batched(tmp_path: Path) -> None:
    from throughput.ours import model_folder

    texts = ["A church and organ", "An apple", "A pigeon is to a loft as a beaver is to a lodge"]
    with running("huggingface", Path(sys.executable), model_folder(), 2, "float32") as peer:
        alone, n_tokens = peer.states("hooks", texts, 1, tmp_path)
        together, same_tokens = peer.states("hooks", texts, 3, tmp_path)
        assert peer.seconds("hooks", texts, 3) > 0
    assert n_tokens == same_tokens > len(texts)
    assert len(alone) == 90
    assert farthest(alone, together) <= 1e-5
