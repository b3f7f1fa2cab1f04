"""Which rows come back: selectors, order, padding, and a property test against a naive reference."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratoscope_server.engines.arranging import apart
from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.torch.layout import lay_out
from stratoscope_server.selection import select_rows
from stratoscope_wire import Selector, SpanSelector
from stratoscope_wire.dtypes import to_float32
from stratoscope_wire.request import Dtype
from stratoscope_wire.selectors import is_pooled
from stratoscope_wire.sites import SITES

TAKES = ("last", "first", "mean", "all")
TEXT = "A church and organ"
SPANS = {"place": (2, 8), "rest": (2, 18)}


def naive_rows(selector: Any, states: Any, spans: dict[str, tuple[int, int]], offsets: Any) -> Any:
    """Apply a selector to all rows of one text, in float64."""
    wide = states.astype(np.float64)
    if isinstance(selector, SpanSelector):
        start, end = spans[selector.span]
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        wide, selector = wide[inside], selector.take
    if isinstance(selector, int):
        return wide[selector][None]
    return {"last": wide[-1:], "first": wide[:1], "mean": wide.mean(0, keepdims=True), "all": wide}[selector]


@pytest.mark.parametrize(
    "selector",
    ["last", "all", "mean", 0, 2, -1, -2, *(SpanSelector(span=s, take=t) for s in SPANS for t in TAKES)],
    ids=str,
)
def test_a_selector_gives_the_rows_that_numpy_takes_from_all(
    selector: Selector,
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    distance: Callable[..., float],
) -> None:
    runner = load_tiny("qwen3")
    encoded = runner.tokenizer.encode(TEXT, add_special_tokens=True)
    n_tokens = len(encoded.token_ids)
    assert n_tokens >= 5

    rows = select_rows(["all"], n_tokens, {}, encoded.offsets)
    rows += select_rows([selector], n_tokens, SPANS, encoded.offsets)
    [states] = capture(runner, [Prompt("a", encoded.token_ids, rows)])
    for column, values in states.items():
        expected = naive_rows(selector, values[:n_tokens], SPANS, encoded.offsets)
        if is_pooled(selector):
            assert distance(values[n_tokens:], expected) < 1e-6, column
        else:
            assert np.array_equal(values[n_tokens:], expected), column


def test_keys_and_values_of_mixed_selectors_are_in_step(
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
) -> None:
    runner = load_tiny("llama")
    select = ["mean", -1, "all", 0, "last"]
    prompts = prompts_of(runner, texts, select)
    columns = runner.card.columns(["resid_post"])
    block = runner.run(prompts, columns, "float32")
    everything = capture(runner, prompts_of(runner, texts), ["resid_post"])
    row = 0
    for prompt, states in zip(prompts, everything, strict=True):
        for label, spec in zip(("mean", "-1", "all", "0", "last"), prompt.rows, strict=True):
            for position in [-1] if spec.pooled else spec.positions:
                assert (block.stimulus_id[row], block.selector[row]) == (prompt.stimulus_id, label)
                assert block.position[row] == position
                assert block.token_id[row] == (-1 if spec.pooled else prompt.token_ids[position])
                expected = states["resid_post.1"].mean(0) if spec.pooled else states["resid_post.1"][position]
                np.testing.assert_allclose(block.values[1][row], expected, rtol=1e-4, atol=1e-5)
                row += 1
    assert row == len(block.stimulus_id) == len(block.values[0])


def test_values_are_contiguous_views_of_one_copy(
    load_tiny: Callable[..., Any], prompts_of: Callable[..., list[Prompt]], texts: Sequence[str]
) -> None:
    runner = load_tiny("qwen3")
    columns = runner.card.columns(["heads", "embed"])
    assert {column.width for column in columns} == {32, 64}, "widths must differ"
    block = runner.run(prompts_of(runner, texts), columns, "float32")
    addresses = [values.ctypes.data for values in block.values]
    for values, column, here, there in zip(block.values, columns, addresses, [*addresses[1:], None], strict=True):
        assert values.flags.c_contiguous
        assert values.shape == (len(block.stimulus_id), column.width)
        assert there is None or there == here + values.nbytes


def test_a_block_keeps_its_values_while_other_batches_run(
    load_tiny: Callable[..., Any], prompts_of: Callable[..., list[Prompt]], texts: Sequence[str]
) -> None:
    runner = load_tiny("llama")
    columns = runner.card.columns(list(SITES))
    block = runner.run(prompts_of(runner, texts), columns, "float32")
    before = [values.copy() for values in block.values]
    for text in texts:
        runner.run(prompts_of(runner, [text] * len(texts)), columns, "float32")
    assert all(np.array_equal(a, b) for a, b in zip(before, block.values, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mixtral"])
def test_reordering_prompts_reorders_their_rows(
    architecture: str,
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    runner = load_tiny(architecture)
    prompts = prompts_of(runner, texts)
    assert len({int(prompt.token_ids[-1]) for prompt in prompts}) == len(prompts), "the last tokens must differ"
    ordered = dict(zip((p.stimulus_id for p in prompts), capture(runner, prompts), strict=True))
    for order in ([4, 2, 0, 1, 3], [1, 0, 3, 2, 4]):
        shuffled = [prompts[index] for index in order]
        for prompt, states in zip(shuffled, capture(runner, shuffled), strict=True):
            others = [other for name, other in ordered.items() if name != prompt.stimulus_id]
            for column, values in states.items():
                # A matrix product rounds a row differently at another place in the batch; a lookup does not.
                bound = 0 if column == "embed" else 1e-5
                assert distance(values, ordered[prompt.stimulus_id][column]) <= bound, column
                assert all(distance(values[-1:], other[column][-1:]) > 1e-3 for other in others), column


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "gemma2", "gemma3_text", "gpt2", "mixtral", "phi3", "qwen2", "qwen3"]
)
def test_what_stands_in_the_padding_changes_nothing(
    architecture: str,
    load_tiny: Callable[..., Any],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    runner = load_tiny(architecture)
    prompts = prompts_of(runner, texts)
    batch = lay_out(prompts, apart)
    lengths = torch.tensor(sorted(prompt.n_tokens for prompt in prompts))
    padding = torch.arange(batch.token_ids.shape[1])[None] >= lengths[:, None]
    assert padding.sum() > 20
    other = torch.where(padding, (batch.token_ids + 17) % runner.card.vocab_size, batch.token_ids)
    assert not torch.equal(other, batch.token_ids)
    columns = runner.card.columns(list(SITES))
    before = runner._read(batch, columns, "float32")
    after = runner._read(dataclasses.replace(batch, token_ids=other), columns, "float32")
    for column, a, b in zip(columns, before, after, strict=True):
        if architecture == "mixtral":
            # Its experts compute together whatever tokens they are given, so that rounding differs.
            assert distance(a, b) < 1e-6, column.name
        else:
            assert np.array_equal(a, b), column.name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_selection_equals_the_naive_reference(
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    distance: Callable[..., float],
    data: st.DataObject,
) -> None:
    runner = load_tiny("qwen3")
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6), "lengths")
    seed = data.draw(st.integers(0, 2**16), "seed")
    sites = data.draw(st.lists(st.sampled_from([*SITES, "resid_pre"]), min_size=1, unique=True), "sites")
    layers = data.draw(st.lists(st.integers(0, 2), min_size=1, unique=True), "layers")
    dtype = data.draw(st.sampled_from(get_args(Dtype)), "dtype")
    chosen: list[Any] = data.draw(
        st.lists(st.sampled_from(["last", "all", "mean", 0, -1]), min_size=1, unique=True), "select"
    )
    random = np.random.default_rng(seed)
    prompts = []
    for index, n_tokens in enumerate(lengths):
        token_ids = random.integers(0, runner.card.vocab_size, n_tokens).astype(np.int32)
        rows = select_rows(chosen, n_tokens, {}, np.zeros((n_tokens, 2), np.int32))
        prompts.append(Prompt(f"s{index}", token_ids, rows))
    found = capture(runner, prompts, sites, layers=layers, dtype=dtype)
    whole = (np.arange(max(lengths), dtype=np.int32),)
    for prompt, states in zip(prompts, found, strict=True):
        rows = select_rows(["all"], prompt.n_tokens, {}, np.zeros((prompt.n_tokens, 2), np.int32))
        [alone] = capture(runner, [Prompt("alone", prompt.token_ids, rows)])
        for column, values in states.items():
            expected = np.concatenate([naive_rows(s, alone[column], {}, whole) for s in chosen])
            bound = {"float32": 1e-5, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
            assert distance(to_float32(values, dtype), expected) <= bound, column
