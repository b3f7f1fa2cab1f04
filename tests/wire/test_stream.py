import dataclasses
import re
from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope_wire import (
    Block,
    BlockError,
    Column,
    Expected,
    FingerprintMismatchError,
    RemoteStreamError,
    StreamCorruptError,
    StreamCutError,
    StreamDecoder,
    StreamEncoder,
    StreamError,
)
from stratoscope_wire.encoder import END_OF_STREAM, POISON, Piece
from stratoscope_wire.schema import KEY_FIELDS, StreamHeader


def sent(encoder: StreamEncoder, blocks: list[Block]) -> list[Piece]:
    """Start a stream and encode blocks, leaving its end open."""
    pieces = encoder.start()
    for block in blocks:
        for message in encoder.encode(block):
            pieces += message
    return pieces


def encode(columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block]) -> bytes:
    encoder = StreamEncoder(columns, header)
    return b"".join([*sent(encoder, blocks), *encoder.finish()])


def fail(columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block]) -> bytes:
    encoder = StreamEncoder(columns, header)
    return b"".join([*sent(encoder, blocks), *encoder.fail("engine_oom", "out of memory", retryable=True)])


def decode(data: bytes, expected: Expected) -> pa.Table:
    return pa.Table.from_batches(list(StreamDecoder(data, expected)))


def complete_stimuli(data: bytes, expected: Expected) -> tuple[set[str], type[StreamError] | None]:
    decoder, kept = StreamDecoder(data, expected), set[str]()
    try:
        for batch in decoder:
            kept |= set(batch.column("stimulus_id").to_pylist())
    except StreamError as error:
        return kept, type(error)
    return kept, None


def test_a_good_stream_gives_back_every_value_bit_for_bit(
    stream: bytes, expected: Expected, blocks: list[Block], columns: tuple[Column, ...]
) -> None:
    table = decode(stream, expected)
    for index, column in enumerate(columns):
        sent = np.concatenate([block.values[index] for block in blocks])
        got = table.column(column.name).combine_chunks().values.to_numpy().reshape(-1, column.width)
        assert got.tobytes() == sent.tobytes()
    assert table.column("stimulus_id").to_pylist() == [name for block in blocks for name in block.stimulus_id]


def test_a_good_stream_opens_in_plain_pyarrow_and_in_polars_with_no_extra_row(
    stream: bytes, blocks: list[Block]
) -> None:
    n_rows = sum(len(block.stimulus_id) for block in blocks)
    assert pa.ipc.open_stream(stream).read_all().num_rows == n_rows
    assert pl.read_ipc_stream(stream).height == n_rows


def test_a_stream_cut_at_any_byte_is_never_accepted_and_keeps_only_complete_stimuli(
    stream: bytes, expected: Expected
) -> None:
    kept_at = []
    for size in range(len(stream)):
        kept, error = complete_stimuli(stream[:size], expected)
        assert error is StreamCutError, f"cut at byte {size} of {len(stream)} gave {error}"
        kept_at.append(kept)
    assert kept_at[0] == set()
    # b's rows lie in two batches, so a, which ends in the first, and b become complete together or a before b.
    assert [len(kept) for kept in kept_at] == sorted(len(kept) for kept in kept_at)
    assert kept_at[-1] == {"a", "b"}
    assert complete_stimuli(stream, expected) == ({"a", "b"}, None)


def test_a_plain_reader_takes_a_stream_cut_at_a_batch_boundary_for_complete_but_the_decoder_does_not(
    stream: bytes, expected: Expected
) -> None:
    boundary = stream.rindex(END_OF_STREAM)
    assert pa.ipc.open_stream(stream[:boundary]).read_all().num_rows > 0
    with pytest.raises(StreamCutError):
        decode(stream[:boundary], expected)


def test_a_failed_stream_makes_every_reader_raise_and_names_the_cause_to_ours(
    columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block], expected: Expected
) -> None:
    failed = fail(columns, header, blocks[:1])
    assert failed.endswith(POISON)
    with pytest.raises(pa.ArrowInvalid):
        pa.ipc.open_stream(failed).read_all()
    with pytest.raises(pl.exceptions.ComputeError):
        pl.read_ipc_stream(failed)
    with pytest.raises(RemoteStreamError, match="out of memory") as caught:
        decode(failed, expected)
    assert (caught.value.code, caught.value.retryable) == ("engine_oom", True)


def test_every_flipped_bit_in_the_batches_is_found(stream: bytes, expected: Expected) -> None:
    """Bits that stand for nothing (padding, the request id) may flip; then the data must still be the sent ones."""
    sent = decode(stream, expected)
    outcomes = {"refused": 0, "same": 0}
    for bit in range(0, 8 * len(stream), 5):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << (bit % 8)
        try:
            table = decode(bytes(damaged), expected)
        except StreamError:
            outcomes["refused"] += 1
        else:
            assert table.replace_schema_metadata(None).equals(sent.replace_schema_metadata(None)), f"bit {bit}"
            outcomes["same"] += 1
    assert outcomes["refused"] > outcomes["same"]


def test_every_flipped_bit_in_the_values_is_found(stream: bytes, expected: Expected, blocks: list[Block]) -> None:
    for block in blocks:
        for values in block.values:
            start = stream.index(values.tobytes())
            for bit in range(8 * start, 8 * (start + values.nbytes)):
                damaged = bytearray(stream)
                damaged[bit // 8] ^= 1 << (bit % 8)
                with pytest.raises(StreamCorruptError):
                    decode(bytes(damaged), expected)


def _rows(block: Block, keep: list[int]) -> Block:
    return dataclasses.replace(
        block,
        stimulus_id=[block.stimulus_id[i] for i in keep],
        selector=[block.selector[i] for i in keep],
        position=block.position[keep],
        token_id=block.token_id[keep],
        values=[values[keep] for values in block.values],
    )


def _changed(block: Block, **columns: list[object]) -> Block:
    arrays = {
        key: np.array(value, np.int32) if key in ("position", "token_id") else value for key, value in columns.items()
    }
    return dataclasses.replace(block, **arrays)  # type: ignore[arg-type]


FIRST_A = [0, 1, 2, 3]
WRONG_ANSWERS: dict[str, tuple[Callable[[Block], Block], str]] = {
    "a selector is missing": (lambda a: _rows(a, [0, 1, 2]), "no rows for selector 'noun:mean'"),
    "a row comes twice": (lambda a: _rows(a, [0, 0, 1, 2, 3]), "where 'all' was due"),
    "a position is skipped": (lambda a: _changed(_rows(a, FIRST_A), position=[1, 0, 2, -1]), "position 2 after 0"),
    "all starts late": (lambda a: _rows(a, [0, 2, 3]), "starts at position 1"),
    "all is short": (lambda a: _rows(a, [0, 1, 3]), "also 1"),
    "a token is another": (lambda a: _changed(_rows(a, FIRST_A), token_id=[7, 6, 7, -1]), "token 5 and also 6"),
    "a pooled row has a position": (lambda a: _changed(_rows(a, FIRST_A), position=[1, 0, 1, 1]), "pooled"),
    "a stranger came": (lambda a: _changed(_rows(a, FIRST_A), stimulus_id=["c"] * 4), "'c' was not asked for"),
}


@pytest.mark.parametrize("fault", WRONG_ANSWERS)
def test_rows_other_than_those_asked_for_are_refused(
    fault: str, columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block], expected: Expected
) -> None:
    only_a = dataclasses.replace(expected, stimulus_ids=frozenset({"a"}))

    def answer(block: Block) -> bytes:
        n_rows = len(block.stimulus_id)
        honest = {"stimuli": 1, "rows": n_rows, "bytes": n_rows * header.bytes // header.rows}
        return encode(columns, header.model_copy(update=honest), [dataclasses.replace(block, open=False)])

    assert decode(answer(_rows(blocks[0], FIRST_A)), only_a).num_rows == 4
    change, message = WRONG_ANSWERS[fault]
    with pytest.raises(StreamCorruptError, match=re.escape(message)):
        decode(answer(change(blocks[0])), only_a)


def test_a_stimulus_that_comes_twice_is_refused(
    columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block], expected: Expected
) -> None:
    a = _rows(blocks[0], FIRST_A)
    b = [_rows(blocks[0], [4, 5]), blocks[1]]
    twice = [
        dataclasses.replace(a, open=False),
        dataclasses.replace(b[0], open=True),
        b[1],
        dataclasses.replace(a, open=False),
    ]
    row_bytes = header.bytes // header.rows
    lying = header.model_copy(update={"stimuli": 3, "rows": 13, "bytes": 13 * row_bytes})
    data = encode(columns, lying, twice)
    three = dataclasses.replace(expected, stimulus_ids=frozenset({"a", "b", "c"}))
    with pytest.raises(StreamCorruptError, match="'a' came twice"):
        decode(data, three)


def test_an_open_stimulus_that_does_not_go_on_is_refused(
    columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block], expected: Expected
) -> None:
    """Its ``all`` may be short, and nothing else would tell."""
    a = dataclasses.replace(_rows(blocks[0], FIRST_A), open=True)
    b = [dataclasses.replace(_rows(blocks[0], [4, 5]), open=True), blocks[1]]
    broken = b"".join(sent(StreamEncoder(columns, header), [a, *b]))
    with pytest.raises(StreamCorruptError, match="'a' was to go on, but 'b' came"):
        decode(broken, expected)


def test_an_answer_from_another_model_is_refused(stream: bytes, expected: Expected) -> None:
    with pytest.raises(FingerprintMismatchError):
        decode(stream, dataclasses.replace(expected, fingerprint="0" * 32))


def test_an_answer_with_other_columns_is_refused(stream: bytes, expected: Expected) -> None:
    with pytest.raises(StreamCorruptError, match="schema"):
        decode(stream, dataclasses.replace(expected, columns=expected.columns[:-1]))


@pytest.mark.parametrize("field", ["stimuli", "rows", "batches", "bytes", "checksum"])
def test_a_footer_that_differs_from_what_arrived_is_refused(
    field: str, columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block], expected: Expected
) -> None:
    honest = encode(columns, header, blocks)
    footer = pa.ipc.open_stream(honest)
    marks: list[dict[bytes, bytes]] = []
    while not marks or b"status" not in marks[-1]:
        marks.append(dict(footer.read_next_batch_with_custom_metadata()[1]))
    value = bytes(marks[-1][field.encode()])
    lie = value[:-1] + bytes([value[-1] ^ 1])
    # Metadata values are length-prefixed, so one of equal length can be put in place; the footer comes last.
    position = honest.rindex(value, 0, len(honest)) if field == "checksum" else _value_position(honest, field, value)
    lying = honest[:position] + lie + honest[position + len(value) :]
    with pytest.raises(StreamCorruptError):
        decode(lying, expected)


def _value_position(data: bytes, field: str, value: bytes) -> int:
    """Find a metadata value: its length as int32, then the text, near its key in the last message."""
    start = data.rindex(b"status") - 2048
    needle = len(value).to_bytes(4, "little") + value + b"\0"
    keys = [
        match.start() for match in re.finditer(len(field).to_bytes(4, "little") + field.encode() + b"\0", data[start:])
    ]
    places = [match.start() + 4 for match in re.finditer(re.escape(needle), data[start:])]
    return start + min(places, key=lambda place: min(abs(place - key) for key in keys))


def test_bytes_after_the_end_are_refused(stream: bytes, expected: Expected) -> None:
    with pytest.raises(StreamCorruptError, match="bytes follow"):
        decode(stream + b"\0", expected)


def test_the_encoder_never_states_success_over_missing_rows(
    columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block]
) -> None:
    encoder = StreamEncoder(columns, header)
    encoder.start()
    list(encoder.encode(_rows(blocks[0], FIRST_A)))
    with pytest.raises(BlockError, match="instead of"):
        encoder.finish()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: [*block.values[:-1], np.full_like(block.values[-1], np.nan)],
        lambda block: [*block.values[:-1], np.full_like(block.values[-1], np.inf)],
        lambda block: [*block.values[:-1], block.values[-1][:, :-1]],
        lambda block: [*block.values[:-1], block.values[-1].astype(np.float64)],
        lambda block: block.values[:-1],
    ],
    ids=["not a number", "infinite", "narrow", "float64", "a column short"],
)
def test_the_encoder_refuses_what_must_not_be_sent(
    spoil: Callable[[Block], list[object]], columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block]
) -> None:
    encoder = StreamEncoder(columns, header)
    encoder.start()
    list(encoder.encode(blocks[0]))
    spoiled = dataclasses.replace(blocks[1], values=spoil(blocks[1]))  # type: ignore[arg-type]
    with pytest.raises(BlockError):
        list(encoder.encode(spoiled))


def test_the_encoder_copies_no_values(columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block]) -> None:
    encoder = StreamEncoder(columns, header)
    encoder.start()
    views = [np.frombuffer(piece, np.uint8) for message in encoder.encode(blocks[0]) for piece in message if len(piece)]
    for values in blocks[0].values:
        assert any(np.shares_memory(view, values) for view in views)


@given(cut=st.integers(1, 40), n_rows=st.integers(1, 40))
def test_batches_of_any_size_carry_the_same_rows(cut: int, n_rows: int) -> None:
    from stratoscope_wire import encoder as module

    column = Column("embed", None, 8, 0)
    values = np.arange(n_rows * 8, dtype=np.float32).reshape(n_rows, 8)
    block = Block(
        ["s"] * n_rows, ["all"] * n_rows, np.arange(n_rows, dtype=np.int32), np.ones(n_rows, np.int32), [values]
    )
    header = StreamHeader(
        protocol="1", fingerprint="f", request_id="r", dtype="float32", stimuli=1, rows=n_rows, bytes=values.nbytes
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TARGET_BATCH_BYTES", cut * 32)
        data = encode((column,), header, [block])
    batches = list(StreamDecoder(data, Expected(frozenset("s"), ("all",), (column,), "float32", "f")))
    assert len(batches) == -(-n_rows // cut)
    got = np.concatenate([batch.column("embed").values.to_numpy() for batch in batches])
    assert got.tobytes() == values.tobytes()


def test_the_schema_and_the_first_frame_are_the_golden_ones(stream: bytes) -> None:
    """A difference here is a change of the wire and needs a new protocol version."""
    reader = pa.ipc.open_stream(stream)
    assert [str(field) for field in KEY_FIELDS] == [
        "pyarrow.Field<stimulus_id: string not null>",
        "pyarrow.Field<selector: string not null>",
        "pyarrow.Field<position: int32 not null>",
        "pyarrow.Field<token_id: int32 not null>",
    ]
    assert [(field.name, str(field.type), field.nullable, field.metadata) for field in list(reader.schema)[4:]] == [
        (
            "embed",
            "fixed_size_list<item: float not null>[4]",
            False,
            {b"site": b"embed", b"dtype": b"float32", b"hf_index": b"0"},
        ),
        (
            "resid_post.1",
            "fixed_size_list<item: float not null>[4]",
            False,
            {b"site": b"resid_post", b"layer": b"1", b"dtype": b"float32", b"hf_index": b"2"},
        ),
        (
            "heads.1",
            "fixed_size_list<item: float not null>[6]",
            False,
            {b"site": b"heads", b"layer": b"1", b"dtype": b"float32"},
        ),
    ]
    assert sorted(reader.schema.metadata) == sorted(
        [b"protocol", b"fingerprint", b"request_id", b"dtype", b"stimuli", b"rows", b"bytes"]
    )
    _, first = reader.read_next_batch_with_custom_metadata()
    assert dict(first) == {b"seq": b"0", b"open": b"true", b"checksum": b"xxh3:41841032eb112d27"}
    reader.read_next_batch()
    empty, last = reader.read_next_batch_with_custom_metadata()
    footer = dict(last)
    assert empty.num_rows == 0
    assert float(footer.pop(b"seconds")) >= 0
    assert footer == {
        b"status": b"ok",
        b"stimuli": b"2",
        b"rows": b"9",
        b"batches": b"2",
        b"bytes": b"504",
        b"checksum": b"xxh3:a169fc374fb1145a",
    }
    assert stream.endswith(END_OF_STREAM)
