"""Answers taken in while they arrive, however they are cut into pieces, and the memory in which they lie."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stratoscope_wire import Expected, StreamCorruptError, StreamCutError, StreamDecoder, StreamIntake
from stratoscope_wire.memory import STEP_BYTES, MessageMemory

any_data = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def table(batches: list[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches).replace_schema_metadata(None)


@any_data
@given(data=st.data())
def test_a_stream_gives_the_same_rows_however_its_bytes_arrive(
    data: st.DataObject, stream: bytes, expected: Expected
) -> None:
    intake, batches, left = StreamIntake(expected), [], memoryview(stream)
    while left:
        n_bytes = min(data.draw(st.integers(1, 700)), len(intake.room), len(left))
        intake.room[:n_bytes] = left[:n_bytes]
        batches += intake.filled(n_bytes)
        left = left[n_bytes:]
    intake.close()
    assert table(batches).equals(table(list(StreamDecoder(stream, expected))))


def test_a_stream_that_ends_anywhere_before_its_end_is_cut(stream: bytes, expected: Expected) -> None:
    for n_bytes in range(len(stream)):
        intake = StreamIntake(expected)
        list(intake.write(stream[:n_bytes]))
        with pytest.raises(StreamCutError):
            intake.close()


def test_what_is_complete_before_a_fault_in_the_same_piece_is_given_first(stream: bytes, expected: Expected) -> None:
    whole = list(StreamDecoder(stream, expected))
    intake, came = StreamIntake(expected), list[pa.RecordBatch]()
    with pytest.raises(StreamCorruptError, match="bytes follow the stream's end"):
        came.extend(intake.write(stream + b"\0"))
    assert table(came).equals(table(whole))


def test_memory_is_given_again_only_when_nothing_looks_at_it() -> None:
    memory = MessageMemory()
    first = memory.take(STEP_BYTES)
    address = first.ctypes.data
    array = np.frombuffer(pa.py_buffer(first), np.float32)[7:]
    del first
    second = memory.take(STEP_BYTES)
    assert second.ctypes.data != address, "an array still shows it"
    del array
    third = memory.take(STEP_BYTES)
    assert third.ctypes.data == address, "nothing does any more"


def test_no_more_memory_is_kept_than_was_allowed() -> None:
    memory = MessageMemory(kept_bytes=3 * STEP_BYTES)
    taken = [memory.take(STEP_BYTES) for _ in range(8)]
    assert not _idle(memory)
    del taken
    assert len(_idle(memory)) == 3


def _idle(memory: MessageMemory) -> list[int]:
    return [whole.ctypes.data for those in memory._idle.values() for whole in those]
