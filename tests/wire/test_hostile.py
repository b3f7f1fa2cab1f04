"""Streams that no honest server sends: refused before anything is unpacked, allocated or believed."""

import struct

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stratoscope_wire import Block, Column, Expected, StreamCorruptError, StreamCutError, StreamDecoder, StreamError
from stratoscope_wire.encoder import END_OF_STREAM
from stratoscope_wire.framing import MAX_METADATA_BYTES
from stratoscope_wire.schema import StreamHeader, response_schema
from tests.wire.mutations import Mutation, cut, drop, repeat

HUGE = 1 << 60


def decode(data: bytes, expected: Expected) -> pa.Table:
    return pa.Table.from_batches(list(StreamDecoder(data, expected)))


def messages(stream: bytes) -> list[bytes]:
    """Split a stream at its messages; the last piece is its end."""
    with pa.BufferReader(stream) as source:
        ends = [0]
        for message in pa.ipc.MessageReader.open_stream(source):
            assert message
            ends.append(source.tell())
    ends[-1:] = [len(stream) - len(END_OF_STREAM)]
    return [stream[a:b] for a, b in zip(ends, [*ends[1:], len(stream)], strict=True)]


def body_of(message: bytes) -> int:
    return len(message) - 8 - int.from_bytes(message[4:8], "little")


def with_number(message: bytes, old: int, new: int) -> bytes:
    """Replace an int64 of a message's metadata."""
    needle = struct.pack("<q", old)
    metadata = message[: len(message) - body_of(message)]
    assert metadata.count(needle) == 1, "the number must be found once"
    return metadata.replace(needle, struct.pack("<q", new)) + message[len(metadata) :]


def written(schema: pa.Schema, header: StreamHeader, arrays: list[pa.Array], compression: str | None = None) -> bytes:
    """Write a stream with Arrow's own writer, as a hostile server could."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    schema = schema.with_metadata(header.to_metadata())
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return bytes(sink.getvalue())


@pytest.fixture
def schema(columns: tuple[Column, ...]) -> pa.Schema:
    return response_schema(columns, "float32")


@pytest.fixture
def arrays(blocks: list[Block], schema: pa.Schema) -> list[pa.Array]:
    block = blocks[0]
    keys = [pa.array(block.stimulus_id), pa.array(block.selector), pa.array(block.position), pa.array(block.token_id)]
    kinds = [field.type for field in schema][4:]
    values = zip(block.values, kinds, strict=True)
    return keys + [pa.FixedSizeListArray.from_arrays(pa.array(one.reshape(-1)), type=kind) for one, kind in values]


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_batches_are_refused(
    codec: str, schema: pa.Schema, arrays: list[pa.Array], header: StreamHeader, expected: Expected
) -> None:
    assert pa.ipc.open_stream(written(schema, header, arrays, codec)).read_all().num_rows == 6
    with pytest.raises(StreamCorruptError, match="compressed"):
        decode(written(schema, header, arrays, codec), expected)


def test_a_compressed_buffer_that_would_unpack_to_a_terabyte_is_refused_unread(
    schema: pa.Schema, arrays: list[pa.Array], header: StreamHeader, expected: Expected
) -> None:
    bomb = written(schema, header, arrays, "zstd")
    plain = [one for array in arrays for one in array.buffers() if one is not None]
    sizes = {struct.pack("<q", len(one)) for one in plain}
    found = [size for size in sizes if size in messages(bomb)[1]]
    assert found, "the unpacked length of a buffer stands before it"
    for size in found:
        bomb = bomb.replace(size, struct.pack("<q", 1 << 40))
    with pytest.raises(StreamCorruptError):
        decode(bomb, expected)


@pytest.mark.parametrize("n_bytes", [MAX_METADATA_BYTES + 1, (1 << 31) - 1, -1, -(1 << 31)])
@pytest.mark.parametrize("place", [0, 1])
def test_metadata_of_more_than_a_mebibyte_is_refused(
    n_bytes: int, place: int, stream: bytes, expected: Expected
) -> None:
    pieces = messages(stream)
    pieces[place] = pieces[place][:4] + struct.pack("<i", n_bytes) + pieces[place][8:]
    with pytest.raises(
        StreamCorruptError, match=f"announces {n_bytes} bytes of metadata; at most {MAX_METADATA_BYTES}"
    ):
        decode(b"".join(pieces), expected)


def test_metadata_of_exactly_a_mebibyte_is_only_awaited(stream: bytes, expected: Expected) -> None:
    pieces = messages(stream)
    pieces[1] = pieces[1][:4] + struct.pack("<i", MAX_METADATA_BYTES) + pieces[1][8:]
    with pytest.raises(StreamCutError):
        decode(b"".join(pieces), expected)


@pytest.mark.parametrize("n_bytes", [1 << 40, HUGE, -8])
def test_a_body_longer_than_what_was_announced_is_refused(n_bytes: int, stream: bytes, expected: Expected) -> None:
    pieces = messages(stream)
    pieces[1] = with_number(pieces[1], body_of(pieces[1]), n_bytes)
    with pytest.raises(StreamCorruptError, match=f"a body of {n_bytes} bytes"):
        decode(b"".join(pieces), expected)


def test_more_rows_than_announced_are_refused_before_they_are_read(
    schema: pa.Schema, arrays: list[pa.Array], header: StreamHeader, expected: Expected
) -> None:
    few = header.model_copy(update={"rows": 5, "bytes": 5 * header.bytes // header.rows})
    with pytest.raises(StreamCorruptError, match="announces 6 rows; at most 5"):
        decode(written(schema, few, arrays), expected)


def test_an_announcement_that_contradicts_itself_is_refused(
    schema: pa.Schema, arrays: list[pa.Array], header: StreamHeader, expected: Expected
) -> None:
    with pytest.raises(StreamCorruptError, match=f"announces {header.bytes + 1} bytes in {header.rows} rows"):
        decode(written(schema, header.model_copy(update={"bytes": header.bytes + 1}), arrays), expected)


def _with_field(schema: pa.Schema, index: int, field: pa.Field) -> pa.Schema:
    return pa.schema([field if place == index else one for place, one in enumerate(schema)])


def test_a_dictionary_in_the_schema_is_refused(
    schema: pa.Schema, arrays: list[pa.Array], header: StreamHeader, expected: Expected
) -> None:
    kind = pa.dictionary(pa.int32(), pa.utf8())
    coded = _with_field(schema, 0, pa.field("stimulus_id", kind, nullable=False))
    with pytest.raises(StreamCorruptError, match="schema is not the one asked for"):
        decode(written(coded, header, [arrays[0].dictionary_encode(), *arrays[1:]]), expected)


def test_a_dictionary_message_under_an_honest_schema_is_refused(
    schema: pa.Schema, arrays: list[pa.Array], header: StreamHeader, expected: Expected, stream: bytes
) -> None:
    kind = pa.dictionary(pa.int32(), pa.utf8())
    coded = _with_field(schema, 0, pa.field("stimulus_id", kind, nullable=False))
    dictionary = messages(written(coded, header, [arrays[0].dictionary_encode(), *arrays[1:]]))[1]
    first, *others = messages(stream)
    with pytest.raises(StreamCorruptError, match="a dictionary came where a record batch was due"):
        decode(b"".join([first, dictionary, *others]), expected)


def test_a_second_schema_is_refused(stream: bytes, expected: Expected) -> None:
    first, *others = messages(stream)
    with pytest.raises(StreamCorruptError, match="a schema came where a record batch was due"):
        decode(b"".join([first, first, *others]), expected)


def test_a_batch_before_the_schema_is_refused(stream: bytes, expected: Expected) -> None:
    first, second, *others = messages(stream)
    with pytest.raises(StreamCorruptError, match="a record batch came where a schema was due"):
        decode(b"".join([second, first, *others]), expected)


@pytest.mark.parametrize("name", ["arrow.json", "arrow.py_extension_type", "unheard.of"])
def test_an_extension_type_is_refused(
    name: str, schema: pa.Schema, arrays: list[pa.Array], header: StreamHeader, expected: Expected
) -> None:
    facts = {"ARROW:extension:name": name, "ARROW:extension:metadata": ""}
    dressed = _with_field(schema, 0, schema.field(0).with_metadata(facts))
    with pytest.raises(StreamCorruptError, match="schema"):
        decode(written(dressed, header, arrays), expected)


@pytest.mark.parametrize(("column", "inside"), [(0, False), (3, False), (4, False), (5, True)])
def test_nulls_are_refused(
    column: int, inside: bool, schema: pa.Schema, arrays: list[pa.Array], header: StreamHeader, expected: Expected
) -> None:
    mask = pa.array([False, True] + [False] * (len(arrays[0]) - 2))
    if column < 4:
        arrays[column] = pa.array([*arrays[column].to_pylist()[:1], None, *arrays[column].to_pylist()[2:]])
    elif inside:
        values = pa.array([None, *arrays[column].values.to_pylist()[1:]], pa.float32())
        arrays[column] = pa.FixedSizeListArray.from_arrays(values, type=arrays[column].type)
    else:
        kind = arrays[column].type
        arrays[column] = pa.FixedSizeListArray.from_arrays(arrays[column].values, type=kind, mask=mask)
    assert (arrays[column].values if inside else arrays[column]).null_count == 1
    sink = pa.BufferOutputStream()
    whole = schema.with_metadata(header.to_metadata())
    with pa.ipc.new_stream(sink, whole) as writer:
        batch = pa.RecordBatch.from_arrays(arrays, schema=whole)
        writer.write_batch(batch, custom_metadata={"seq": "0", "open": "true", "checksum": "xxh3:0"})
    with pytest.raises(StreamCorruptError, match=f"column {schema.names[column]} of a batch has nulls"):
        decode(bytes(sink.getvalue()), expected)


def test_bytes_that_are_no_arrow_message_are_refused(stream: bytes, expected: Expected) -> None:
    first, *others = messages(stream)
    with pytest.raises(StreamCorruptError, match=f"byte {len(first)} of the stream begins no Arrow message"):
        decode(b"".join([first, b"<html>Bad Gateway</html>", *others]), expected)


def _set(data: bytes, a: int, _b: int, value: int) -> bytes:
    return data[:a] + bytes([value % 256]) + data[a + 1 :]


def _set_number(data: bytes, a: int, _b: int, value: int) -> bytes:
    return data[: a // 4 * 4] + struct.pack("<I", value) + data[a // 4 * 4 + 4 :]


MUTATIONS: list[Mutation] = [cut, drop, repeat, _set, _set_number]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_is_done_to_a_stream_only_the_sent_values_or_an_error_of_the_wire_come_out(
    data: st.DataObject, stream: bytes, expected: Expected
) -> None:
    truth = decode(stream, expected).replace_schema_metadata(None)
    place = st.integers(0, len(stream))
    value = st.sampled_from([0, 1, 255, 1 << 20, (1 << 31) - 1, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1)
    mutated = stream
    for _ in range(data.draw(st.integers(1, 3))):
        mutate = data.draw(st.sampled_from(MUTATIONS))
        mutated = mutate(mutated, data.draw(place), data.draw(place), data.draw(value))
    try:
        table = decode(mutated, expected)
    except StreamError:
        return
    assert table.replace_schema_metadata(None).equals(truth)
