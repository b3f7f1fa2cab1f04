"""Texts that begin alike, computed once: the values are those of each text alone."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratoscope_server.engines.arranging import merged
from stratoscope_server.engines.protocol import EngineError, Prompt
from stratoscope_server.engines.torch import runner as runner_module
from stratoscope_server.engines.torch.attention import NAME, attend, grouped
from stratoscope_server.engines.torch.batch import Batch
from stratoscope_server.engines.torch.engine import load_runner
from stratoscope_server.engines.torch.layout import lay_out
from stratoscope_server.selection import select_rows
from stratoscope_wire.sites import SITES
from tests.server.architectures import ARCHITECTURES

BEGINNING = [5, 9, 2, 7, 7, 3, 11, 4]


def prompts_of(texts: Sequence[Sequence[int]]) -> list[Prompt]:
    prompts = []
    for index, text in enumerate(texts):
        rows = select_rows(["all"], len(text), {}, np.zeros((len(text), 2), np.int32))
        prompts.append(Prompt(f"s{index}", np.array(text, np.int32), rows))
    return prompts


def branching() -> list[Prompt]:
    """Texts longer than the tiny models' sliding window of 5 that part at several depths, one of them twice."""
    ends = [[1], [1, 2, 3], [8, 8], [], [1, 2, 6, 6, 6, 6, 6], [8, 8]]
    return prompts_of([*(BEGINNING + end for end in ends), [3, 1, 4, 1, 5, 9], BEGINNING[:3]])


def read(runner: Any, prompts: Sequence[Prompt], width: int, **changes: Any) -> dict[str, Any]:
    """Compute prompts merged in rows, and return the states by column."""
    batch = lay_out(prompts, partial(merged, width=width))
    assert batch.attended is not None
    columns = runner.card.columns(list(SITES))
    values = runner._read(dataclasses.replace(batch, **changes), columns, "float32")
    return {column.name: states for column, states in zip(columns, values, strict=True)}


@pytest.mark.parametrize("width", [20, 64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_texts_have_the_states_of_each_text_alone(
    architecture: str,
    width: int,
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    distance: Callable[..., float],
) -> None:
    runner, prompts = load_tiny(architecture), branching()
    rows = merged(prompts, width)
    assert sum(row.n_tokens for row in rows) < sum(prompt.n_tokens for prompt in prompts) / 1.4
    assert len(rows) == (2 if width == 20 else 1), "one layout with padding, one without"
    together = read(runner, prompts, width)
    alone = [capture(runner, [prompt])[0] for prompt in prompts]
    for column, states in together.items():
        assert distance(states, np.concatenate([each[column] for each in alone])) <= 1e-5, column


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_branch_sees_nothing_of_the_others_and_nothing_of_the_padding(
    architecture: str, load_tiny: Callable[..., Any], distance: Callable[..., float]
) -> None:
    runner, prompts = load_tiny(architecture), branching()
    batch = lay_out(prompts, partial(merged, width=20))
    mine = torch.zeros(batch.token_ids.numel(), dtype=torch.bool)
    n_mine = prompts[0].n_tokens
    mine[batch.rows.plain_source[:n_mine]] = True
    other = torch.where(mine.view_as(batch.token_ids), batch.token_ids, (batch.token_ids + 17) % 64)
    assert (other != batch.token_ids).sum() > 10
    before, after = read(runner, prompts, 20), read(runner, prompts, 20, token_ids=other)
    for column in before:
        if architecture == "mixtral":
            # Its experts compute together whatever tokens they are given, so that rounding differs.
            assert distance(before[column][:n_mine], after[column][:n_mine]) < 1e-6, column
        else:
            assert np.array_equal(before[column][:n_mine], after[column][:n_mine]), column
        assert not np.array_equal(before[column], after[column]), column


def test_a_runner_merges_what_it_is_given_and_equal_texts_get_equal_rows(
    load_tiny: Callable[..., Any], capture: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, sizes = load_tiny("llama"), []
    forward = runner._forward

    def watched(batch: Batch) -> None:
        sizes.append(batch.token_ids.numel())
        forward(batch)

    monkeypatch.setattr(runner, "_forward", watched)
    found = capture(runner, prompts_of([BEGINNING] * 9 + [[*BEGINNING, 1]]))
    assert sizes == [len(BEGINNING) + 1]
    assert all(np.array_equal(found[0][column], states[column]) for states in found[:9] for column in states)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=10), min_size=1, max_size=12),
    width=st.sampled_from([10, 16, 40]),
)
def test_any_texts_merged_have_their_own_states(
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    distance: Callable[..., float],
    texts: list[list[int]],
    width: int,
) -> None:
    runner, prompts = load_tiny("gemma3_text"), prompts_of(texts)
    batch = lay_out(prompts, partial(merged, width=width))
    columns = runner.card.columns(list(SITES))
    found = runner._read(batch, columns, "float32")
    alone = [capture(runner, [prompt])[0] for prompt in prompts]
    for column, states in zip(columns, found, strict=True):
        assert distance(states, np.concatenate([each[column.name] for each in alone])) <= 1e-5, column


@pytest.mark.parametrize("mask", ["none", "bool", "added"])
def test_grouped_attention_is_the_formula(mask: str, distance: Callable[..., float]) -> None:
    random = torch.Generator().manual_seed(3)
    query = torch.randn(2, 6, 7, 8, generator=random)
    key, value = torch.randn(2, 2, 2, 7, 8, generator=random)
    seen = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7).clone()
    if mask != "none":
        seen[1, 0, 5, 1:4] = False
    given = {"none": None, "bool": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min)}[mask]
    found, nothing = attend(torch.nn.Module(), query, key, value, given, scaling=0.3)
    assert nothing is None
    wide_key, wide_value = (each.double().repeat_interleave(3, dim=1) for each in (key, value))
    scores = (torch.einsum("bhqd,bhkd->bhqk", query.double(), wide_key) * 0.3).masked_fill(~seen, -torch.inf)
    expected = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), wide_value)
    assert found.shape == (2, 7, 6, 8)
    assert distance(found.numpy(), expected.numpy()) < 1e-6


def test_grouped_attention_in_bfloat16_is_as_near_to_the_formula_as_the_fused_kernel(
    distance: Callable[..., float],
) -> None:
    random = torch.Generator().manual_seed(4)
    query, key, value = torch.randn(3, 4, 2, 40, 16, generator=random).bfloat16()
    mask = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]
    fused = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    exact = torch.nn.functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True
    ).numpy()
    ours = grouped(query, key, value, mask, 0.25).transpose(1, 2)
    assert distance(ours.float().numpy(), exact) < 1.5 * distance(fused.float().numpy(), exact)


@pytest.mark.parametrize(("architecture", "name"), [("llama", NAME), ("gemma2", "eager")])
def test_the_card_names_the_attention(architecture: str, name: str, load_tiny: Callable[..., Any]) -> None:
    assert load_tiny(architecture).card.versions["attention"] == name


def test_prefixes_are_computed_once_where_the_check_at_start_holds(load_tiny: Callable[..., Any]) -> None:
    for architecture in ARCHITECTURES:
        runner = load_tiny(architecture)
        assert runner.merge, architecture
        assert runner.card.versions["prefixes"] == "computed once"
        assert runner.card.signed() == runner.card, "a client refuses a card that does not match its fingerprint"


def test_a_model_that_merging_would_change_computes_each_text_for_itself(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def leaking(batch: Batch, *_others: object) -> torch.Tensor | None:
        return None if batch.attended is None else torch.zeros(len(batch.attended), 1, *batch.attended.shape[1:])

    monkeypatch.setattr(runner_module, "attention_mask", leaking)
    runner = load_runner(str(tiny_folder("llama")), revision=None, dtype="float32", device="cpu", cache_dir=tmp_path)
    assert not runner.merge
    assert runner.card.versions["prefixes"] == "computed for each text"
    sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(runner, "_forward", lambda batch: sizes.append(tuple(batch.token_ids.shape)))
    with pytest.raises(EngineError, match="never computed"):
        runner.run(branching(), runner.card.columns(["embed"]), "float32")
    assert sizes == [(8, 15)]
