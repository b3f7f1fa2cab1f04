"""The ticket: what the workers must know of one prompt. It travels inside the prompt's vLLM request.

vLLM carries a request's ``extra_args`` to every worker with the request itself, so that a ticket cannot arrive late,
twice or at the wrong rank. It is plain data: numbers, strings and bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np

from stratoscope_server.engines.protocol import IntArray, Prompt
from stratoscope_wire.request import Dtype

KEY: Final = "stratoscope"
"""Key of the ticket in a request's ``extra_args``."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One prompt's capture.

    Attributes
    ----------
    serial
        Number of the prompt in this server's life; also the start of its vLLM request id.
    columns
        Numbers of the columns among all columns of the model, as little-endian uint16.
    dtype
        Type of the values in the region.
    rotation
        Shifts which rank copies which column; see `Run.owned`.
    offset, n_rows
        Where the region starts in shared memory, and its rows per column.
    first_row
        The prompt's first row in the region.
    n_tokens
        Of the prompt.
    plain
        Positions of the rows that are copied, as little-endian int32.
    plain_rows
        For each of them the row of the region, counted from `first_row`.
    pooled
        For each mean its row and its positions, likewise.
    """

    serial: int
    columns: bytes
    dtype: Dtype
    rotation: int
    offset: int
    n_rows: int
    first_row: int
    n_tokens: int
    plain: bytes
    plain_rows: bytes
    pooled: tuple[tuple[int, bytes], ...]

    def to_extra_args(self) -> dict[str, Any]:
        """Return the request's ``extra_args``."""
        return {KEY: asdict(self)}

    @classmethod
    def from_extra_args(cls, extra_args: Mapping[str, Any] | None) -> Self | None:
        """Read the ticket of a request; ``None`` if it has none."""
        fields = (extra_args or {}).get(KEY)
        if fields is None:
            return None
        pooled = tuple((int(row), bytes(positions)) for row, positions in fields["pooled"])
        return cls(**{**fields, "pooled": pooled})

    @property
    def request_id(self) -> str:
        """Id of the vLLM request."""
        return str(self.serial)


def serial_of(request_id: str) -> int:
    """Return the serial of a vLLM request; -1 if it is not one of a prompt. vLLM appends a random suffix to its ids."""
    serial = request_id.partition("-")[0]
    return int(serial) if serial.isascii() and serial.isdigit() else -1


def row_fields(prompt: Prompt) -> dict[str, Any]:
    """Lay out a prompt's rows, in the order of its selectors, as fields of a ticket."""
    plain: list[IntArray] = []
    plain_rows: list[IntArray] = []
    pooled: list[tuple[int, bytes]] = []
    row = 0
    for spec in prompt.rows:
        if spec.pooled:
            pooled.append((row, pack_ints(spec.positions)))
        else:
            plain.append(spec.positions)
            plain_rows.append(np.arange(row, row + spec.n_rows, dtype=np.int32))
        row += spec.n_rows
    fields = {"plain": _join(plain), "plain_rows": _join(plain_rows), "pooled": tuple(pooled)}
    return {**fields, "n_tokens": prompt.n_tokens}


def pack_ints(numbers: IntArray) -> bytes:
    """Return int32 numbers as bytes."""
    return numbers.astype("<i4").tobytes()


def unpack_ints(data: bytes) -> IntArray:
    """Return the numbers of `pack_ints`."""
    return np.frombuffer(data, "<i4").astype(np.int32)


def _join(arrays: Sequence[IntArray]) -> bytes:
    return b"".join(pack_ints(array) for array in arrays)
