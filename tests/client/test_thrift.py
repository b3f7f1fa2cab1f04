"""Thrift's compact form: what is written is read, and what is taken over stays as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope.store.thrift import (
    Value,
    i32,
    i64,
    listing,
    read_struct,
    struct,
    text,
    written_fields,
    written_items,
)

INTEGERS = st.integers(-(1 << 31), (1 << 31) - 1)
LONG_INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
NUMBERS = st.integers(1, 15)


@given(
    small=st.dictionaries(NUMBERS, INTEGERS), large=st.dictionaries(NUMBERS, LONG_INTEGERS), words=st.text(max_size=300)
)
def test_a_struct_is_read_as_it_was_written(small: dict[int, int], large: dict[int, int], words: str) -> None:
    inner = struct({number: i64(value) for number, value in large.items()})
    fields = {number: i32(value) for number, value in small.items()} | {3: inner, 9: text(words)}
    content = struct(fields).content
    found, end = read_struct(memoryview(content), 0)
    assert end == len(content)
    assert found == small | {3: large, 9: words.encode()}
    assert written_fields(memoryview(content)) == fields
    assert struct(written_fields(memoryview(content))).content == content


@given(values=st.lists(INTEGERS, min_size=1, max_size=40))
def test_a_list_of_any_length_is_read_as_it_was_written(values: list[int]) -> None:
    items = [i32(value) for value in values]
    content = struct({2: listing(items)}).content
    assert read_struct(memoryview(content), 0)[0] == {2: values}
    [taken] = written_fields(memoryview(content)).values()
    assert written_items(taken) == items


def test_what_no_header_has_is_refused_and_so_is_what_ends_too_early() -> None:
    double = struct({1: Value(7, bytes(8))}).content
    with pytest.raises(ValueError, match="kind 7"):
        read_struct(memoryview(double), 0)
    content = struct({1: i64(1 << 40), 2: listing([struct({1: i32(5)})] * 20)}).content
    for length in range(len(content)):
        with pytest.raises(IndexError):
            read_struct(memoryview(content)[:length], 0)
