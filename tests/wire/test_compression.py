"""Compressed answers: the same values bit for bit, and nothing unpacked that was not announced and asked for."""

import struct
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stratoscope_wire import (
    Block,
    Column,
    Expected,
    StreamCorruptError,
    StreamCutError,
    StreamDecoder,
    StreamEncoder,
    StreamError,
)
from stratoscope_wire.compression import inflated_bytes
from stratoscope_wire.dtypes import NUMPY_TYPES, value_bytes
from stratoscope_wire.request import Dtype
from stratoscope_wire.schema import StreamHeader
from tests.wire.mutations import Mutation, cut, drop, repeat

any_data = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def encoded(columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block], *, packed: bool = True) -> bytes:
    encoder = StreamEncoder(columns, header, "zstd" if packed else None)
    pieces = encoder.start()
    for block in blocks:
        for message in encoder.encode(block):
            pieces += message
    return b"".join([*pieces, *encoder.finish()])


def decode(data: bytes, expected: Expected) -> pa.Table:
    return pa.Table.from_batches(list(StreamDecoder(data, expected))).replace_schema_metadata(None)


@pytest.fixture
def asked(expected: Expected) -> Expected:
    """What was asked for, to be compressed."""
    return replace(expected, compression="zstd")


@pytest.fixture
def packed(columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block]) -> bytes:
    """A good compressed answer."""
    return encoded(columns, header, blocks)


def batches_of(stream: bytes) -> list[tuple[int, int]]:
    """Where the body of each data batch begins and ends."""
    with pa.BufferReader(stream) as source:
        read = [(message, source.tell()) for message in pa.ipc.MessageReader.open_stream(source)]
    return [(end - len(one.body), end) for one, end in read if one.type == "record batch" and len(one.body) > 200]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_compressed_answer_gives_the_values_and_checksums_of_a_plain_one(
    dtype: Dtype, columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block], asked: Expected
) -> None:
    blocks = [replace(b, values=[np.abs(v * 100).astype(NUMPY_TYPES[dtype]) for v in b.values]) for b in blocks]
    n_bytes = header.bytes // 4 * value_bytes(dtype)
    header = header.model_copy(update={"dtype": dtype, "bytes": n_bytes})
    asked = replace(asked, dtype=dtype)
    plain = StreamDecoder(encoded(columns, header, blocks, packed=False), replace(asked, compression=None))
    small = StreamDecoder(encoded(columns, header, blocks), asked)
    assert pa.Table.from_batches(list(small)).equals(pa.Table.from_batches(list(plain)))
    assert small.footer is not None
    assert plain.footer is not None
    assert small.footer.checksum == plain.footer.checksum


def test_compression_shortens_what_repeats_and_any_arrow_reader_opens_it(
    columns: tuple[Column, ...], header: StreamHeader
) -> None:
    n_rows = 200
    ids = ["a"] * n_rows
    values = [np.ones((n_rows, column.width), np.float32) for column in columns]
    block = Block(ids, ["all"] * n_rows, np.arange(n_rows, dtype=np.int32), np.arange(n_rows, dtype=np.int32), values)
    header = header.model_copy(update={"stimuli": 1, "rows": n_rows})
    plain, packed = (encoded(columns, header, [block], packed=packed) for packed in (False, True))
    assert len(packed) < len(plain) / 2
    assert pa.ipc.open_stream(packed).read_all().equals(pa.ipc.open_stream(plain).read_all())


def test_a_plain_answer_is_refused_where_a_compressed_one_was_asked_for_and_the_other_way_round(
    stream: bytes, packed: bytes, asked: Expected, expected: Expected
) -> None:
    decode(packed, asked)
    decode(stream, expected)
    with pytest.raises(StreamCorruptError, match="is not compressed, which was asked for"):
        decode(stream, asked)
    with pytest.raises(StreamCorruptError, match="is compressed, which was not asked for"):
        decode(packed, expected)


def test_another_codec_than_the_one_asked_for_is_refused(
    columns: tuple[Column, ...],
    header: StreamHeader,
    blocks: list[Block],
    asked: Expected,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    monkeypatch.setattr("stratoscope_wire.encoder.write_options", lambda _: options)
    with pytest.raises(StreamCorruptError, match="compressed in another way than zstd"):
        decode(encoded(columns, header, blocks), asked)


@pytest.mark.parametrize("n_bytes", [1 << 20, 1 << 40, (1 << 63) - 1])
def test_a_buffer_that_announces_too_much_is_refused_before_it_is_unpacked(
    n_bytes: int, packed: bytes, asked: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, _ = batches_of(packed)[0]
    assert 0 < int.from_bytes(packed[start : start + 8], "little") < 1000, "the unpacked length stands first"
    bomb = packed[:start] + struct.pack("<q", n_bytes) + packed[start + 8 :]
    monkeypatch.setattr("stratoscope_wire.intake.StreamIntake._read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(StreamCorruptError, match="bytes once it is unpacked; at most"):
        decode(bomb, asked)


def test_a_bomb_that_tells_the_truth_of_itself_is_refused_before_it_is_unpacked(
    columns: tuple[Column, ...], header: StreamHeader, blocks: list[Block], asked: Expected
) -> None:
    start = encoded(columns, header, blocks)
    n_bytes = 256 << 20
    packed = pa.Codec("zstd", 1).compress(bytes(n_bytes), asbytes=True)
    assert len(packed) < n_bytes / 1000
    a, b = batches_of(start)[0]
    # In the place of the whole body: the first buffer of the batch then begins with it.
    body = (struct.pack("<q", n_bytes) + packed).ljust(b - a, b"\0")[: b - a]
    before = pa.total_allocated_bytes()
    with pytest.raises(StreamCorruptError, match="bytes once it is unpacked; at most"):
        decode(start[:a] + body + start[b:], asked)
    assert pa.total_allocated_bytes() - before < n_bytes // 100


@pytest.mark.parametrize("n_bytes", [-2, -(1 << 62)])
def test_a_buffer_of_a_negative_length_is_refused(n_bytes: int, packed: bytes, asked: Expected) -> None:
    start, _ = batches_of(packed)[0]
    with pytest.raises(StreamCorruptError, match=f"announces {n_bytes} bytes"):
        decode(packed[:start] + struct.pack("<q", n_bytes) + packed[start + 8 :], asked)


@pytest.mark.parametrize(
    "place", [(-1, 16), (56, 9), (0, 65), (0, 7), ((1 << 63) - 1, 16), (16, -8), (16, (1 << 63) - 1)]
)
def test_a_buffer_outside_of_its_body_is_refused(place: tuple[int, int]) -> None:
    body = memoryview(bytes(64))
    assert inflated_bytes(np.array([(0, 8), (8, 56), (64, 0)]), body) == 0
    with pytest.raises(StreamCorruptError, match="lies outside of its body"):
        inflated_bytes(np.array([place]), body)


def test_a_buffer_sent_as_it_is_counts_with_its_own_length() -> None:
    body = memoryview(struct.pack("<q", -1) + bytes(40) + struct.pack("<q", 1000) + bytes(8))
    assert inflated_bytes(np.array([(0, 48), (48, 16)]), body) == 40 + 1000


def test_every_flipped_bit_of_a_compressed_answer_is_found_or_changes_nothing(packed: bytes, asked: Expected) -> None:
    sent, n_found = decode(packed, asked), 0
    for bit in range(0, 8 * len(packed), 7):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << (bit % 8)
        try:
            assert decode(bytes(damaged), asked).equals(sent), f"bit {bit}"
        except StreamError:
            n_found += 1
    assert n_found > 1000


def test_a_compressed_answer_cut_at_any_byte_is_cut(packed: bytes, asked: Expected) -> None:
    for n_bytes in range(len(packed)):
        with pytest.raises(StreamCutError):
            decode(packed[:n_bytes], asked)


def _set_number(data: bytes, a: int, _b: int, value: int) -> bytes:
    return data[: a // 8 * 8] + struct.pack("<q", value) + data[a // 8 * 8 + 8 :]


MUTATIONS: list[Mutation] = [cut, drop, repeat, _set_number]


@any_data
@given(data=st.data())
def test_whatever_is_done_to_a_compressed_answer_only_the_sent_values_or_an_error_of_the_wire_come_out(
    data: st.DataObject, packed: bytes, asked: Expected
) -> None:
    truth = decode(packed, asked)
    place = st.integers(0, len(packed))
    value = st.sampled_from([0, -1, 1, 64, 1 << 20, (1 << 31) - 1, 1 << 40]) | st.integers(-(1 << 63), (1 << 63) - 1)
    mutated = packed
    for _ in range(data.draw(st.integers(1, 3))):
        mutate = data.draw(st.sampled_from(MUTATIONS))
        mutated = mutate(mutated, data.draw(place), data.draw(place), data.draw(value))
    try:
        table = decode(mutated, asked)
    except StreamError:
        return
    assert table.equals(truth)
