import numpy as np
import pytest

from stratoscope_wire import Block, Column, Expected, ModelCard, StreamEncoder
from stratoscope_wire.card import site_cards
from stratoscope_wire.schema import StreamHeader

SELECTORS = ("last", "all", "noun:mean")


@pytest.fixture
def card() -> ModelCard:
    return ModelCard(
        model="tiny",
        revision="0",
        architecture="llama",
        dtype="float32",
        n_layers=3,
        d_model=4,
        n_heads=2,
        d_head=3,
        vocab_size=100,
        max_tokens=16,
        tokenizer_hash="t",
        engine="synthetic",
        versions={"numpy": "2"},
        sites=site_cards(3, 4, 6),
    ).signed()


@pytest.fixture
def columns(card: ModelCard) -> tuple[Column, ...]:
    return card.columns(["embed", "resid_post", "heads"], [1])


@pytest.fixture
def blocks(columns: tuple[Column, ...]) -> list[Block]:
    """Two blocks: stimulus b goes on from the first into the second."""
    rng = np.random.default_rng(7)

    def block(rows: list[tuple[str, str, int, int]], *, is_open: bool) -> Block:
        ids, selectors, positions, token_ids = zip(*rows, strict=True)
        values = [rng.normal(size=(len(rows), column.width)).astype(np.float32) for column in columns]
        return Block(ids, selectors, np.array(positions, np.int32), np.array(token_ids, np.int32), values, open=is_open)

    first = [("a", "last", 1, 7), ("a", "all", 0, 5), ("a", "all", 1, 7), ("a", "noun:mean", -1, -1)]
    first += [("b", "last", 2, 9), ("b", "all", 0, 5)]
    second = [("b", "all", 1, 8), ("b", "all", 2, 9), ("b", "noun:mean", -1, -1)]
    return [block(first, is_open=True), block(second, is_open=False)]


@pytest.fixture
def header(card: ModelCard, columns: tuple[Column, ...], blocks: list[Block]) -> StreamHeader:
    n_rows = sum(len(block.stimulus_id) for block in blocks)
    return StreamHeader(
        protocol="1",
        fingerprint=card.fingerprint,
        request_id="r1",
        dtype="float32",
        stimuli=2,
        rows=n_rows,
        bytes=n_rows * 4 * sum(column.width for column in columns),
    )


@pytest.fixture
def expected(card: ModelCard, columns: tuple[Column, ...]) -> Expected:
    return Expected(frozenset({"a", "b"}), SELECTORS, columns, "float32", card.fingerprint, {"a": [5, 7]})


@pytest.fixture
def stream(columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block]) -> bytes:
    """A good answer."""
    encoder = StreamEncoder(columns, header)
    pieces = encoder.start()
    for block in blocks:
        for message in encoder.encode(block):
            pieces += message
    return b"".join([*pieces, *encoder.finish()])
