"""From selectors to rows: which token positions of a tokenised stimulus are read."""

from collections.abc import Mapping, Sequence

import numpy as np

from stratoscope_server.engines.protocol import IntArray, Prompt, RowSpec
from stratoscope_wire import Selector, SpanSelector, selector_label
from stratoscope_wire.selectors import is_pooled

Spans = Mapping[str, tuple[int, int]]


def select_rows(select: Sequence[Selector], n_tokens: int, spans: Spans, offsets: IntArray) -> tuple[RowSpec, ...]:
    """Resolve selectors against one stimulus.

    Parameters
    ----------
    select
        The request's selectors.
    n_tokens
        Tokens of the stimulus, special ones included.
    spans
        Character ranges of the stimulus.
    offsets : int32 array of shape (n_tokens, 2)
        Characters each token covers.

    Raises
    ------
    ValueError
        If a position does not exist or no token covers a span.
    """
    return tuple(
        RowSpec(selector_label(selector), _positions(selector, n_tokens, spans, offsets), is_pooled(selector))
        for selector in select
    )


def row_keys(prompts: Sequence[Prompt]) -> tuple[list[str], list[str], IntArray, IntArray]:
    """Return the key columns of a block of prompts: stimulus ids, selectors, positions, token ids."""
    ids: list[str] = []
    selectors: list[str] = []
    positions: list[IntArray] = []
    token_ids: list[IntArray] = []
    pooled = np.array([-1], np.int32)
    for prompt in prompts:
        for spec in prompt.rows:
            ids += [prompt.stimulus_id] * spec.n_rows
            selectors += [spec.selector] * spec.n_rows
            positions.append(pooled if spec.pooled else spec.positions)
            token_ids.append(pooled if spec.pooled else prompt.token_ids[spec.positions])
    return ids, selectors, np.concatenate(positions), np.concatenate(token_ids)


def _positions(selector: Selector, n_tokens: int, spans: Spans, offsets: IntArray) -> IntArray:
    if isinstance(selector, SpanSelector):
        return _span_positions(selector, spans[selector.span], offsets)
    if selector == "last":
        return np.array([n_tokens - 1], np.int32)
    if isinstance(selector, str):
        return np.arange(n_tokens, dtype=np.int32)
    if not -n_tokens <= selector < n_tokens:
        raise ValueError(f"position {selector} does not exist: the stimulus has {n_tokens} tokens")
    return np.array([selector % n_tokens], np.int32)


def _span_positions(selector: SpanSelector, span: tuple[int, int], offsets: IntArray) -> IntArray:
    start, end = span
    # An added special token covers (0, 0) and so belongs to no span.
    inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start)).astype(np.int32)
    if not len(inside):
        raise ValueError(f"no token covers span {selector.span!r} [{start}, {end})")
    return {"last": inside[-1:], "first": inside[:1]}.get(selector.take, inside)
