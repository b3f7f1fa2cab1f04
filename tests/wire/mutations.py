"""Damage done to a stream at two of its bytes, `a` and `b`; each function ignores what it has no use for."""

from collections.abc import Callable

Mutation = Callable[[bytes, int, int, int], bytes]


def cut(data: bytes, a: int, _b: int, _value: int) -> bytes:
    return data[:a]


def drop(data: bytes, a: int, b: int, _value: int) -> bytes:
    return data[: min(a, b)] + data[max(a, b) :]


def repeat(data: bytes, a: int, b: int, _value: int) -> bytes:
    return data[: max(a, b)] + data[min(a, b) :]
