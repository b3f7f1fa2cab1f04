"""Thrift's compact form, as much of it as Parquet's headers and footers need."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

_TRUE: Final = 1
_FALSE: Final = 2
_I32: Final = 5
_I64: Final = 6
_INTEGERS: Final = (4, _I32, _I64)
_BINARY: Final = 8
_LIST: Final = 9
_STRUCT: Final = 12
_LONG: Final = 15


class Value(NamedTuple):
    """A value in its written form.

    Attributes
    ----------
    kind
        Thrift's number of its type.
    content
        What stands behind the type.
    """

    kind: int
    content: bytes


def read_struct(data: memoryview, place: int) -> tuple[dict[int, Any], int]:
    """Read a struct: its fields by number, and where it ends.

    Raises
    ------
    IndexError
        If the data end first.
    ValueError
        If a field is of a kind that no header has.
    """
    fields: dict[int, Any] = {}
    number = 0
    while data[place]:
        number, kind, place = _head(data, place, number)
        fields[number], place = _field(data, place, kind)
    return fields, place + 1


def written_fields(data: memoryview, place: int = 0) -> dict[int, Value]:
    """Return a struct's fields by number, each as it is written.

    Raises
    ------
    IndexError, ValueError
        As `read_struct`.
    """
    fields: dict[int, Value] = {}
    number = 0
    while data[place]:
        number, kind, place = _head(data, place, number)
        _, end = _field(data, place, kind)
        fields[number] = Value(kind, bytes(data[place:end]))
        place = end
    return fields


def written_items(items: Value) -> list[Value]:
    """Return the items of a list, each as it is written."""
    data = memoryview(items.content)
    kind, n_items, place = _list_head(data, 0)
    found = []
    for _ in range(n_items):
        _, end = _field(data, place, kind)
        found.append(Value(kind, bytes(data[place:end])))
        place = end
    return found


def i32(number: int) -> Value:
    """Write an integer of 32 bits."""
    return Value(_I32, varint(number << 1 ^ number >> 63))


def i64(number: int) -> Value:
    """Write an integer of 64 bits."""
    return i32(number)._replace(kind=_I64)


def text(words: str) -> Value:
    """Write a text."""
    content = words.encode()
    return Value(_BINARY, varint(len(content)) + content)


def listing(items: Sequence[Value]) -> Value:
    """Write a list of values of one kind, at least one."""
    kind, n_items = items[0].kind, len(items)
    head = bytes([n_items << 4 | kind]) if n_items < _LONG else bytes([_LONG << 4 | kind]) + varint(n_items)
    return Value(_LIST, head + b"".join(item.content for item in items))


def struct(fields: Mapping[int, Value]) -> Value:
    """Write a struct whose field numbers are at most 15."""
    content, last = bytearray(), 0
    for number, value in sorted(fields.items()):
        content.append(number - last << 4 | value.kind)
        content += value.content
        last = number
    return Value(_STRUCT, bytes(content) + b"\0")


def varint(number: int) -> bytes:
    """Write a natural number, 7 bits to a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _head(data: memoryview, place: int, last: int) -> tuple[int, int, int]:
    head, place = data[place], place + 1
    if head >> 4:
        return last + (head >> 4), head & 0xF, place
    number, place = _integer(data, place)
    return number, head & 0xF, place


def _field(data: memoryview, place: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, place
    if kind in _INTEGERS:
        return _integer(data, place)
    if kind == _BINARY:
        length, place = _varint(data, place)
        return bytes(data[place : place + length]), place + length
    if kind == _STRUCT:
        return read_struct(data, place)
    if kind == _LIST:
        kind, n_items, place = _list_head(data, place)
        items = []
        for _ in range(n_items):
            item, place = _field(data, place, kind)
            items.append(item)
        return items, place
    raise ValueError(f"a header has a field of kind {kind}")


def _list_head(data: memoryview, place: int) -> tuple[int, int, int]:
    head, place = data[place], place + 1
    if head & 0xF in (_TRUE, _FALSE):
        raise ValueError("a header has a list of booleans")
    if head >> 4 < _LONG:
        return head & 0xF, head >> 4, place
    n_items, place = _varint(data, place)
    return head & 0xF, n_items, place


def _integer(data: memoryview, place: int) -> tuple[int, int]:
    number, place = _varint(data, place)
    return number >> 1 ^ -(number & 1), place


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte, place = data[place], place + 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, place
