"""Thrift's compact form, as much of it as a Parquet page header needs."""

from typing import Any, Final

_TRUE: Final = 1
_FALSE: Final = 2
_INTEGERS: Final = (4, 5, 6)
_BINARY: Final = 8
_STRUCT: Final = 12


def read_struct(data: memoryview, place: int) -> tuple[dict[int, Any], int]:
    """Read a struct: its fields by number, and where it ends.

    Raises
    ------
    IndexError
        If the data end first.
    ValueError
        If a field is of a kind that no page header has.
    """
    fields: dict[int, Any] = {}
    number = 0
    while data[place]:
        head, place = data[place], place + 1
        if head >> 4:
            number += head >> 4
        else:
            number, place = _integer(data, place)
        fields[number], place = _field(data, place, head & 0xF)
    return fields, place + 1


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
    raise ValueError(f"a page header has a field of kind {kind}")


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
